"""Train the small vocabularies and ask llama.cpp and SentencePiece; run by hand, rarely.

Needs the project and, beside it, packages that are no dependencies of the project:

    pip install llama-cpp-python sentencepiece
    python tests/text/make_goldens.py [DEFAULT_MODEL.gguf]

Writes tests/text/golden.json. With the GGUF file of the default model, its ids are recorded too.
"""

import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import sentencepiece
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from tests.text.vocabularies import BYTE_LEVEL_RULES, GOLDEN, SCORED, scored_metadata
from tests.text.vocabularies import byte_level_metadata as byte_level

ROOT = Path(__file__).parents[2]
POOLS = (
    "abcdefghij", "ABCxyz'sStTdDlLmMrRvVeE' ", "0123456789", "    \t\n\r\n ",
    ".,!?;:-_()[]{}<>|`~^$+=*&%#@/\\\"'", "àéîõüßñçøåÆŒ", "абвгдежзий", "你好世界中文字符",
    "こんにちはカタカナ", "한국어 텍스트", "🙂👍🏽👨‍👩‍👧‍👦🇫🇷❤️", "०१२٠١٢²³½ⅣⅫ",
    "\u00a0\u2003\u3000\u200b\u200d\u2028\u0085\ufeff\u1680", "\u0301\u0308\u0327",
    "ไทย ελληνικά עברית العربية हिन्दी", "\x00\x01\x7f\x1b\x1c",
)  # fmt: skip
SAID = (
    "", " ", "  ", "\n", "a", " a", "Hello, world!", "  leading and trailing  ",
    "I'm you're WE'LL they'd o'clock", "x = [i ** 2 for i in range(1024)]\n\n\treturn x  # done\n",
    "3.14159 and 1234567890 and 2025-01-31", "naïve café — “quoted” …", "aaaaaaaaaaaaaaaaaaaaaaaaa",
    " " * 37 + "x", "\n\n\n \n\n", "<|im_start|>user\nHi<|im_end|>\n", "a<|eot_id|>b[INST] c",
    "x \n\n y \n\n", "<s>[INST] x </s><unk><0x0A>", "family 👨‍👩‍👧‍👦 flag 🇫🇷 heart ❤️",
    "東京 Tokyo 서울 Seoul", "<|im_start|><|im_start|>", "\u2581\u2581a b\u2581",
)  # fmt: skip


def write_texts(count: int) -> list[str]:
    """The texts above and random mixtures of scripts, spaces, digits and signs."""
    chance = random.Random(7)
    texts = list(SAID)
    while len(texts) < count:
        pools = chance.sample(POOLS, chance.randint(1, 3))
        pieces = []
        for _ in range(chance.choice((1, 3, 5, 9, 16))):
            pool = chance.choice(pools)
            pieces.append(chance.choice((chance.choice(pool), pool[: chance.randint(1, 5)])))
            if chance.random() < 0.2:
                pieces.append(chance.choice(pool) * chance.randint(2, 7))
        texts.append("".join(pieces))
    return texts


def write_gguf(path: Path, metadata: dict[str, Any]) -> None:
    """A file with a vocabulary and no tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        match value:
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case str():
                writer.add_string(key, value)
            case _:
                writer.add_array(key, value)
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_block_count(1)
    writer.add_head_count(2)
    writer.add_feed_forward_length(64)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def ask_llama_cpp(path: Path, texts: list[str]) -> dict[str, Any]:
    """Ids of every text, special-token text read as text, and as tokens where that differs."""
    model = llama_cpp.Llama(model_path=str(path), vocab_only=True, verbose=False)
    plain, special = (
        [model.tokenize(text.encode(), add_bos=False, special=special) for text in texts]
        for special in (False, True)
    )
    changed = {place: ids for place, ids in enumerate(special) if ids != plain[place]}
    return {"plain": plain, "special": changed}


def train_byte_level(corpus: str) -> tuple[list[str], list[str]]:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=800, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    trained.train_from_iterator(corpus.split("\n\n"), trainer)
    model = json.loads(trained.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return tokens, [" ".join(pair) for pair in model["merges"]]


def train_sentencepiece(corpus: str, folder: Path) -> sentencepiece.SentencePieceProcessor:
    (folder / "corpus.txt").write_text(corpus)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "sp"),
        model_type="bpe",
        vocab_size=900,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        character_coverage=0.98,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "sp.model"))


def main() -> None:
    texts = write_texts(120)
    sources = [ROOT / "tests/golden/english.txt", ROOT / "jaxllama/limits.py"]
    corpus = "\n\n".join(source.read_text() for source in sources) + "\n\n".join(texts[:60])
    tokens, merges = train_byte_level(corpus)
    found: dict[str, Any] = {"texts": texts, "tokens": tokens, "merges": merges, "ids": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        learned = train_sentencepiece(corpus, folder)
        pieces = range(259, learned.vocab_size())
        found["pieces"] = [learned.id_to_piece(piece) for piece in pieces]
        found["scores"] = [learned.get_score(piece) for piece in pieces]
        found["sentencepiece"] = [learned.encode(text) for text in texts]
        for kind in (*BYTE_LEVEL_RULES, *SCORED):
            metadata = (
                scored_metadata(found["pieces"], found["scores"], kind)
                if kind in SCORED
                else byte_level(tokens, merges, kind)
            )
            write_gguf(folder / f"{kind}.gguf", metadata)
            found["ids"][kind] = ask_llama_cpp(folder / f"{kind}.gguf", texts)
    if len(sys.argv) > 1:
        found["ids"]["smollm2"] = ask_llama_cpp(Path(sys.argv[1]), texts)
    lines = (
        f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}"
        for key, value in found.items()
    )
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
