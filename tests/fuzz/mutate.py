"""Seeded mutations of files: bits, numbers, cuts and copies, as fuzzers make them.

Called where atheris is not installed. Knows no file format.
"""

import struct
from random import Random

NUMBERS = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**64 - 1,
)
WORDS = (
    b"..",
    b"/",
    b"os\nsystem\n",
    b"R",
    b"(",
    b"]",
    b'"',
    b"{",
    b"-1",
    b"1e999",
    b"null",
    b"\0",
)


def mutated(sound: list[bytes], random: Random) -> bytes:
    """One of the sound files with one to four changes."""
    raw = random.choice(sound)
    for _ in range(random.randint(1, 4)):
        raw = random.choice(CHANGES)(raw, sound, random)
    return raw


def place(raw: bytes, random: Random) -> int:
    """A place in a file; half of them near its ends, where headers are."""
    if not raw:
        return 0
    if random.random() < 0.5:
        near = random.randrange(min(len(raw), 512))
        return near if random.random() < 0.6 else len(raw) - 1 - near
    return random.randrange(len(raw))


def flip(raw: bytes, _sound: list[bytes], random: Random) -> bytes:
    """Turn one bit."""
    at = place(raw, random)
    return raw[:at] + bytes([raw[at] ^ 1 << random.randrange(8)]) + raw[at + 1 :] if raw else raw


def number(raw: bytes, _sound: list[bytes], random: Random) -> bytes:
    """Write a number at a limit, of one to eight bytes."""
    at = place(raw, random)
    size = random.choice((1, 2, 4, 8))
    value = struct.pack("<Q", random.choice(NUMBERS))[:size]
    return raw[:at] + value + raw[at + size :]


def digits(raw: bytes, _sound: list[bytes], random: Random) -> bytes:
    """Replace a digit of text by another number."""
    ats = [at for at, byte in enumerate(raw[:4096]) if 48 <= byte < 58]
    if not ats:
        return raw
    at = random.choice(ats)
    return raw[:at] + str(random.choice((-1, 0, *NUMBERS))).encode() + raw[at + 1 :]


def insert(raw: bytes, _sound: list[bytes], random: Random) -> bytes:
    """Insert a word of some format."""
    at = place(raw, random)
    return raw[:at] + random.choice(WORDS) * random.choice((1, 1, 3, 1000)) + raw[at:]


def cut(raw: bytes, _sound: list[bytes], random: Random) -> bytes:
    """Leave a stretch out."""
    at = place(raw, random)
    return raw[:at] + raw[at + random.choice((1, 4, 100)) :]


def truncate(raw: bytes, _sound: list[bytes], random: Random) -> bytes:
    """Leave the end out."""
    return raw[: place(raw, random)]


def copy(raw: bytes, sound: list[bytes], random: Random) -> bytes:
    """Insert a stretch of one of the files, or replace as many bytes by it."""
    other = random.choice(sound)
    start = place(other, random)
    part = other[start : start + random.choice((1, 8, 64, 512))]
    at = place(raw, random)
    return raw[:at] + part + raw[at + random.choice((0, len(part))) :]


CHANGES = (flip, flip, number, number, digits, insert, cut, truncate, copy)
