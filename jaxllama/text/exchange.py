"""Exchange: a tokenizer in the form of another kind of model file.

Called by exports with the tokenizer as its checkpoint has it. The result is built again and
compared on a text with every kind of word, so a tokenizer that has no place in the other form is
refused instead of changed. Knows no weights.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jaxllama.errors import BadTokenizer, UnsupportedModel
from jaxllama.text.files import read_vocabulary
from jaxllama.text.from_folder import tokenizer_from_folder
from jaxllama.text.from_gguf import PREFIX, tokenizer_from_gguf
from jaxllama.text.from_json import state_of
from jaxllama.text.from_llama2c import BEGIN, END, read_pieces, tokenizer_from_llama2c
from jaxllama.text.pretokenize import CUTTINGS
from jaxllama.text.tokenizer import Tokenizer, library_errors
from jaxllama.text.vocabulary import SPACE, Spelling, TokenKind

FOLDER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "added_tokens.json",
    "config.json",  # may name end tokens
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
MAX_FILE = 256 << 20  # bytes
PROBE = (
    "Hello world, it's THEY'LL'VE  don't\t\n\n  x 1234567 3.14159e-10 §¶ naïve Zürich été "
    "日本語テスト 한국어 Привет мир हिन्दी العربية 🙂👩‍👩‍👧 a\u0301e\u0301 <tag attr='1'/> "
    "snake_case camelCase foo(bar)[0] += $100; // comment\r\n    return $x ~ ^y | z+1=2 ...?!\n \n"
)
CONTROL = (TokenKind.CONTROL, TokenKind.UNKNOWN)


@dataclass(frozen=True)
class TokenizerSource:
    """A tokenizer as stored in its checkpoint: the files of a folder, or GGUF metadata."""

    files: Mapping[str, bytes] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> Tokenizer:
        """Build the tokenizer that the files or the metadata describe."""
        if self.metadata:
            return tokenizer_from_gguf(self.metadata)
        with TemporaryDirectory() as folder:
            for name, raw in self.files.items():
                (Path(folder) / name).write_bytes(raw)
            return tokenizer_from_folder(Path(folder))


def source_of_folder(folder: Path, names: Sequence[str] = FOLDER_FILES) -> TokenizerSource:
    """Return those files of `folder` that are in `names`, as the source of a tokenizer.

    Raise BadTokenizer if neither tokenizer.json nor tokenizer.model is among them, or one is too
    long.
    """
    found = {}
    for name in names:
        path = folder / name
        if path.is_file():
            if path.stat().st_size > MAX_FILE:
                raise BadTokenizer(f"{path} has more than {MAX_FILE} bytes, the most that is read")
            found[name] = path.read_bytes()
    if found.keys().isdisjoint(FOLDER_FILES[:2]):
        raise BadTokenizer(
            f"{folder} has no tokenizer to write to the new file; expected "
            f"{' or '.join(each for each in FOLDER_FILES[:2] if each in names)} in it"
        )
    return TokenizerSource(files=found)


def source_of_metadata(metadata: Mapping[str, Any]) -> TokenizerSource:
    """Return the tokenizer keys of a GGUF file's metadata, as the source of a tokenizer."""
    kept = {key: metadata[key] for key in metadata if key.startswith("tokenizer.")}
    return TokenizerSource(metadata=kept)


def source_of_llama2c(path: Path, size: int) -> TokenizerSource:
    """Return the tokenizer in llama2.c's `tokenizer.bin`, as the metadata of a GGUF file.

    Unused tokens fill the vocabulary up to the model's size, `size`. Raise UnsupportedModel if the
    metadata would split text into other tokens than the file does.
    """
    texts, scores = read_pieces(read_vocabulary(path), str(path))
    tokenizer = tokenizer_from_llama2c(path)
    unused = [f"[PAD{i}]" for i in range(len(texts), size)]
    metadata = {
        f"{PREFIX}model": "llama",
        f"{PREFIX}tokens": [text.replace(" ", SPACE) for text in texts] + unused,
        f"{PREFIX}scores": scores + [0.0] * len(unused),
        f"{PREFIX}token_type": [
            *tokenizer.vocabulary.kinds, *[int(TokenKind.UNUSED)] * len(unused)
        ],
        f"{PREFIX}bos_token_id": BEGIN,
        f"{PREFIX}eos_token_id": END,
        f"{PREFIX}eot_token_id": BEGIN,  # where the next story begins, this one ends
        f"{PREFIX}add_bos_token": True,
        f"{PREFIX}add_space_prefix": True,
    }  # fmt: skip
    source = TokenizerSource(metadata=metadata)
    check_same(tokenizer, source, "GGUF")
    return source


def as_files(source: TokenizerSource) -> dict[str, bytes]:
    """Return a tokenizer as files of a Hugging Face folder: a dict of file name to content.

    The files of a source that has files are returned unchanged. Raise UnsupportedModel if the new
    files would split text into other tokens than the source does.
    """
    if source.files:
        return dict(source.files)
    tokenizer = source.build()
    side: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": tokenizer.adds_begin,
        "bos_token": text_of(tokenizer, tokenizer.begin_id),
        "eos_token": text_of(tokenizer, next(iter(tokenizer.end_ids), None)),
    }
    if tokenizer.text.template is not None:
        side["chat_template"] = tokenizer.text.template
    generation = {"bos_token_id": tokenizer.begin_id, "eos_token_id": list(tokenizer.end_ids)}
    objects = {
        "tokenizer.json": serialized(tokenizer),
        "tokenizer_config.json": side,
        "generation_config.json": generation,
    }
    files = {name: json.dumps(each, ensure_ascii=False).encode() for name, each in objects.items()}
    check_same(tokenizer, TokenizerSource(files=files), "tokenizer.json")
    return files


def as_metadata(source: TokenizerSource, size: int) -> dict[str, Any]:
    """Return the tokenizer as GGUF metadata; unused tokens fill its vocabulary up to `size`.

    The metadata of a GGUF source is returned unchanged. Raise UnsupportedModel if the tokenizer has
    more than `size` tokens, or if the metadata would split text into other tokens.
    """
    if source.metadata:
        return dict(source.metadata)
    tokenizer = source.build()
    vocabulary = tokenizer.vocabulary
    if len(vocabulary) > size:
        raise UnsupportedModel(
            f"the tokenizer has {len(vocabulary)} tokens and the model {size}; expected at most "
            f"as many"
        )
    texts = [text or f"[PAD{i}]" for i, text in enumerate(vocabulary.texts)]
    texts += [f"[PAD{i}]" for i in range(len(texts), size)]
    metadata: dict[str, Any] = {
        f"{PREFIX}tokens": texts,
        f"{PREFIX}token_type": [*vocabulary.kinds, *[int(TokenKind.UNUSED)] * size][:size],
        f"{PREFIX}add_bos_token": tokenizer.adds_begin,
    }
    ends = dict(zip(("eos_token_id", "eot_token_id", "eom_token_id"), tokenizer.end_ids))  # noqa: B905
    for key, token in {"bos_token_id": tokenizer.begin_id, **ends}.items():
        if token is not None:
            metadata[PREFIX + key] = token
    if tokenizer.text.template is not None:
        metadata["tokenizer.chat_template"] = tokenizer.text.template
    metadata |= words_and_merges(tokenizer, texts)
    check_same(tokenizer, TokenizerSource(metadata=metadata), "GGUF")
    return metadata


def words_and_merges(tokenizer: Tokenizer, texts: list[str]) -> dict[str, Any]:
    """Return GGUF metadata with the merges (byte-level BPE) or the scores (SentencePiece).

    `texts` are the texts of all tokens, by id. Raise UnsupportedModel for other kinds of
    tokenizers.
    """
    state = json.loads(tokenizer.encoder.to_str())
    model = state["model"]
    if model.get("type") != "BPE":
        raise UnsupportedModel(
            f"a tokenizer of type {model.get('type')!r} is not supported in GGUF; expected BPE"
        )
    pairs = [each.split(" ") if isinstance(each, str) else each for each in model["merges"]]
    if tokenizer.vocabulary.spelling == Spelling.SENTENCEPIECE:
        ranks: dict[str, int] = {}
        for rank, (left, right) in enumerate(pairs):
            ranks.setdefault(left + right, rank)
        worst = float(-len(pairs))
        scores = [float(-ranks[text]) if text in ranks else worst for text in texts]
        prefix = tokenizer.drops_space
        return {
            f"{PREFIX}model": "llama",
            f"{PREFIX}scores": scores,
            f"{PREFIX}add_space_prefix": prefix,
        }
    return {
        f"{PREFIX}model": "gpt2",
        f"{PREFIX}pre": name_of_cutting(tokenizer, ignores=bool(model.get("ignore_merges"))),
        f"{PREFIX}merges": [" ".join(pair) for pair in pairs],
    }


def name_of_cutting(tokenizer: Tokenizer, *, ignores: bool) -> str:
    """Return GGUF's name of the rule by which this tokenizer splits text into words.

    `ignores` says whether a word that is a token is never split (`ignore_merges`); the rule must
    agree. Raise UnsupportedModel if no known rule splits a probe text in the same way.
    """
    own = tokenizer.encoder.pre_tokenizer
    with library_errors("the pre-tokenizer fails"):
        wanted = own.pre_tokenize_str(PROBE) if own is not None else []
        for name, cutting in CUTTINGS.items():
            found = cutting.build().pre_tokenize_str(PROBE)
            if found == wanted and cutting.ignores_merges == ignores:
                return name
    raise UnsupportedModel(
        f"the tokenizer cuts words by a rule ({state_of(own).get('type')}) without a name in GGUF "
        f"that this reader knows; export to safetensors instead"
    )


def serialized(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the content of tokenizer.json for a tokenizer that was built from GGUF metadata.

    Adds the control tokens and the decoder, which the object of the tokenizers library lacks.
    """
    state: dict[str, Any] = json.loads(tokenizer.encoder.to_str())
    vocabulary = tokenizer.vocabulary
    ids = {text: token for token, text in enumerate(vocabulary.texts)}
    state["model"]["vocab"] = ids
    added = (*CONTROL, TokenKind.USER_DEFINED)
    state["added_tokens"] = [
        {
            "id": token, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": vocabulary.kinds[token] in CONTROL,
        }
        for text, token in ids.items()
        if vocabulary.kinds[token] in added
    ]  # fmt: skip
    state["decoder"] = decoder_of(tokenizer)
    return state


def decoder_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return tokenizer.json's `decoder` object, which turns the texts of tokens into plain text."""
    if tokenizer.vocabulary.spelling == Spelling.BYTE_LEVEL:
        options = {"add_prefix_space": True, "trim_offsets": True, "use_regex": True}
        return {"type": "ByteLevel", **options}
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if tokenizer.drops_space:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def check_same(tokenizer: Tokenizer, made: TokenizerSource, form: str) -> None:
    """Raise UnsupportedModel unless `made` gives the same tokens as `tokenizer` for probe texts.

    Begin and end tokens must agree, too. `form` names the new form in the error.
    """
    other = made.build()
    special = "".join(sorted(tokenizer.text.special)[:64])
    for text in (PROBE, special + "x", tokenizer.text.template or ""):
        one, two = (each.encode(text, special=True) for each in (tokenizer, other))
        if one != two:
            raise UnsupportedModel(
                f"the tokenizer cannot be written as {form}: a text of {len(text)} characters "
                f"would become {len(two)} tokens that differ from its {len(one)}"
            )
    same = (tokenizer.begin_id, tokenizer.adds_begin, set(tokenizer.end_ids))
    if same != (other.begin_id, other.adds_begin, set(other.end_ids)):
        raise UnsupportedModel(
            f"the tokenizer cannot be written as {form}: its begin and end tokens would differ"
        )


def text_of(tokenizer: Tokenizer, token: int | None) -> str | None:
    """Return the text of a token; None for None."""
    return None if token is None else tokenizer.vocabulary.texts[token]
