"""Cuts: the positions where a long text can be split so that its pieces give the same tokens.

Used by `Tokenizer`. The tokenizers library needs some 400 bytes of memory for each character of
one call, so a long text is tokenized in pieces. Knows strings and encoders; must not know models.

A cut is sound if no token of the vocabulary spans it, and if the rules that split text into words
always split there, independent of the following text. The first condition is checked in the
vocabulary, the second one with some hundred probe texts.
"""

import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from jaxllama.errors import InvalidParameter

PIECE = 16 << 10  # characters of a piece, which ends at the next cut after them
LONGEST_UNCUT = 256 << 10  # characters without a sound cut
PROBES = 150
ATOMS = (
    *("the", "It's", "don't", "A", "ß", "é", "e\u0301", "漢字", "слово", "🙂", "12", "3456"),
    *(" ", "  ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "!", "...", "_", "-", "'", "<", "|"),
)

# Encodes a piece of text; True means that the piece follows other text.
EncodeStretch = Callable[[str, bool], list[int]]


@dataclass(frozen=True)
class CutKind:
    """One kind of position at which a text may be cut, such as between words."""

    place: str  # a pattern that matches at the position, zero characters long
    crossed: re.Pattern[bytes]  # matches in the bytes of a token that could span the position
    left: tuple[str, ...]  # texts before the position in a probe
    right: tuple[str, ...]  # texts after the position in a probe


LETTER = r"[^\W\d_]"
BETWEEN_WORDS = CutKind(
    rf"(?<={LETTER})(?= {LETTER})", re.compile(rb"[A-Za-z\x80-\xff] "), ("x", "é"), (" y", " Ж")
)
AFTER_LINE = CutKind(
    rf"(?<={LETTER}\n)(?={LETTER})", re.compile(rb"\n[A-Za-z\x80-\xff]"), ("x\n", "é\n"), ("y", "Ж")
)


@dataclass(frozen=True)
class Cuts:
    """The positions at which a tokenizer's long texts can be cut without changing tokens."""

    place: re.Pattern[str] | None = None  # None: no cut is sound
    drops_space: bool = False  # the encoder itself adds a space before each piece

    def pieces(self, text: str) -> Iterator[str]:
        """Yield `text` in pieces that together have the same tokens as the whole text.

        Raise InvalidParameter if LONGEST_UNCUT characters have no position for a cut.
        """
        at = 0
        while len(text) - at > PIECE:
            end = self._next(text, at)
            if end is None:
                break
            yield self._as_given(text[at:end], at)
            at = end
        if len(text) - at > LONGEST_UNCUT:
            raise InvalidParameter(
                f"text has {len(text) - at} characters from character {at} on, without two words "
                f"that a space or a line break divides in the first {LONGEST_UNCUT}; expected "
                f"text with words, or at most {LONGEST_UNCUT} characters"
            )
        yield self._as_given(text[at:], at)

    def _next(self, text: str, at: int) -> int | None:
        """Return the index of the first position after `at + PIECE` where `text` can be cut.

        None if there is none before `at + LONGEST_UNCUT`.
        """
        if self.place is None:
            return None
        found = self.place.search(text, at + PIECE, at + LONGEST_UNCUT)
        return found.start() if found else None

    def _as_given(self, piece: str, at: int) -> str:
        return piece.removeprefix(" ") if at and self.drops_space else piece


def find_cuts(encode: EncodeStretch, tokens: Iterable[bytes]) -> Cuts:
    """Return the rule for where a long text can be cut without changing its tokens.

    `encode(text, follows)` returns the token ids of `text`; `follows` says whether the text
    continues another one. `tokens` are the bytes of all tokens.
    """
    whole = b"\0".join(tokens)
    for drops_space in (False, True):
        kinds = (BETWEEN_WORDS,) if drops_space else (BETWEEN_WORDS, AFTER_LINE)
        sound = [
            kind.place
            for kind in kinds
            if not kind.crossed.search(whole) and is_sound(kind, encode, drops_space=drops_space)
        ]
        if sound:
            return Cuts(re.compile("|".join(sound)), drops_space)
    return Cuts()


def is_sound(kind: CutKind, encode: EncodeStretch, *, drops_space: bool) -> bool:
    """Say whether cutting random probe texts at positions of `kind` keeps their tokens.

    `encode(text, follows)` returns the token ids of `text`; `follows` says whether the text
    continues another one. With `drops_space`, the space after a cut is removed, since the encoder
    adds it again.
    """
    rng = random.Random(0)
    for probe in range(PROBES):
        left = "".join(rng.choices(ATOMS, k=rng.randint(0, 9))) + rng.choice(kind.left)
        right = rng.choice(kind.right) + "".join(rng.choices(ATOMS, k=rng.randint(0, 9)))
        follows = bool(probe % 2)
        rest = right.removeprefix(" ") if drops_space else right
        if encode(left + right, follows) != encode(left, follows) + encode(rest, True):
            return False
    return True
