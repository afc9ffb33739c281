"""Tiled: a matrix in the layout of the CPU kernels, in the few bits that its file stores.

Made by `tiling.py`, read by `matmul.py`. `weights.h` describes the layout. Knows no model and no
file format.
"""

import dataclasses
from typing import Literal

import jax
import numpy as np

from jaxllama.kernels.packed import Part
from jaxllama.shapes import Float

Kind = Literal["q4", "q5", "q6", "q8", "bf16", "f16", "f32"]
KINDS: tuple[Kind, ...] = ("q4", "q5", "q6", "q8", "bf16", "f16", "f32")
TILE = 32  # outputs
HALF = 16
BLOCK = 32  # inputs
EIGHT = 8  # blocks that share one unit of K-quant scales
SIXTEEN = 16  # inputs that share a scale in a q6
NIBBLES = 512  # bytes that store the low four bits of a block


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tiled:
    """A logical [in, out] matrix as tiles of 32 outputs, cut into blocks of 32 inputs.

    Tiles are the first axis of every part and blocks (or groups) the second: a slice along the
    first splits the outputs of the matrix, a slice along the second its inputs.

    codes   [tiles, blocks, ...] codes, or dense numbers (16-bit ones as UInt16 bits)
    scales  [tiles, groups, 1 or 2, 32] float16 bits or float32: scales, then minima; None if dense
    steps   None, or [tiles, blocks, 2, 32] UInt8: the steps of scales and of minima, or in q6 Int8
            bits: the steps of the scales of both halves of a block. With steps, `scales` has units,
            one for eight blocks: scale = unit * step
    bias    [tiles, 32] float32, or None
    order   [in] Int32, or None: the input of x that row k of the matrix multiplies
    """

    codes: Part
    scales: Part | None
    steps: Part | None
    bias: Part | None
    order: Part | None
    kind: Kind = dataclasses.field(metadata={"static": True})
    group: int = dataclasses.field(metadata={"static": True})  # inputs that share a scale
    zero: int = dataclasses.field(metadata={"static": True})  # the code that means 0, below q8
    spare_in: int = dataclasses.field(metadata={"static": True})  # rows that pad the last block
    spare_out: int = dataclasses.field(metadata={"static": True})  # columns that pad the last tile
    # Two matrices, alternating every 16 outputs.
    paired: bool = dataclasses.field(metadata={"static": True})
    # Whether only rows of prompts are multiplied, which may have an arithmetic of their own.
    of_prompts: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, int]:
        """Return the shape [in, out] of the matrix without padding.

        Of a pair of matrices (gate and up), that is the shape of each.
        """
        tiles, blocks = self.codes.shape[:2]
        return blocks * BLOCK - self.spare_in, tiles * self.tile - self.spare_out

    @property
    def tile(self) -> int:
        """Return how many outputs of one matrix a tile holds: 32, or 16 of each of a pair."""
        return HALF if self.paired else TILE

    @property
    def shared(self) -> int:
        """Return how many consecutive inputs share a scale or a factor of it.

        A split over devices must keep them together.
        """
        return EIGHT * BLOCK if self.steps is not None else self.group

    @property
    def nbytes(self) -> int:
        """Return the size of all arrays together, in bytes."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self))


def untile(tiled: Tiled) -> Float[np.ndarray, "I O"]:
    """Return the matrix [in, out] that the tiles store, without rounding, in float32.

    If the tiles hold a pair of matrices (gate and up), returns both side by side.
    """
    codes = np.asarray(tiled.codes)
    count, blocks = codes.shape[:2]
    values = np.stack([tile_values(tiled.kind, each) for each in codes])
    if tiled.scales is not None:
        scale, minimum = scales_and_minima(tiled)
        values = (values - np.float32(tiled.zero)) * scale + minimum
    flat = values.reshape(count, blocks * BLOCK, TILE).transpose(1, 0, 2)
    flat = flat[: flat.shape[0] - tiled.spare_in]
    if not tiled.paired:
        return flat.reshape(len(flat), -1)[:, : tiled.shape[1]]
    halves = flat.reshape(len(flat), count, 2, HALF)
    sides = [halves[:, :, side].reshape(len(flat), -1)[:, : tiled.shape[1]] for side in (0, 1)]
    return np.concatenate(sides, axis=1)


def tile_values(kind: Kind, tiled: np.ndarray) -> Float[np.ndarray, "G B T"]:
    """Return one tile's codes, or dense numbers, in float32: [blocks, 32 inputs, 32 outputs].

    `kind` is how the matrix is stored, `tiled` the tile's bytes or numbers.
    """
    blocks = len(tiled)
    if kind in ("q4", "q5", "q6"):
        both = low_bits(tiled[:, :NIBBLES]) | high_bits(kind, tiled[:, NIBBLES:])
        return both.transpose(0, 1, 2, 5, 3, 4).reshape(blocks, BLOCK, TILE).astype(np.float32)
    if kind == "q8":
        bytes_ = tiled.reshape(blocks, 8, 2, HALF, 4).transpose(0, 1, 4, 2, 3)
        return bytes_.reshape(blocks, BLOCK, TILE).astype(np.float32) - np.float32(128)
    if kind == "bf16":
        pairs = tiled.reshape(blocks, HALF, 2, HALF, 2).transpose(0, 1, 4, 2, 3)
        wide = np.ascontiguousarray(pairs).astype(np.uint32) << 16
        return wide.view(np.float32).reshape(blocks, BLOCK, TILE)
    narrow = tiled.view(np.float16) if kind == "f16" else tiled
    return narrow.reshape(blocks, BLOCK, TILE).astype(np.float32)


def low_bits(tiled: np.ndarray) -> np.ndarray:
    """Return the low four bits of the codes of one tile.

    `tiled` has the bytes that hold these bits, [blocks, 512]. The result is [blocks, 2 halves of
    the inputs, 4 quarters of a half, 2 halves of the outputs, 16 outputs, 4 inputs].
    """
    bytes_ = tiled.reshape(len(tiled), 4, 2, HALF, 4)
    return np.stack([bytes_ & 15, bytes_ >> 4], axis=1)


def high_bits(kind: Kind, tiled: np.ndarray) -> np.ndarray:
    """Return the bits of one tile's codes above the low four, shifted so that `|` adds them.

    `kind` is how the matrix is stored, `tiled` has the bytes that hold these bits. The result is
    [blocks, 2 halves of the inputs, 4 quarters of a half, 2 halves of the outputs, 16 outputs, 4
    inputs]. Four-bit codes have no such bits: the result is [0].
    """
    if kind == "q4":
        return np.zeros(1, np.uint8)
    j = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
    if kind == "q6":
        bytes_ = tiled.reshape(len(tiled), 2, 1, 2, HALF, 4)
        return (bytes_ >> 2 * j & 3) << 4
    half = np.arange(2, dtype=np.uint8).reshape(2, 1, 1, 1, 1)
    return (tiled.reshape(len(tiled), 1, 1, 2, HALF, 4) >> (4 * half + j) & 1) << 4


def scales_and_minima(tiled: Tiled) -> tuple[np.ndarray, np.ndarray]:
    """Return the scales and the minima of a matrix's codes, in float32.

    Both broadcast to [tiles, blocks, 32 inputs, 32 outputs].
    """
    scales = np.asarray(tiled.scales)
    scales = (scales.view(np.float16) if scales.dtype == np.uint16 else scales).astype(np.float32)
    if tiled.kind == "q6":
        steps = np.asarray(tiled.steps).view(np.int8)
        halves = np.repeat(scales, EIGHT, axis=1) * steps
        return np.repeat(halves, SIXTEEN, axis=2), np.zeros(1, np.float32)
    blocks = tiled.codes.shape[1]
    per_scale = EIGHT if tiled.steps is not None else tiled.group // BLOCK
    scales = np.repeat(scales, per_scale, axis=1)[:, :blocks]
    if tiled.steps is not None:
        scales = scales * np.asarray(tiled.steps)
    minima = scales[:, :, 1:] if scales.shape[2] == 2 else np.zeros_like(scales)  # noqa: PLR2004
    return scales[:, :, :1], minima
