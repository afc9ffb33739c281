"""Builds a tokenizer from a Hugging Face folder: tokenizer.json and the small files beside it.

Called by the weight formats that read such folders. Every file may be hostile, so its size is
bounded and its values are checked; must not know weights. `tokenizer_config.json` names the tokens
that begin and end a text, `generation_config.json` and `config.json` may name further end tokens.
The chat template is in its own file or in `tokenizer_config.json`.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.pre_tokenizers import PreTokenizer

from jaxllama.errors import BadTokenizer
from jaxllama.formats import ModelText
from jaxllama.text.specials import Special, Specials
from jaxllama.text.token_ids import check_ids
from jaxllama.text.tokenizer import Tokenizer, TokenizerRules, find_end_ids, library_errors, run
from jaxllama.text.vocabulary import Spelling, TokenKind, Vocabulary, is_byte

MAX_TOKENIZER = 256 << 20  # bytes; the largest published ones take 35 MB
MAX_SIDE_FILE = 16 << 20
MAX_HOLES = 1 << 16  # ids without a token, to allow for vocabularies with gaps


def tokenizer_from_json(folder: Path) -> Tokenizer:
    """Build the tokenizer of a folder with tokenizer.json; raise BadTokenizer if that fails."""
    path = folder / "tokenizer.json"
    serialized = read_text(path, MAX_TOKENIZER)
    if serialized is None:
        raise BadTokenizer(f"{path} is missing; expected a folder with a tokenizer.json")
    encoder = load(serialized, path)
    with library_errors(f"{path} cannot be loaded"):
        check_ids(serialized, path, encoder)
    encoders = (encoder, load_later(serialized, path, encoder))
    vocabulary = read_vocabulary(encoder, path)
    said = SideFiles.in_folder(folder)
    begin, end = said.token("bos_token", vocabulary), said.token("eos_token", vocabulary)
    said.check_end(end, vocabulary)
    return Tokenizer(
        encoders,
        vocabulary,
        read_specials(encoder, path),
        TokenizerRules(
            begin_id=begin,
            end_ids=find_end_ids([end, *said.more_ends(vocabulary)], vocabulary),
            adds_begin=begin is not None and said.adds_begin(encoder, begin),
            drops_space=drops_space(state_of(encoder.decoder)),
        ),
        ModelText(
            template=said.template(),
            begin="" if begin is None else vocabulary.texts[begin],
            end="" if end is None else vocabulary.texts[end],
            name=folder.name,
            special=frozenset(
                text
                for text, kind in zip(vocabulary.texts, vocabulary.kinds, strict=True)
                if kind == TokenKind.CONTROL
            ),
        ),
    )


def load(serialized: str, path: Path) -> tokenizers.Tokenizer:
    """Load the library's tokenizer; it reads no special tokens and never truncates or pads."""
    with library_errors(f"{path} cannot be loaded"):
        encoder = tokenizers.Tokenizer.from_str(serialized)
        encoder.encode_special_tokens = True  # `Specials` has found them before the library runs
        encoder.no_truncation()
        encoder.no_padding()
    return encoder


def load_later(serialized: str, path: Path, encoder: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Return the encoder for text after a special token.

    It differs from `encoder` only if the first word of a text, and no other, gets a space in front.
    """
    state = state_of(encoder.pre_tokenizer)
    if not any(part.get("prepend_scheme") == "first" for part in parts_of(state)):
        return encoder
    later = load(serialized, path)
    for part in parts_of(state):
        if part.get("prepend_scheme") == "first":
            part["prepend_scheme"] = "never"
    with library_errors(f"{path}: the pre-tokenizer cannot be rebuilt"):
        changed: PreTokenizer = encoder.pre_tokenizer
        changed.__setstate__(json.dumps(state).encode())
        later.pre_tokenizer = changed
    return later


def read_vocabulary(encoder: tokenizers.Tokenizer, path: Path) -> Vocabulary:
    """Return texts and kinds of all tokens; refuse a vocabulary with more than MAX_HOLES gaps."""
    ids = encoder.get_vocab(with_added_tokens=True)
    size = 1 + max(ids.values(), default=-1)
    if not ids or size > len(ids) + MAX_HOLES:
        raise BadTokenizer(
            f"{path} has {len(ids)} tokens with ids up to {size - 1}; expected few gaps"
        )
    texts, kinds = [""] * size, bytearray([TokenKind.UNUSED]) * size
    decoder = list(parts_of(state_of(encoder.decoder)))
    falls_back = any(part.get("type") == "ByteFallback" for part in decoder)
    for text, token in ids.items():
        texts[token] = text
        kinds[token] = TokenKind.BYTE if falls_back and is_byte(text) else TokenKind.NORMAL
    for token, added in encoder.get_added_tokens_decoder().items():
        kinds[token] = TokenKind.CONTROL if added.special else TokenKind.USER_DEFINED
    return Vocabulary(texts, bytes(kinds), spelling_of(decoder, path))


def spelling_of(decoder: list[dict[str, Any]], path: Path) -> Spelling:
    """Return how tokens are written; the file's decoder shows it."""
    types = [str(part.get("type")) for part in decoder]
    if "ByteLevel" in types:
        return Spelling.BYTE_LEVEL
    if {"Metaspace", "ByteFallback"} & set(types):
        return Spelling.SENTENCEPIECE
    raise BadTokenizer(
        f"{path} decodes with {', '.join(types) or 'nothing'}; supported are ByteLevel, Metaspace "
        f"and ByteFallback"
    )


def read_specials(encoder: tokenizers.Tokenizer, path: Path) -> Specials:
    """Return the control tokens; the library itself reads other added tokens in any text."""
    control: dict[str, Special] = {}
    for token, added in encoder.get_added_tokens_decoder().items():
        if not added.special:
            continue
        if added.single_word:
            raise BadTokenizer(
                f"{path}: special token {added.content!r} is read as a whole word only, which is "
                f"not supported"
            )
        control[added.content] = Special(token, added.lstrip, added.rstrip)
    return Specials(control, {})


def drops_space(decoder: dict[str, Any]) -> bool:
    """Say whether decoding removes the space in front of a text."""
    return any(
        (part.get("type") == "Strip" and part.get("content") == " " and part.get("start", 0) > 0)
        or (part.get("type") == "Metaspace" and part.get("prepend_scheme") != "never")
        for part in parts_of(decoder)
    )


@dataclass(frozen=True)
class SideFiles:
    """The JSON files beside tokenizer.json: configurations that name special tokens."""

    folder: Path
    files: Mapping[str, Mapping[str, Any]]

    TOKENIZER = "tokenizer_config.json"
    SPECIALS = "special_tokens_map.json"
    GENERATION = "generation_config.json"
    MODEL = "config.json"

    @classmethod
    def in_folder(cls, folder: Path) -> "SideFiles":
        """Read the side files of a folder; an absent file counts as empty."""
        names = (cls.TOKENIZER, cls.SPECIALS, cls.GENERATION, cls.MODEL, "chat_template.json")
        return cls(folder, {name: read_object(folder / name) for name in names})

    def token(self, key: str, vocabulary: Vocabulary) -> int | None:
        """Return the id of `bos_token` or `eos_token`, from the first file that has the key.

        A null in tokenizer_config.json or special_tokens_map.json means that there is no such
        token.
        """
        for name in (self.TOKENIZER, self.SPECIALS):
            if key not in self.files[name]:
                continue
            value = self.files[name][key]
            text = value.get("content") if isinstance(value, dict) else value
            if text is None:
                return None
            if not isinstance(text, str):
                raise BadTokenizer(
                    f"{self.folder / name}: {key} is {value!r:.60}; expected the text of a token"
                )
            return vocabulary.texts.index(text) if text in vocabulary.texts else None
        for name in (self.GENERATION, self.MODEL):
            for token in self.ids(name, f"{key}_id", vocabulary):
                return token
        return None

    def more_ends(self, vocabulary: Vocabulary) -> Iterator[int]:
        """Yield the end tokens that other files give by id; newer models have several."""
        for name in (self.GENERATION, self.MODEL):
            yield from self.ids(name, "eos_token_id", vocabulary)

    @property
    def model_size(self) -> int | None:
        """Return the number of tokens of the model by config.json; None if it is not given."""
        size = self.files[self.MODEL].get("vocab_size")
        return size if isinstance(size, int) and not isinstance(size, bool) else None

    def check_end(self, end: int | None, vocabulary: Vocabulary) -> None:
        """Raise BadTokenizer if the model cannot produce the end token."""
        size = self.model_size
        if end is not None and size is not None and end >= size:
            raise BadTokenizer(
                f"{self.folder / 'tokenizer.json'}: end token {vocabulary.texts[end]!r:.60} has id "
                f"{end}; by {self.MODEL} the model has tokens 0 to {size - 1}, so that no answer "
                f"could end with it (use the tokenizer of the same model)"
            )

    def ids(self, name: str, key: str, vocabulary: Vocabulary) -> list[int]:
        """Return the ids of a field, one or a list; raise BadTokenizer if the model lacks an id.

        Omits ids that exist only in the model's padded embedding table: they have no text.
        """
        size = max(len(vocabulary), self.model_size or 0)
        value = self.files[name].get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        for token in ids:
            if isinstance(token, bool) or not isinstance(token, int):
                raise BadTokenizer(
                    f"{self.folder / name}: {key} is {value!r:.60}; expected token ids"
                )
            if not 0 <= token < size:
                raise BadTokenizer(
                    f"{self.folder / name}: {key} names token {token}; expected ids from 0 to "
                    f"{size - 1}, those of the vocabulary (use the file of the same model)"
                )
        return [token for token in ids if token < len(vocabulary)]

    def adds_begin(self, encoder: tokenizers.Tokenizer, begin: int) -> bool:
        """Say whether prompts start with the begin token.

        `add_bos_token` decides; without it, the result of the post-processor does.
        """
        value = self.files[self.TOKENIZER].get("add_bos_token")
        if isinstance(value, bool):
            return value
        with library_errors(f"{self.folder}: the post-processor fails"):
            processed = encoder.encode("a", add_special_tokens=True).ids
        return processed[:1] == [begin] and run(encoder, "a")[:1] != [begin]

    def template(self) -> str | None:
        """Return the chat template, from its own file or one of the JSON files; None if absent."""
        own = read_text(self.folder / "chat_template.jinja", MAX_SIDE_FILE)
        if own is not None:
            return own
        for name in (self.TOKENIZER, "chat_template.json"):
            value = self.files[name].get("chat_template")
            if isinstance(value, list):  # several, by name
                value = default_template(value)
            if not isinstance(value, str | None):
                raise BadTokenizer(
                    f"{self.folder / name}: chat_template is {value!r:.60}; expected text, or a "
                    f"list with one called 'default'"
                )
            if value is not None:
                return value
        return None


def default_template(named: list[Any]) -> Any:
    """Return the template called `default`; return the list itself if there is none."""
    for entry in named:
        if isinstance(entry, dict) and entry.get("name") == "default":
            return entry.get("template")
    return named


def state_of(part: Any) -> dict[str, Any]:
    """Return a part of the library's tokenizer as in tokenizer.json; {} if it is absent."""
    return {} if part is None else json.loads(part.__getstate__())


def parts_of(state: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the part itself, or the parts of a sequence, at any depth."""
    if state.get("type") != "Sequence":
        yield state
        return
    for key in ("decoders", "pretokenizers", "normalizers"):
        for part in state.get(key, ()):
            yield from parts_of(part)


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; {} if the file is absent."""
    text = read_text(path, MAX_SIDE_FILE)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadTokenizer(f"{path} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadTokenizer(f"{path} holds a {type(value).__name__}; expected an object")
    return value


def read_text(path: Path, longest: int) -> str | None:
    """Read a text file of at most `longest` bytes; None if it is absent."""
    if not path.exists():
        return None
    if not path.is_file():  # reading a pipe or a device may never end
        raise BadTokenizer(f"{path} is no regular file")
    try:
        with path.open("rb") as file:
            raw = file.read(longest + 1)
        if len(raw) > longest:
            raise BadTokenizer(f"{path} has more than {longest} bytes, the most that is read")
        return raw.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise BadTokenizer(f"{path} cannot be read: {error}") from error
