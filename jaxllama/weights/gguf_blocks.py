"""GGUF tensor types: block sizes, and the conversion of blocks to arrays.

Called by the GGUF reader with the raw bytes of one tensor. Types of four to eight bits become
Packed with exactly the values of the file, those whose codes are places in a table with eight bits;
float types stay as stored; the `gguf` library dequantises all others. Knows nothing of names and
headers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Float, Int8, UInt8

from jaxllama.kernels.packed import Bits, Packed
from jaxllama.weights.stored import minima_around_middle

GROUP = 32  # weights that share a scale in nearly every packed kind
HALF_GROUP = 16  # in Q6_K
LARGEST_EIGHTH = 8188.0  # eight times this number is still a finite float16
# The numbers that four-bit codes stand for.
IQ4_CODES = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8
)
FP4_CODES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)


@dataclass(frozen=True)
class GgmlType:
    """A tensor type: `block` weights are stored in `size` bytes."""

    name: str
    block: int
    size: int


# By ggml's number: weights of a block, and its bytes.
KINDS = {
    0: GgmlType("F32", 1, 4),
    1: GgmlType("F16", 1, 2),
    2: GgmlType("Q4_0", 32, 18),
    3: GgmlType("Q4_1", 32, 20),
    6: GgmlType("Q5_0", 32, 22),
    7: GgmlType("Q5_1", 32, 24),
    8: GgmlType("Q8_0", 32, 34),
    10: GgmlType("Q2_K", 256, 84),
    11: GgmlType("Q3_K", 256, 110),
    12: GgmlType("Q4_K", 256, 144),
    13: GgmlType("Q5_K", 256, 176),
    14: GgmlType("Q6_K", 256, 210),
    16: GgmlType("IQ2_XXS", 256, 66),
    17: GgmlType("IQ2_XS", 256, 74),
    18: GgmlType("IQ3_XXS", 256, 98),
    19: GgmlType("IQ1_S", 256, 50),
    20: GgmlType("IQ4_NL", 32, 18),
    21: GgmlType("IQ3_S", 256, 110),
    22: GgmlType("IQ2_S", 256, 82),
    23: GgmlType("IQ4_XS", 256, 136),
    29: GgmlType("IQ1_M", 256, 56),
    30: GgmlType("BF16", 1, 2),
    34: GgmlType("TQ1_0", 256, 54),
    35: GgmlType("TQ2_0", 256, 66),
    39: GgmlType("MXFP4", 32, 17),
    40: GgmlType("NVFP4", 64, 36),
}
FLOATS: dict[str, Any] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": ml_dtypes.bfloat16,
}


def decode(
    kind: GgmlType, raw: UInt8[np.ndarray, " B"], shape: tuple[int, ...]
) -> np.ndarray | Packed:
    """Convert the bytes `raw` of one tensor, stored row by row, to an array or a Packed matrix.

    `kind` is its GGUF type, `shape` its shape with rows first.
    """
    if kind.name in FLOATS:
        return raw.view(FLOATS[kind.name]).reshape(shape)
    if kind.name in PACKERS and len(shape) > 1:
        matrix = PACKERS[kind.name](raw.reshape(math.prod(shape[:-1]), -1, kind.size))
        return matrix if len(shape) == 2 else stacked(matrix, shape[:-1])  # noqa: PLR2004
    import gguf  # noqa: PLC0415 - 70 ms, which few files need

    rows = raw.reshape(*shape[:-1], shape[-1] // kind.block * kind.size)
    with np.errstate(all="ignore"):  # damaged scales may be NaN; the engine checks for that
        return gguf.dequantize(rows, gguf.GGMLQuantizationType[kind.name])


def kind_name(number: int) -> str:
    """Return ggml's name of the tensor type with this number; "number N" if ggml knows none.

    The type may be one that is not supported here.
    """
    import gguf  # noqa: PLC0415 - only for an error message

    try:
        return gguf.GGMLQuantizationType(number).name
    except ValueError:
        return f"number {number}"


def pack_q8_0(blocks: UInt8[np.ndarray, "O B 34"]) -> Packed:
    """Convert Q8_0 blocks, of one float16 scale and 32 signed codes, to a Packed matrix."""
    return packed(8, blocks[..., 2:].view(np.int8), halves(blocks, 0), None)


def pack_q4_0(blocks: UInt8[np.ndarray, "O B 18"]) -> Packed:
    """Convert Q4_0 blocks, of one float16 scale and 32 codes around 8, to a Packed matrix.

    Each minimum is -8 times the scale. If one of these is too large for float16, scales and minima
    become float32.
    """
    scales = halves(blocks, 0)
    if not (np.abs(scales) <= LARGEST_EIGHTH).all():
        scales = scales.astype(np.float32)
    minima = minima_around_middle(scales)
    return packed(4, pair_neighbours(blocks[..., None, 2:]), scales, minima)


def pack_q4_1(blocks: UInt8[np.ndarray, "O B 20"]) -> Packed:
    """Convert Q4_1 blocks, of float16 scale, float16 minimum and 32 codes, to a Packed matrix."""
    return packed(4, pair_neighbours(blocks[..., None, 4:]), halves(blocks, 0), halves(blocks, 2))


def pack_q4_k(blocks: UInt8[np.ndarray, "O B 144"]) -> Packed:
    """Convert Q4_K blocks to a Packed matrix: eight groups of 32 codes in each block.

    The six-bit scales and minima of the groups are multiplied by two float16 factors of the block.
    """
    with np.errstate(all="ignore"):  # damaged factors may be NaN; the engine checks for that
        scales, minima = six_bits(blocks[..., 4:16])
        scales *= halves(blocks, 0).astype(np.float32)[..., None]
        minima *= -halves(blocks, 2).astype(np.float32)[..., None]
    codes = pair_neighbours(blocks[..., 16:].reshape(*blocks.shape[:2], 4, 32))
    return packed(4, codes, scales, minima)


def pack_q5_0(blocks: UInt8[np.ndarray, "O B 22"]) -> Packed:
    """Convert Q5_0 blocks, of one float16 scale and 32 codes around 16, to a Packed matrix."""
    return packed(5, five_bits(blocks[..., 2:]) - 16, halves(blocks, 0), None)


def pack_q5_1(blocks: UInt8[np.ndarray, "O B 24"]) -> Packed:
    """Convert Q5_1 blocks, of float16 scale, float16 minimum and 32 codes, to a Packed matrix."""
    return packed(5, five_bits(blocks[..., 4:]), halves(blocks, 0), halves(blocks, 2))


def pack_q5_k(blocks: UInt8[np.ndarray, "O B 176"]) -> Packed:
    """Convert Q5_K blocks, which are Q4_K blocks with a fifth bit per code, to a Packed matrix.

    The fifth bits take 32 bytes of a block: bit g of byte l belongs to weight l of group g.
    """
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
    """Convert Q6_K blocks to a Packed matrix: 16 groups of 16 codes around 32 in each block.

    The signed eight-bit scales of the groups are multiplied by one float16 factor of the block.
    Each 128 weights, in quarters q = 0 to 3, have 64 bytes of low bits and 32 bytes of high bits.
    Weight l of quarter q has its low four bits in byte 32 * (q % 2) + l, in the low nibble if q < 2
    and else in the high one. It has its two high bits in bits 2q and 2q + 1 of byte l.
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


def pack_iq4_nl(blocks: UInt8[np.ndarray, "O B 18"]) -> Packed:
    """Convert IQ4_NL blocks, of a float16 scale and 32 four-bit codes, to a Packed matrix.

    A code is an index into a fixed table of 16 numbers.
    """
    return packed(8, look_up(blocks[..., None, 2:], IQ4_CODES), halves(blocks, 0), None)


def pack_iq4_xs(blocks: UInt8[np.ndarray, "O B 136"]) -> Packed:
    """Convert IQ4_XS blocks to a Packed matrix: eight groups of 32 codes in each block.

    A code is an index into the fixed table of 16 numbers of IQ4_NL. The six-bit scales of the
    groups are multiplied by one float16 factor of the block. Bytes 2 and 3 hold the two high bits
    of all scales, bytes 4 to 7 their low nibbles.
    """
    outer = blocks.shape[:2]
    groups = np.arange(8, dtype=np.uint16)
    high = blocks[..., 2:4].view("<u2") >> 2 * groups & 3
    low = (blocks[..., 4:8, None] >> np.array([0, 4], np.uint8) & 15).reshape(*outer, 8)
    steps = (low | high << 4).astype(np.float32) - 32
    with np.errstate(all="ignore"):  # damaged factors may be NaN; the engine checks for that
        scales = halves(blocks, 0).astype(np.float32)[..., None] * steps
    codes = look_up(blocks[..., 8:].reshape(*outer, 8, 16), IQ4_CODES)
    return packed(8, codes, scales, None)


def pack_mxfp4(blocks: UInt8[np.ndarray, "O B 17"]) -> Packed:
    """Convert MXFP4 blocks, of a power of two and 32 four-bit floats, to a Packed matrix.

    The codes of the matrix are twice the floats, so that they are whole numbers.
    """
    power = blocks[..., 0].astype(np.uint32)
    bits = np.where(power < 2, 0x00200000 << np.minimum(power, 1), power - 1 << 23)  # noqa: PLR2004
    scales = bits.astype(np.uint32).view(np.float32)
    return packed(8, look_up(blocks[..., None, 1:], FP4_CODES), scales, None)


PACKERS: dict[str, Callable[[UInt8[np.ndarray, "O B Z"]], Packed]] = {
    "Q8_0": pack_q8_0,
    "Q4_0": pack_q4_0,
    "Q4_1": pack_q4_1,
    "Q5_0": pack_q5_0,
    "Q5_1": pack_q5_1,
    "Q4_K": pack_q4_k,
    "Q5_K": pack_q5_k,
    "Q6_K": pack_q6_k,
    "IQ4_NL": pack_iq4_nl,
    "IQ4_XS": pack_iq4_xs,
    "MXFP4": pack_mxfp4,
}


def packed(
    bits: Bits,
    codes: np.ndarray,
    scales: np.ndarray,
    minima: np.ndarray | None,
    *,
    group: int = GROUP,
) -> Packed:
    """Build a Packed matrix; the arrays become two-dimensional, with one row per output.

    Their first axis is the output; their other axes are flattened. `minima` None: weights are code
    times scale, without an addend. `group` is the number of weights that share a scale.
    """
    out = len(codes)
    parts = {"codes": codes, "scales": scales, "minima": minima}
    flat: Any = {
        name: None if part is None else np.ascontiguousarray(part.reshape(out, -1))
        for name, part in parts.items()
    }
    return Packed(**flat, bits=bits, group=group)


def stacked(matrix: Packed, outer: tuple[int, ...]) -> Packed:
    """Return a stack of matrices, such as [experts, outputs, inputs], from one tall matrix.

    `matrix` has the rows of all matrices, one after the other; `outer` are the sizes of all axes of
    the stack but the last one, the inputs.
    """
    return replace(
        matrix,
        codes=matrix.codes.reshape(*outer, -1),
        scales=matrix.scales.reshape(*outer, -1),
        minima=None if matrix.minima is None else matrix.minima.reshape(*outer, -1),
    )


def halves(blocks: UInt8[np.ndarray, "O B Z"], at: int) -> Float[np.ndarray, "O B"]:
    """Return the float16 at byte `at` of every block."""
    return blocks[..., at : at + 2].view("<f2")[..., 0]


def look_up(
    stored: UInt8[np.ndarray, "O B C 16"], table: Int8[np.ndarray, " 16"]
) -> Int8[np.ndarray, "O B C 32"]:
    """Return the entry of `table` for each of the 32 four-bit codes in every 16 bytes of `stored`.

    Of 16 bytes, byte j holds code j in its low nibble and code j + 16 in its high nibble.
    """
    return np.concatenate([table[stored & 15], table[stored >> 4]], axis=-1)


def five_bits(stored: UInt8[np.ndarray, "O B 20"]) -> Int8[np.ndarray, "O B 32"]:
    """Return the 32 five-bit codes in twenty bytes.

    The first four bytes hold the fifth bits; of the other sixteen, byte j holds the nibbles of
    codes j and j + 16.
    """
    shifts = np.arange(8, dtype=np.uint8)
    high = (stored[..., :4, None] >> shifts & 1).reshape(*stored.shape[:2], 32) << 4
    low = np.concatenate([stored[..., 4:] & 15, stored[..., 4:] >> 4], axis=-1)
    return (low | high).view(np.int8)


def pair_neighbours(stored: UInt8[np.ndarray, "O B C Z"]) -> UInt8[np.ndarray, "O B C 2 Z/2"]:
    """Regroup four-bit weights so that each byte holds two neighbouring ones.

    Of Z stored bytes, byte j holds weights j and j + Z. In the result, byte j holds weight 2j in
    its low and 2j + 1 in its high nibble. Several bytes are moved at a time, because NumPy is slow
    at short rows.
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
    """Return eight scales and eight minima of six bits each, as float32.

    Bytes 0-3 and 4-7 hold the first four scales and minima in their low six bits. The last four
    take their low nibble from bytes 8-11 and their two high bits from the top of bytes 0-7.
    """
    first, second, shared = stored[..., :4], stored[..., 4:8], stored[..., 8:]
    scales = [first & 63, (shared & 15) | ((first >> 6) << 4)]
    minima = [second & 63, (shared >> 4) | ((second >> 6) << 4)]
    return (
        np.concatenate(scales, axis=-1).astype(np.float32),
        np.concatenate(minima, axis=-1).astype(np.float32),
    )
