"""Character maps: the normalization rules in a SentencePiece file, compiled to a double-array trie.

Built by `from_sentencepiece.py`, asked by the normalizer. The map has the size of the trie, the
trie (32-bit units) and the texts that replace characters, each ended by a zero byte. The trie
shares its ends, so that it stands for some 200,000 rules: they are looked up, never listed. A
lookup is bounded whatever the trie holds; a rule that points outside of the map is no rule.
"""

import re
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from jaxllama.errors import BadTokenizer

MAX_CHARSMAP = 2 << 20  # bytes; the largest published one takes 0.3 MB
MAX_SOURCE = 32  # characters of a rule; NFKC needs 4
MAX_TARGET = 1024  # bytes that replace it; NFKC needs 33
MAX_CODE = 0x10FFFF
MAX_STARTS = 1 << 15  # different beginnings of rules
SIZE_BYTES, UNIT_BYTES = 4, 4
LABEL, FAR, HAS_LEAF, VALUE = 0x8000_00FF, 0x200, 0x100, 0x7FFF_FFFF  # bits of a unit
ASCII = range(1, 0x80)
LEADS = {
    2: range(0xC2, 0xE0),
    3: range(0xE0, 0xF0),
    4: range(0xF0, 0xF5),
}  # by bytes of a character
FIRST = np.array([*ASCII, *range(0xC2, 0xF5)])
NEXT = np.arange(0x80, 0xC0)


class CharacterMap:
    """Rules that replace texts of a few characters by other texts; the longest rule applies."""

    def __init__(self, raw: bytes, where: str) -> None:
        """Read the map from `raw`, its bytes as stored in a SentencePiece file.

        Raise BadTokenizer, naming the file `where`, if the map is damaged.
        """
        size = int.from_bytes(raw[:SIZE_BYTES], "little")
        if not SIZE_BYTES + size < len(raw) <= MAX_CHARSMAP or size % UNIT_BYTES or not size:
            raise damaged(where, f"{len(raw)} bytes hold a trie of {size}")
        units = np.frombuffer(raw, "<u4", size // UNIT_BYTES, SIZE_BYTES).astype(np.int64)
        self._units: list[int] = units.tolist()
        self._texts = raw[SIZE_BYTES + size :]
        try:
            self._texts.decode()
        except UnicodeDecodeError as error:
            raise damaged(where, f"its texts are no UTF-8: {error.reason}") from error
        self.pattern = starts_of(units, where)  # matches before every text that has a rule

    def rule_at(self, text: str, at: int) -> tuple[int, str] | None:
        """Return the number of characters that a rule replaces, and the text that replaces them.

        The rule is the longest one that matches at index `at` of `text`; None if none matches.
        """
        raw = text[at : at + MAX_SOURCE].encode()
        units, found = self._units, None
        place = offset(units[0])
        for length, byte in enumerate(raw, 1):
            place ^= byte
            if place >= len(units) or units[place] & LABEL != byte:
                break
            unit = units[place]
            place ^= offset(unit)
            if unit & HAS_LEAF and place < len(units):
                found = length, units[place] & VALUE
        if found is None or found[1] >= len(self._texts) or is_inside_character(raw, found[0]):
            return None
        target = self._texts[found[1] : found[1] + MAX_TARGET].partition(b"\0")[0]
        return len(raw[: found[0]].decode()), target.decode("utf-8", "replace")


def starts_of(units: NDArray[np.int64], where: str) -> str:
    """Return a regular expression for the places in a text where a rule may apply.

    The expression matches a character that has a rule of its own. It also matches a character that
    only begins longer rules, if the next character may continue such a rule. `units` are the 32-bit
    units of the rules' double-array trie. Errors name the file `where`.
    """
    alone, begin = set[int](), set[int]()  # code points
    seconds: set[int] = set()
    root = np.array([offset(int(units[0]))])
    for length, leads in {1: ASCII, **LEADS}.items():
        codes, places, is_end = np.zeros(1, np.int64), root, np.zeros(1, bool)
        for depth in range(length):
            labels = NEXT if depth else np.array(leads)
            parents, found, places, is_end = step(units, places, labels)
            if len(found) > MAX_STARTS:
                raise damaged(where, f"more than {MAX_STARTS} characters begin rules")
            bits = found & (0x3F if depth else 0x7F >> length if length > 1 else 0x7F)
            codes = codes[parents] << 6 | bits
        alone.update(codes[is_end].tolist())
        begin.update(codes[~is_end].tolist())
        seconds.update(step(units, places[~is_end], FIRST)[1].tolist())
    return f"{one_of(alone)}|{one_of(begin)}(?={one_of(codes_led_by(seconds))})"


def codes_led_by(firsts: set[int]) -> Iterator[int]:
    """Yield the code points of all characters whose first UTF-8 byte is in `firsts`."""
    for first in firsts:
        length = next((size for size, leads in LEADS.items() if first in leads), 1)
        if length == 1:
            yield first
        else:
            low = (first & (0x7F >> length)) << 6 * (length - 1)
            yield from range(low, min(low + (1 << 6 * (length - 1)), MAX_CODE + 1))


def step(
    units: NDArray[np.int64], places: NDArray[np.int64], labels: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Return the children of some trie nodes as four arrays: parent, label, child, has a rule.

    A node is given by a number: the number XOR a label (a byte) is the index in `units` of the
    node's child with this label. `places` has the numbers of the parents. The result has indices
    into `places` for parents, and numbers for children; it has children with one of `labels` only.
    """
    reached = places[:, None] ^ labels
    inside = reached < len(units)
    there = np.where(inside, units[np.where(inside, reached, 0)], -1)
    parents, columns = np.nonzero((there & LABEL) == labels)
    chosen = there[parents, columns]
    shifts = (chosen & FAR) >> 6
    children = reached[parents, columns] ^ ((chosen >> 10) << shifts)
    return parents, labels[columns], children, (chosen & HAS_LEAF) != 0


def offset(unit: int) -> int:
    """Return the offset stored in `unit`, a unit of a double-array trie.

    The unit's index XOR this offset XOR a byte is the index of its child for that byte.
    """
    return (unit >> 10) << ((unit & FAR) >> 6)


def is_inside_character(raw: bytes, at: int) -> bool:
    """Say whether byte `at` of UTF-8 text continues a character that starts before it."""
    return at < len(raw) and 0x80 <= raw[at] < 0xC0  # noqa: PLR2004


def one_of(codes: Iterable[int]) -> str:
    """Return a regular expression that matches one character with one of these code points.

    Neighbours are written as ranges; without code points, the expression matches nothing.
    """
    ranges: list[list[int]] = []
    for code in sorted(each for each in codes if each <= MAX_CODE):
        if ranges and code == ranges[-1][1] + 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    if not ranges:
        return r"(?!)"
    return "[" + "".join(f"{re.escape(chr(a))}-{re.escape(chr(b))}" for a, b in ranges) + "]"


def damaged(where: str, why: str) -> BadTokenizer:
    """Return the error for a character map in file `where` that cannot be read because of `why`."""
    return BadTokenizer(
        f"{where}: the map of normalized characters is damaged: {why} (fetch the file again)"
    )
