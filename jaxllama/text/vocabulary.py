"""The vocabulary: text, kind and bytes of every token.

Built by the readers of tokenizer files, used by `Tokenizer`. Knows no encoding and no model.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType


class TokenKind(IntEnum):
    """The purpose of a token; GGUF and SentencePiece use the same numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4  # read in any text, whole
    UNUSED = 5
    BYTE = 6


class Spelling(IntEnum):
    """The way in which the bytes of a token are written as text."""

    BYTE_LEVEL = 1  # GPT-2: one printable character for each byte
    SENTENCEPIECE = 2  # text, a space is U+2581, a lone byte is <0xNN>


SPACE = "\u2581"


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a model, by id."""

    texts: Sequence[str]  # "" where the vocabulary has a hole
    kinds: bytes  # a TokenKind per token
    spelling: Spelling

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the texts, kinds and spelling of all tokens, in hexadecimal.

        The spelling is the way in which the texts encode bytes.
        """
        parts = ("\0".join(self.texts).encode("utf-8", "surrogatepass"), self.kinds)
        return hashlib.sha256(b"\0".join((*parts, bytes((self.spelling,))))).hexdigest()

    def piece(self, token: int, *, special: bool) -> bytes:
        """Return the bytes of one token; b"" for a control or unknown token unless `special`."""
        text, kind = self.texts[token], self.kinds[token]
        if kind in (TokenKind.CONTROL, TokenKind.UNKNOWN):
            return text.encode() if special else b""
        if kind == TokenKind.BYTE:
            return bytes((byte_value(text),))
        if self.spelling == Spelling.SENTENCEPIECE:
            return text.replace(SPACE, " ").encode()
        if kind == TokenKind.USER_DEFINED:
            return text.encode()
        return byte_level_decode(text)


def is_byte(text: str) -> bool:
    """Say whether `text` is a SentencePiece byte token such as `<0x0A>`."""
    if len(text) != len("<0x0A>") or not text.startswith("<0x") or text[-1] != ">":
        return False
    return all(digit in "0123456789ABCDEFabcdef" for digit in text[3:5])


def byte_value(text: str) -> int:
    """Return the value, 0 to 255, of a byte token such as `<0x0A>`."""
    return int(text[3:5], 16)


def byte_level_alphabet() -> Mapping[str, int]:
    """Map each character of byte-level tokens to its byte.

    Printable Latin-1 characters stand for themselves; the others are numbered from U+0100 on.
    """
    printable = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
    hidden = sorted(set(range(0x100)) - set(printable))
    alphabet = {chr(byte): byte for byte in printable}
    alphabet |= {chr(0x100 + place): byte for place, byte in enumerate(hidden)}
    return MappingProxyType(alphabet)


BYTE_LEVEL = byte_level_alphabet()
BYTE_LEVEL_CHARACTERS = sorted(BYTE_LEVEL, key=BYTE_LEVEL.__getitem__)  # by byte


def byte_level_encode(raw: bytes) -> str:
    """Return the text of the byte-level token with these bytes."""
    return "".join([BYTE_LEVEL_CHARACTERS[byte] for byte in raw])


def byte_level_decode(text: str) -> bytes:
    """Return the bytes that the text of a byte-level token stands for.

    A text with a character that stands for no byte gives its UTF-8 bytes.
    """
    try:
        return bytes([BYTE_LEVEL[character] for character in text])
    except KeyError:
        return text.encode()
