"""GGUF tensor types: their block sizes, and blocks to arrays.

Called by the GGUF reader with the raw bytes of one tensor. Kinds of four to eight bits become
Packed with the very values of the file, plain floats stay as they are, the rest is dequantised by
the `gguf` library. Knows nothing of names and headers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gguf
import ml_dtypes
import numpy as np
from jaxtyping import Float, Int8, UInt8

from jaxllama.kernels.packed import Bits, Packed

GROUP = 32  # weights that share a scale in nearly every packed kind
HALF_GROUP = 16  # in Q6_K
LARGEST_EIGHTH = 8188.0  # times eight it is still a finite float16


@dataclass(frozen=True)
class Kind:
    """A tensor type: `block` weights are kept in `size` bytes."""

    name: str
    block: int
    size: int


KINDS: dict[int, Kind] = {
    0: Kind("F32", 1, 4),
    1: Kind("F16", 1, 2),
    2: Kind("Q4_0", 32, 18),
    3: Kind("Q4_1", 32, 20),
    6: Kind("Q5_0", 32, 22),
    7: Kind("Q5_1", 32, 24),
    8: Kind("Q8_0", 32, 34),
    10: Kind("Q2_K", 256, 84),
    11: Kind("Q3_K", 256, 110),
    12: Kind("Q4_K", 256, 144),
    13: Kind("Q5_K", 256, 176),
    14: Kind("Q6_K", 256, 210),
    30: Kind("BF16", 1, 2),
}
FLOATS: dict[str, Any] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": ml_dtypes.bfloat16,
}


def decode(kind: Kind, raw: UInt8[np.ndarray, " B"], shape: tuple[int, ...]) -> np.ndarray | Packed:
    """The tensor whose rows lie in `raw` one after the other."""
    if kind.name in FLOATS:
        return raw.view(FLOATS[kind.name]).reshape(shape)
    if kind.name in PACKERS and len(shape) == 2:  # noqa: PLR2004 - a matrix
        return PACKERS[kind.name](raw.reshape(shape[0], -1, kind.size))
    rows = raw.reshape(*shape[:-1], shape[-1] // kind.block * kind.size)
    with np.errstate(all="ignore"):  # damaged scales may be NaN; the engine checks for that
        return gguf.dequantize(rows, gguf.GGMLQuantizationType[kind.name])


def kind_name(number: int) -> str:
    """What ggml calls a type we may not know."""
    try:
        return gguf.GGMLQuantizationType(number).name
    except ValueError:
        return f"number {number}"


def pack_q8_0(blocks: UInt8[np.ndarray, "O B 34"]) -> Packed:
    """One float16 scale, 32 signed codes."""
    return packed(8, blocks[..., 2:].view(np.int8), halves(blocks, 0), None)


def pack_q4_0(blocks: UInt8[np.ndarray, "O B 18"]) -> Packed:
    """One float16 scale, 32 codes around 8: the minimum is -8 scales, an exact float16."""
    scales = halves(blocks, 0)
    if not (np.abs(scales) <= LARGEST_EIGHTH).all():
        scales = scales.astype(np.float32)
    return packed(4, pair_neighbours(blocks[..., None, 2:]), scales, scales * -8)


def pack_q4_1(blocks: UInt8[np.ndarray, "O B 20"]) -> Packed:
    """A float16 scale, a float16 minimum, 32 codes."""
    return packed(4, pair_neighbours(blocks[..., None, 4:]), halves(blocks, 0), halves(blocks, 2))


def pack_q4_k(blocks: UInt8[np.ndarray, "O B 144"]) -> Packed:
    """Eight groups of 32 codes, with six-bit scales and minima of two float16 factors."""
    with np.errstate(all="ignore"):  # damaged factors may be NaN; the engine checks for that
        scales, minima = six_bits(blocks[..., 4:16])
        scales *= halves(blocks, 0).astype(np.float32)[..., None]
        minima *= -halves(blocks, 2).astype(np.float32)[..., None]
    codes = pair_neighbours(blocks[..., 16:].reshape(*blocks.shape[:2], 4, 32))
    return packed(4, codes, scales, minima)


def pack_q5_0(blocks: UInt8[np.ndarray, "O B 22"]) -> Packed:
    """One float16 scale, the fifth bits of 32 codes around 16, and their nibbles."""
    return packed(5, five_bits(blocks[..., 2:]) - 16, halves(blocks, 0), None)


def pack_q5_1(blocks: UInt8[np.ndarray, "O B 24"]) -> Packed:
    """A float16 scale, a float16 minimum, the fifth bits of 32 codes, and their nibbles."""
    return packed(5, five_bits(blocks[..., 4:]), halves(blocks, 0), halves(blocks, 2))


def pack_q5_k(blocks: UInt8[np.ndarray, "O B 176"]) -> Packed:
    """As Q4_K, and fifth bits: bit g of byte l belongs to weight l of group g."""
    with np.errstate(all="ignore"):  # damaged factors may be NaN; the engine checks for that
        scales, minima = six_bits(blocks[..., 4:16])
        scales *= halves(blocks, 0).astype(np.float32)[..., None]
        minima *= -halves(blocks, 2).astype(np.float32)[..., None]
    groups = np.arange(8, dtype=np.uint8)[:, None]
    high = (blocks[..., None, 16:48] >> groups & 1) << 4
    pairs = blocks[..., 48:].reshape(*blocks.shape[:2], 4, 1, 32)
    low = np.concatenate([pairs & 15, pairs >> 4], axis=-2).reshape(high.shape)
    return packed(5, (low | high).view(np.int8), scales, minima)


def pack_q6_k(blocks: UInt8[np.ndarray, "O B 210"]) -> Packed:
    """Sixteen groups of 16 codes around 32, with signed eight-bit scales of one float16 factor.

    Of each 128 weights, quarter q takes its nibbles from the low (q = 0, 1) or high (2, 3) half of
    bytes 32 * (q % 2) and on, and its high bits from bits 2q and 2q + 1 of the 32 bytes they share.
    """
    outer = blocks.shape[:2]
    with np.errstate(all="ignore"):
        factor = halves(blocks, 208).astype(np.float32)
        scales = blocks[..., 192:208].view(np.int8) * factor[..., None]
    nibbles = blocks[..., :128].reshape(*outer, 2, 1, 2, 32)
    low = np.concatenate([nibbles & 15, nibbles >> 4], axis=-3).reshape(*outer, 2, 4, 32)
    quarters = np.arange(4, dtype=np.uint8)[:, None]
    high = blocks[..., 128:192].reshape(*outer, 2, 1, 32) >> 2 * quarters & 3
    codes = (low | high << 4).view(np.int8) - np.int8(32)
    return packed(6, codes, scales, None, group=HALF_GROUP)


PACKERS: dict[str, Callable[[UInt8[np.ndarray, "O B Z"]], Packed]] = {
    "Q8_0": pack_q8_0,
    "Q4_0": pack_q4_0,
    "Q4_1": pack_q4_1,
    "Q5_0": pack_q5_0,
    "Q5_1": pack_q5_1,
    "Q4_K": pack_q4_k,
    "Q5_K": pack_q5_k,
    "Q6_K": pack_q6_k,
}


def packed(
    bits: Bits,
    codes: np.ndarray,
    scales: np.ndarray,
    minima: np.ndarray | None,
    *,
    group: int = GROUP,
) -> Packed:
    """A Packed matrix from parts whose first axis is the output; inner axes are joined."""
    out = len(codes)
    parts = {"codes": codes, "scales": scales, "minima": minima}
    flat: Any = {
        name: None if part is None else np.ascontiguousarray(part.reshape(out, -1))
        for name, part in parts.items()
    }
    return Packed(**flat, bits=bits, group=group)


def halves(blocks: UInt8[np.ndarray, "O B Z"], at: int) -> Float[np.ndarray, "O B"]:
    """The float16 at byte `at` of every block."""
    return blocks[..., at : at + 2].view("<f2")[..., 0]


def five_bits(stored: UInt8[np.ndarray, "O B 20"]) -> Int8[np.ndarray, "O B 32"]:
    """Codes whose fifth bits are in four bytes; sixteen hold a nibble of code j and of j + 16."""
    shifts = np.arange(8, dtype=np.uint8)
    high = (stored[..., :4, None] >> shifts & 1).reshape(*stored.shape[:2], 32) << 4
    low = np.concatenate([stored[..., 4:] & 15, stored[..., 4:] >> 4], axis=-1)
    return (low | high).view(np.int8)


def pair_neighbours(stored: UInt8[np.ndarray, "O B C Z"]) -> UInt8[np.ndarray, "O B C 2 Z/2"]:
    """Nibbles regrouped so that a byte holds neighbours.

    Of Z bytes, byte j holds weights j and j + Z; ours holds 2j in its low and 2j + 1 in its high
    nibble. Two bytes are moved at a time, and eight put in place: NumPy is slow at short rows.
    """
    *outer, count = stored.shape
    pairs = np.ascontiguousarray(stored).reshape(-1).view("<u2")
    low = ((pairs & 0x0F) | ((pairs >> 4) & 0xF0)).astype(np.uint8)
    high = (((pairs >> 4) & 0x0F) | ((pairs >> 8) & 0xF0)).astype(np.uint8)
    moved = np.empty((*outer, 2, count // 16), np.uint64)
    moved[..., 0, :] = low.view(np.uint64).reshape(*outer, -1)
    moved[..., 1, :] = high.view(np.uint64).reshape(*outer, -1)
    return moved.view(np.uint8)


def six_bits(
    stored: UInt8[np.ndarray, "O B 12"],
) -> tuple[Float[np.ndarray, "O B 8"], Float[np.ndarray, "O B 8"]]:
    """Eight scales and eight minima of six bits each, float32.

    Bytes 0-3 and 4-7 hold the first four of each in their low six bits; the last four take their
    low nibble from bytes 8-11 and their two high bits from the top of the former.
    """
    first, second, shared = stored[..., :4], stored[..., 4:8], stored[..., 8:]
    scales = [first & 63, (shared & 15) | ((first >> 6) << 4)]
    minima = [second & 63, (shared >> 4) | ((second >> 6) << 4)]
    return (
        np.concatenate(scales, axis=-1).astype(np.float32),
        np.concatenate(minima, axis=-1).astype(np.float32),
    )
