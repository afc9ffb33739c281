"""GroupedMatrix: a packed matrix as the TPU's kernels read it, [in, out].

Four-bit codes lie eight to a 32-bit word: in 64 inputs, bits 4i to 4i + 3 of word r hold input
8i + r, so unpacking moves nothing between lanes or rows. Other codes are bytes. Scales of a group
of inputs stay float16, as bits, where the file has them so: TPUs have no such type, and the kernel
converts them exactly.
"""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from jaxllama.kernels.packed import Packed

FOUR_BITS = 4
PER_WORD = 8
WORDS = 64  # inputs whose codes share words
LANES = 128
SMALLEST_GROUP = 8  # inputs with one scale: whole rows of a tile
ZEROS = (8, 16, 32, 128)  # codes that may mean 0 in a matrix whose minima need no memory
OUTPUTS = 4096  # outputs packed at a time


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GroupedMatrix:
    """A matrix [in, out]: weight = scale * (code - zero) + minimum, padded to whole tiles.

    codes    Int32 [I/8, O] for four bits, else Int8 or float8 [I, O]
    scales   [I/group, O], the bits of float16 as UInt16, or float32
    minima   like scales, or None
    order    Int32 [in], or None: the input that the k-th stored one is
    """

    codes: Any
    scales: Any
    minima: Any
    order: Any
    bits: int = dataclasses.field(metadata={"static": True})
    group: int = dataclasses.field(metadata={"static": True})
    zero: int = dataclasses.field(metadata={"static": True})
    outputs: int = dataclasses.field(metadata={"static": True})  # of one device, without padding

    @property
    def inputs(self) -> int:
        """Return the number of inputs of the stored matrix, padding included."""
        rows: int = self.codes.shape[0]
        return rows * PER_WORD if self.bits == FOUR_BITS else rows


def padded(count: int, unit: int) -> int:
    """Round `count` up to a multiple of `unit`."""
    return -(-count // unit) * unit


def unit_of(inputs: int) -> int:
    """Return how many inputs the kernel unpacks at a time, for a matrix of `inputs` inputs."""
    return 2 * LANES if inputs % (2 * LANES) == 0 else LANES


def can_group(matrix: Packed) -> bool:
    """Say whether the TPU kernels can read a packed matrix.

    The number of inputs that share a scale has to be a divisor or a multiple of the number of
    inputs unpacked at a time.
    """
    inputs, group = padded(matrix.shape[0], LANES), matrix.group
    unit = unit_of(inputs)
    fits = unit % group == 0 if group <= unit else group % unit == 0 and inputs % group == 0
    return group % SMALLEST_GROUP == 0 and fits


def zero_of(matrix: Packed) -> int | None:
    """Return the code that stands for weight 0 in the whole matrix; None if there is none.

    A weight is scale * code + minimum. For a matrix without minima the result is 0; for others only
    the codes 8, 16, 32 and 128 are considered.
    """
    if matrix.minima is None:
        return 0
    scales, minima = (np.asarray(each, np.float32) for each in (matrix.scales, matrix.minima))
    return next((zero for zero in ZEROS if np.array_equal(minima, -zero * scales)), None)


def grouped(matrix: Packed, zero: int | None) -> GroupedMatrix:
    """Convert a packed matrix to the TPU kernels' storage, on the host.

    `zero` is the code that stands for the weight 0; None: there is none, and the minima are stored.
    """
    inward, outward = matrix.shape
    inputs, outputs = padded(inward, LANES), padded(outward, LANES)
    shape = (math.ceil(inputs / matrix.group), outputs)
    codes = words(matrix.codes, inputs, outputs) if matrix.bits == FOUR_BITS else None
    if codes is None:
        kind = matrix.codes.dtype if matrix.is_float8 else np.dtype(np.int8)
        codes = np.zeros((inputs, outputs), kind)
        codes[:inward, :outward] = np.asarray(matrix.codes).T.view(kind)
    minima = None if zero is not None else matrix.minima
    return GroupedMatrix(
        codes=codes,
        scales=by_input(matrix.scales, shape),
        minima=None if minima is None else by_input(minima, shape),
        order=None if matrix.order is None else np.asarray(matrix.order, np.int32),
        bits=FOUR_BITS if matrix.bits == FOUR_BITS else 8,
        group=matrix.group,
        zero=zero or 0,
        outputs=outward,
    )


def words(codes: np.ndarray, inputs: int, outputs: int) -> np.ndarray:
    """Pack 4-bit codes [out, in/2] into 32-bit words [inputs/8, outputs], padded with zeros."""
    outward, half = codes.shape
    found = np.zeros((inputs // PER_WORD, outputs), np.uint32)
    for start in range(0, outward, OUTPUTS):
        part = np.asarray(codes[start : start + OUTPUTS])
        split = np.zeros((len(part), inputs), np.uint8)
        split[:, 0 : 2 * half : 2], split[:, 1 : 2 * half : 2] = part & 15, part >> 4
        by_word = split.reshape(len(part), -1, PER_WORD, WORDS // PER_WORD)
        joined = np.zeros((len(part), inputs // WORDS, WORDS // PER_WORD), np.uint32)
        for place in range(PER_WORD):
            joined |= by_word[:, :, place].astype(np.uint32) << (4 * place)
        found[:, start : start + len(part)] = joined.reshape(len(part), -1).T
    return found.view(np.int32)


def by_input(scales: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Transpose scales [out, in/group] and pad them to `shape`.

    Scales of float16 become their bits as UInt16, all others float32.
    """
    given = np.asarray(scales)
    bits = given.view(np.uint16) if given.dtype == np.float16 else given.astype(np.float32)
    found = np.zeros(shape, bits.dtype)
    found[: bits.shape[1], : bits.shape[0]] = bits.T
    return found
