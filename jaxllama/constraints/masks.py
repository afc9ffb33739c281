"""Masks: which tokens may come next, one bit each, lowest first, in whole words of 32 tokens."""

from collections.abc import Iterable


def every_bit(vocab: int) -> bytes:
    """Return a mask of `vocab` tokens in which every token is allowed."""
    return ((1 << vocab) - 1).to_bytes(-(-vocab // 32) * 4, "little")


def only_bit(vocab: int, token: int) -> bytes:
    """Return a mask of `vocab` tokens in which only `token` is allowed."""
    return (1 << token).to_bytes(-(-vocab // 32) * 4, "little")


def without_bits(mask: bytes, tokens: Iterable[int]) -> bytes:
    """Return a copy of a token mask with the bits of `tokens` cleared."""
    shown = bytearray(mask)
    for token in tokens:
        shown[token // 8] &= ~(1 << token % 8)
    return bytes(shown)
