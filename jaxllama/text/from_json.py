"""Builds a tokenizer from a folder's tokenizer.json, which the tokenizers library reads itself.

Called by `from_folder.py`. The file may be hostile, so its size is bounded and its values are
checked; must not know weights. The files beside it say what begins and ends a text
(`side_files.py`).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.pre_tokenizers import PreTokenizer

from jaxllama.errors import BadTokenizer
from jaxllama.formats import ModelText
from jaxllama.text.files import read_text
from jaxllama.text.side_files import SideFiles
from jaxllama.text.specials import Special, Specials
from jaxllama.text.token_ids import check_ids
from jaxllama.text.tokenizer import Tokenizer, TokenizerRules, find_end_ids, library_errors
from jaxllama.text.vocabulary import Spelling, TokenKind, Vocabulary, is_byte

MAX_TOKENIZER = 256 << 20  # bytes; the largest published ones take 35 MB
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
    """Build the tokenizers library's object from the text of a tokenizer.json; errors name `path`.

    The object reads special tokens as ordinary text and never truncates or pads.
    """
    with library_errors(f"{path} cannot be loaded"):
        encoder = tokenizers.Tokenizer.from_str(serialized)
        encoder.encode_special_tokens = True  # `Specials` has found them before the library runs
        encoder.no_truncation()
        encoder.no_padding()
    return encoder


def load_later(serialized: str, path: Path, encoder: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Return the encoder for text that follows other text or a special token.

    It is `encoder` itself, unless `encoder` puts a space before the first word of a text and before
    no other word: then it is a copy, built from the tokenizer.json text `serialized`, that puts
    none. Errors name `path`.
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
    """Return the texts and kinds of all tokens of `encoder`.

    Raise BadTokenizer, naming `path`, if the ids have more than MAX_HOLES gaps, or the decoder is
    not supported.
    """
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
    """Return how the texts of tokens encode bytes, by the types of the decoder's parts.

    Raise BadTokenizer, naming `path`, for a decoder that is not supported.
    """
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
    """Return the control tokens of `encoder`, an object of the tokenizers library.

    Other added tokens are left out: the library itself finds them. Raise BadTokenizer, naming
    `path`, for a control token with the flag `single_word`, which is not supported.
    """
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
    """Say whether `decoder`, an object of tokenizer.json, removes the space in front of a text."""
    return any(
        (part.get("type") == "Strip" and part.get("content") == " " and part.get("start", 0) > 0)
        or (part.get("type") == "Metaspace" and part.get("prepend_scheme") != "never")
        for part in parts_of(decoder)
    )


def state_of(part: Any) -> dict[str, Any]:
    """Return a component of the library's tokenizer, `part`, as tokenizer.json has it.

    {} for None.
    """
    return {} if part is None else json.loads(part.__getstate__())


def parts_of(state: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield `state`, a component as in tokenizer.json; for a Sequence, yield its parts instead.

    Sequences may be nested.
    """
    if state.get("type") != "Sequence":
        yield state
        return
    for key in ("decoders", "pretokenizers", "normalizers"):
        for part in state.get(key, ()):
            yield from parts_of(part)
