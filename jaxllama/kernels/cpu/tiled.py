"""Tiled: a matrix laid out for the CPU kernels, in the few bits its file holds.

Made by `tiling.py`, read by `cpu_matmul.py`. The layout itself is drawn in `cpu/weights.h`. Knows
no model and no file format.
"""

import dataclasses
from typing import Any, Literal

import jax
import numpy as np

from jaxllama.shapes import Float

Kind = Literal["q4", "q5", "q6", "q8", "bf16", "f16", "f32"]
KINDS: tuple[Kind, ...] = ("q4", "q5", "q6", "q8", "bf16", "f16", "f32")
TILE = 32  # outputs
HALF = 16
BLOCK = 32  # inputs
EIGHT = 8  # blocks that share a unit of K-quant scales
SIXTEEN = 16  # inputs that share a scale in a q6
NIBBLES = 512  # bytes of a block's low four bits

Part = Any  # an Array in programs; NumPy when made, a sharding while a tree is built


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tiled:
    """A logical [in, out] matrix as tiles of 32 outputs, cut into blocks of 32 inputs.

    Tiles are the first axis of every part and blocks (or groups) the second, so slicing either
    splits the matrix along its outputs or inputs.

    codes   [tiles, blocks, ...] codes, or the numbers themselves (16-bit ones as UInt16 bits)
    scales  [tiles, groups, 1 or 2, 32] float16 bits or float32: scales, then minima; None if dense
    steps   [tiles, blocks, 2, 32] UInt8, or None: then scales are units, one for eight blocks; of
            scales and minima, or in q6 of the scales of each half of a block, Int8 bits
    bias    [tiles, 32] float32, or None
    order   [in] Int32, or None: which input of x the k-th row of the matrix belongs to
    """

    codes: Part
    scales: Part | None
    steps: Part | None
    bias: Part | None
    order: Part | None
    kind: Kind = dataclasses.field(metadata={"static": True})
    group: int = dataclasses.field(metadata={"static": True})  # inputs that share a scale
    zero: int = dataclasses.field(metadata={"static": True})  # what codes below q8 lie around
    spare_in: int = dataclasses.field(metadata={"static": True})  # rows that only fill a block
    spare_out: int = dataclasses.field(metadata={"static": True})  # columns that only fill a tile
    paired: bool = dataclasses.field(metadata={"static": True})  # two matrices by turns of 16

    @property
    def shape(self) -> tuple[int, int]:
        """Logical shape, [in, out]; of one of the two if paired."""
        tiles, blocks = self.codes.shape[:2]
        return blocks * BLOCK - self.spare_in, tiles * self.tile - self.spare_out

    @property
    def tile(self) -> int:
        """Outputs in a tile."""
        return HALF if self.paired else TILE

    @property
    def shared(self) -> int:
        """Inputs that cannot be told apart by slicing: they share a scale, or a unit of scales."""
        return EIGHT * BLOCK if self.steps is not None else self.group

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Several:
    """Matrices of different kinds that read the same rows: as one, with their outputs in a row."""

    parts: tuple[Tiled, ...]


def untile(tiled: Tiled) -> Float[np.ndarray, "I O"]:
    """The matrix again, float32, each value exactly what the tiles mean; a pair side by side."""
    codes = np.asarray(tiled.codes)
    count, blocks = codes.shape[:2]
    values = np.stack([numbers_of(tiled.kind, each) for each in codes])
    if tiled.scales is not None:
        scale, minimum = factors_of(tiled)
        values = (values - np.float32(tiled.zero)) * scale + minimum
    flat = values.reshape(count, blocks * BLOCK, TILE).transpose(1, 0, 2)
    flat = flat[: flat.shape[0] - tiled.spare_in]
    if not tiled.paired:
        return flat.reshape(len(flat), -1)[:, : tiled.shape[1]]
    halves = flat.reshape(len(flat), count, 2, HALF)
    sides = [halves[:, :, side].reshape(len(flat), -1)[:, : tiled.shape[1]] for side in (0, 1)]
    return np.concatenate(sides, axis=1)


def numbers_of(kind: Kind, tiled: np.ndarray) -> Float[np.ndarray, "G B T"]:
    """Codes, or the numbers themselves, of one tile: [blocks, 32 inputs, 32 outputs]."""
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
    """Four bits of every code, [blocks, halves of inputs, 4, halves of outputs, 16, 4]."""
    bytes_ = tiled.reshape(len(tiled), 4, 2, HALF, 4)
    return np.stack([bytes_ & 15, bytes_ >> 4], axis=1)


def high_bits(kind: Kind, tiled: np.ndarray) -> np.ndarray:
    """What codes have beyond four bits, at its place in them; shaped likewise."""
    if kind == "q4":
        return np.zeros(1, np.uint8)
    j = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
    if kind == "q6":
        bytes_ = tiled.reshape(len(tiled), 2, 1, 2, HALF, 4)
        return (bytes_ >> 2 * j & 3) << 4
    half = np.arange(2, dtype=np.uint8).reshape(2, 1, 1, 1, 1)
    return (tiled.reshape(len(tiled), 1, 1, 2, HALF, 4) >> (4 * half + j) & 1) << 4


def factors_of(tiled: Tiled) -> tuple[np.ndarray, np.ndarray]:
    """Scales and minima, each [tiles, blocks, 1 or 32, 32] float32."""
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
