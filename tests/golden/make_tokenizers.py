# ruff: noqa: RUF001 - the texts are meant to be hard
"""Train small vocabularies and ask SentencePiece, tiktoken and transformers; run by hand, rarely.

Needs packages that are no dependencies of the project, and none of the project itself:

    pip install sentencepiece tiktoken transformers protobuf
    python tests/golden/make_tokenizers.py

Writes tests/golden/tokenizers.zip: the files of the vocabularies, and ids.json with the texts and
the ids that the libraries give for them.
"""

import base64
import io
import itertools
import json
import random
import struct
import tempfile
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import sentencepiece
import tiktoken
import transformers

HERE = Path(__file__).parent
ZIP = HERE / "tokenizers.zip"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>")
RULES = (
    "41\t61", "42\t62", "c4\t", "41 301\te1", "2126\t3c9", "3000\t20", "a8\t20 308",
    "fb03\t66 66 69", "ab\t22 20", "9\t20 20", "1f642\t3a 29",
)  # fmt: skip
SIDE_FILES: dict[str, dict[str, Any]] = {  # of a folder with 600 pieces
    "tokenizer_config.json": {
        "tokenizer_class": "LlamaTokenizer", "legacy": True, "add_bos_token": True,
        "added_tokens_decoder": {
            "0": {"content": "<unk>", "special": True},
            "1": {"content": "<s>", "special": True},
            "2": {"content": "</s>", "special": True},
            "600": {"content": "<|im_start|>", "special": True},
            "601": {"content": "<|im_end|>", "special": True},
            "602": {"content": "[INST]", "special": False},
        },
    },
    "added_tokens.json": {"<|im_start|>": 600, "<|im_end|>": 601, "[INST]": 602},
    "special_tokens_map.json": {
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
    },
}  # fmt: skip
POOLS = (
    "abcdefghij", "ABCxyz'sStTdDlLmMrRvVeE' ſK", "0123456789", "    \t\n\r\n ",
    ".,!?;:-_()[]{}<>|`~^$+=*&%#@/\\\"'", "àéîõüßñçøåÆŒﬁﬃ", "абвгдежзий", "你好世界中文字符",
    "こんにちはカタカナｶﾞﾊﾟ", "한국어 텍스트 각", "🙂👍🏽👨‍👩‍👧‍👦🇫🇷❤️", "०१२٠١٢²³½ⅣⅫ①",
    "\u00a0\u2003\u3000\u200b\u200d\u2028\u0085\ufeff\u1680\u00ad", "e\u0301o\u0308A\u0301\u0327",
    "ไทย ελληνικά עברית العربية हिन्दी ﷺ", "\x00\x01\x7f\x1b\x1c", "ＡＢＣ１２３！＂ Ω Å ℌ ㍿",
    "a\u0300\u0301\u0323b\uff21\u0301\u2581",
)  # fmt: skip
SAID = (
    "", " ", "  ", "\n", "a", " a", "Hello, world!", "  leading and  inner   and trailing  ",
    "I'm you're WE'LL they'd o'clock", "it'\u017f don'\u212a",
    "x = [i ** 2 for i in range(1024)]\n\n\treturn x  # done\n",
    "def f(a, b):\n    if a:\n        return b\n\n\n    return {'a': [1, 2], \"b\": None}\n",
    "3.14159 and 1234567890 and 2025-01-31", "naïve café — “quoted” …", " " * 37 + "x",
    "\n\n\n \n\n", "<|im_start|>user\nHi<|im_end|>\n", "a<|eot_id|>b[INST] c[/INST][INST]",
    "x \n\n y \n\n", "<s>[INST] x </s><unk><0x0A><0x41> <0xZZ> <0x4", "<unk><s></s><pad>",
    "family 👨‍👩‍👧‍👦 flag 🇫🇷 heart ❤️", "東京 Tokyo 서울 Seoul", "\u2581\u2581a b\u2581", "\u2581",
    "a" * 300, "ab" * 150, "abcabc" * 60, "=" * 99, "the" * 70, "lorem ipsum dolor " * 12,
    "https://example.org/a/b?c=d&e=%20f#g", "\ufffd\ufffe\uffff",
    "<start_of_turn>user\n<end_of_turn>",
    "[INS[INST]T] [INST", "  [INST]  x", "a[X]b [X] c  [X  Y] ",
    "<|begin_of_text|> <|end_of_text|>",
)  # fmt: skip
SHARED = {"minloglevel": 2, "num_threads": 1, "character_coverage": 0.98}
SYMBOLS = ["[INST]", "[INST", "[X]", "[X  Y]", "\n\n", "<start_of_turn>"]
MODELS: dict[str, dict[str, Any]] = {
    "llama": {
        "model_type": "bpe", "vocab_size": 600, "byte_fallback": True, "split_digits": True,
        "normalization_rule_name": "identity", "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
    },
    "gemma": {
        "model_type": "bpe", "vocab_size": 560, "byte_fallback": True, "add_dummy_prefix": False,
        "normalization_rule_name": "identity", "remove_extra_whitespaces": False,
        "user_defined_symbols": [*SYMBOLS, "\u2581\u2581", "\u2581\u2581\u2581"],
        "control_symbols": ["<|im_start|>", "<|im_end|>"], "pad_id": 0, "eos_id": 1, "bos_id": 2,
        "unk_id": 3,
    },
    "open": {"model_type": "bpe", "vocab_size": 520, "byte_fallback": True},
    "ruled": {"model_type": "bpe", "vocab_size": 330, "user_defined_symbols": SYMBOLS},
    "unigram": {"model_type": "unigram", "vocab_size": 400, "user_defined_symbols": SYMBOLS},
    "bytes": {
        "model_type": "unigram", "vocab_size": 620, "byte_fallback": True,
        "normalization_rule_name": "identity", "remove_extra_whitespaces": False,
        "add_dummy_prefix": False, "user_defined_symbols": SYMBOLS,
        "control_symbols": ["<|im_start|>"],
    },
}  # fmt: skip


def write_texts() -> list[str]:
    """The texts above, a character of every block of every plane, and random mixtures."""
    chance = random.Random(11)
    texts = list(SAID)
    for plane in range(17):
        codes = range(plane << 16, (plane + 1) << 16, 211)
        known = [chr(code) for code in codes if unicodedata.category(chr(code)) != "Cs"]
        some = chance.sample(known, 40)
        texts.append("".join(some) + " " + " ".join(some[:10]))
    while len(texts) < 230:
        pools = chance.sample(POOLS, chance.randint(1, 3))
        pieces = []
        for _ in range(chance.choice((1, 3, 5, 9, 16))):
            pool = chance.choice(pools)
            pieces.append(chance.choice((chance.choice(pool), pool[: chance.randint(1, 5)])))
            if chance.random() < 0.2:
                pieces.append(chance.choice(pool) * chance.randint(2, 7))
        texts.append("".join(pieces))
    return texts


def train(name: str, corpus: str, folder: Path) -> bytes:
    """The bytes of a SentencePiece file."""
    (folder / "corpus.txt").write_text(corpus)
    options = dict(MODELS[name])
    if name == "ruled":
        (folder / "rules.tsv").write_text("".join(f"{rule}\n" for rule in RULES))
        options["normalization_rule_tsv"] = str(folder / "rules.tsv")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"), model_prefix=str(folder / name), **SHARED, **options
    )
    return (folder / f"{name}.model").read_bytes()


def ask_sentencepiece(raw: bytes, texts: list[str]) -> dict[str, Any]:
    """Ids of every text, and what they decode to where that is another text."""
    model = sentencepiece.SentencePieceProcessor(model_proto=raw)
    ids = [model.encode(text) for text in texts]
    said = [model.decode(each) for each in ids]
    changed = {place: text for place, text in enumerate(said) if text != texts[place]}
    return {"ids": ids, "decoded": changed, "begin": model.bos_id(), "end": model.eos_id()}


def tiktoken_file() -> tuple[bytes, dict[bytes, int]]:
    """A file with the byte-level vocabulary of tests/text, as Llama 3's is written."""
    trained = json.loads((HERE.parent / "text/golden.json").read_text())
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet |= {chr(256 + place): byte for place, byte in enumerate(hidden)}
    merged = ["".join(merge.split(" ")) for merge in trained["merges"]]
    tokens = [bytes((byte,)) for byte in range(256)]
    tokens += [bytes(alphabet[each] for each in token) for token in merged]
    ranks = {token: rank for rank, token in enumerate(dict.fromkeys(tokens))}
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items())
    return "".join(lines).encode(), ranks


def ask_tiktoken(ranks: dict[bytes, int], texts: list[str]) -> dict[str, Any]:
    """Ids of every text, special-token text read as text, and as tokens where that differs."""
    special = {text: len(ranks) + place for text, place in zip(SPECIAL, (0, 1, 9, 6), strict=True)}
    model = tiktoken.Encoding("tiny", pat_str=LLAMA3, mergeable_ranks=ranks, special_tokens=special)
    ids = [model.encode(text, disallowed_special=()) for text in texts]
    read = [model.encode(text, allowed_special="all") for text in texts]
    changed = {place: each for place, each in enumerate(read) if each != ids[place]}
    return {"ids": ids, "special": changed}


def llama2c_file(raw: bytes) -> bytes:
    """The file that llama2.c's export makes of a SentencePiece model."""
    model = sentencepiece.SentencePieceProcessor(model_proto=raw)
    pieces = []
    for token in range(model.vocab_size()):
        text = model.id_to_piece(token)
        if token in (model.bos_id(), model.eos_id()):
            text = f"\n{text}\n"
        pieces.append((model.get_score(token), text.replace("\u2581", " ").encode()))
    longest = max(len(text) for _, text in pieces)
    records = (struct.pack("<fi", score, len(text)) + text for score, text in pieces)
    return struct.pack("<I", longest) + b"".join(records)


def ask_llama2c(raw: bytes, texts: list[str]) -> dict[str, Any]:
    """Ids as run.c finds them: a space, every character or its bytes, then the best pair of all."""
    at, scores, known = 4, [], {}
    while at < len(raw):
        score, length = struct.unpack_from("<fi", raw, at)
        known[raw[at + 8 : at + 8 + length]] = len(scores)
        scores.append(score)
        at += 8 + length
    texts_by_id = {token: text for text, token in known.items()}
    found = []
    for text in texts:
        ids = [known[b" "]] if text else []
        for character in text:
            token = known.get(character.encode())
            ids += [token] if token is not None else [byte + 3 for byte in character.encode()]
        while True:
            pairs = [
                (scores[token], -place, token)
                for place, pair in enumerate(itertools.pairwise(ids))
                if (token := known.get(b"".join(texts_by_id[each] for each in pair))) is not None
            ]
            if not pairs:
                break
            _, place, token = max(pairs)
            ids[-place : 2 - place] = [token]
        found.append(ids)
    return {"ids": found}


def ask_transformers(raw: bytes, texts: list[str], folder: Path) -> dict[str, Any]:
    """Ids by transformers' tokenizer of a folder with a tokenizer.model and added tokens."""
    (folder / "tokenizer.model").write_bytes(raw)
    for file, content in SIDE_FILES.items():
        (folder / file).write_text(json.dumps(content))
    made = transformers.AutoTokenizer.from_pretrained(str(folder))
    return {"ids": [made.encode(text) for text in texts], "version": transformers.__version__}


def main() -> None:
    """Write the zip file."""
    texts = write_texts()
    sources = [HERE / "english.txt", HERE.parents[1] / "jaxllama/limits.py"]
    corpus = "\n\n".join(source.read_text() for source in sources) + "\n\n".join(texts[:40]) * 2
    found: dict[str, Any] = {"texts": texts}
    with tempfile.TemporaryDirectory() as name, zipfile.ZipFile(ZIP, "w", zipfile.ZIP_LZMA) as out:
        folder = Path(name)

        def add(path: str, raw: bytes) -> None:
            out.writestr(zipfile.ZipInfo(path), raw, zipfile.ZIP_LZMA)

        for kind in MODELS:
            raw = train(kind, corpus.replace("\x00", ""), folder)
            add(f"{kind}.model", raw)
            found[kind] = ask_sentencepiece(raw, texts)
            if kind == "llama":
                add("tokenizer.bin", llama2c_file(raw))
                found["llama2c"] = ask_llama2c(llama2c_file(raw), texts)
                found["folder"] = ask_transformers(raw, texts, folder)
                for file, content in SIDE_FILES.items():
                    add(file, json.dumps(content).encode())
        raw, ranks = tiktoken_file()
        add("tiktoken.model", raw)
        found["tiktoken"] = ask_tiktoken(ranks, texts)
        whole = io.StringIO()
        json.dump(found, whole, separators=(",", ":"))
        add("ids.json", whole.getvalue().encode())


if __name__ == "__main__":
    main()
