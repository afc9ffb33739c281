"""The vocabulary: every token's text and kind, and the bytes it stands for.

Built by the readers of tokenizer files, used by `Tokenizer`. Knows no encoding and no model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType


class Kind(IntEnum):
    """What a token is for; the numbers are those of GGUF and SentencePiece."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4  # read in any text, whole
    UNUSED = 5
    BYTE = 6


class Spelling(IntEnum):
    """How the bytes of a token are written down as text."""

    BYTE_LEVEL = 1  # GPT-2: one printable character for each byte
    SENTENCEPIECE = 2  # text, a space is U+2581, a lone byte is <0xNN>


SPACE = "\u2581"


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a model, by id."""

    texts: Sequence[str]  # "" where the vocabulary has a hole
    kinds: bytes  # a Kind per token
    spelling: Spelling

    def __len__(self) -> int:
        return len(self.texts)

    def piece(self, token: int, *, special: bool) -> bytes:
        """The bytes of one token; control and unknown tokens have none unless `special`."""
        text, kind = self.texts[token], self.kinds[token]
        if kind in (Kind.CONTROL, Kind.UNKNOWN):
            return text.encode() if special else b""
        if kind == Kind.BYTE:
            return bytes((byte_value(text),))
        if self.spelling == Spelling.SENTENCEPIECE:
            return text.replace(SPACE, " ").encode()
        if kind == Kind.USER_DEFINED:
            return text.encode()
        return byte_level_decode(text)


def is_byte(text: str) -> bool:
    """Whether `text` is a SentencePiece byte token, `<0x0A>`."""
    if len(text) != len("<0x0A>") or not text.startswith("<0x") or text[-1] != ">":
        return False
    return all(digit in "0123456789ABCDEFabcdef" for digit in text[3:5])


def byte_value(text: str) -> int:
    """The byte that `<0x0A>` stands for."""
    return int(text[3:5], 16)


def byte_level_alphabet() -> Mapping[str, int]:
    """The byte behind each character of a byte-level token.

    Printable Latin-1 characters stand for themselves; the others are numbered from U+0100 on.
    """
    printable = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
    hidden = sorted(set(range(0x100)) - set(printable))
    alphabet = {chr(byte): byte for byte in printable}
    alphabet |= {chr(0x100 + place): byte for place, byte in enumerate(hidden)}
    return MappingProxyType(alphabet)


BYTE_LEVEL = byte_level_alphabet()


def byte_level_decode(text: str) -> bytes:
    """The bytes of a byte-level token; a text outside the alphabet stands for itself."""
    try:
        return bytes([BYTE_LEVEL[character] for character in text])
    except KeyError:
        return text.encode()
