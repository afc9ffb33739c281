"""Stored tensors: what readers return, dense or packed, and how it is cut and joined.

Axes are those of the file. A Packed matrix counts as [out, in] here, because its arrays lie that
way. Called by rules, steps and readers; knows no file format and no model.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np

from jaxllama.kernels.packed import Packed, dense_of, one_of, with_rows

Stored = np.ndarray | Packed
Shape = tuple[int, ...]
Index = tuple[slice, ...]  # a slice with start and stop for each dimension

MIDDLE = 8  # the four-bit code that means 0 in symmetric matrices
# Bits of a float16: the sign, the exponent, one step of the exponent, and the largest exponent of a
# number that is still finite when it is multiplied by 8.
SIGN, EXPONENT, STEP, LARGEST = (np.uint16(each << 10) for each in (32, 31, 1, 27))
CHUNK = 1 << 24  # bytes of whole rows that are in memory while columns are cut out of them


@cache
def dtype_named(name: str) -> np.dtype[Any]:
    """Return NumPy's dtype with this name, such as "float16" or "bfloat16"."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def nbytes_of(shape: Shape, dtype: str) -> int:
    """Return the number of bytes of an array with this shape and the dtype of this name."""
    return math.prod(shape) * dtype_named(dtype).itemsize


@cache
def whole(shape: Shape) -> Index:
    """Return the index that selects all of a tensor of this shape."""
    return tuple(slice(0, size) for size in shape)


def bounded(index: Index, shape: Shape) -> Index:
    """Return `index` with numbers in place of starts and stops that are None or negative.

    Raise ValueError unless `index` has one slice, not empty and without a step, per dimension.
    """
    ends = [each.indices(size) for each, size in zip(index, shape, strict=False)]
    if len(index) != len(shape) or any(start >= stop or by != 1 for start, stop, by in ends):
        raise ValueError(
            f"{index} is no part of {list(shape)}; expected a slice for each dimension, with "
            f"something inside and without a step"
        )
    return tuple(slice(start, stop) for start, stop, _ in ends)


def shape_of(stored: Stored) -> Shape:
    """Return the shape that a tensor has in the file; for a Packed (quantized) matrix [out, in]."""
    if not isinstance(stored, Packed):
        return stored.shape
    *outer, inward, outward = stored.shape
    return (*outer, outward, inward)


def part_of(stored: Stored, index: Index) -> Stored:
    """Return part `index` of a tensor as a copy, but the tensor itself if the part is all of it.

    Raise ValueError if the part cuts a group of inputs of a Packed (quantized) matrix that share a
    scale, or if only some inputs of a matrix with reordered inputs are wanted.
    """
    if index == whole(shape_of(stored)):
        return stored
    if not isinstance(stored, Packed):
        return stored[index].copy()
    *rows, inputs = index
    groups = between_groups(inputs, stored)
    per_code = 2 if stored.bits == 4 else 1  # noqa: PLR2004 - two per byte
    codes = slice(inputs.start // per_code, inputs.stop // per_code)
    return dataclasses.replace(
        stored,
        codes=stored.codes[(*rows, codes)].copy(),
        scales=stored.scales[(*rows, groups)].copy(),
        minima=None if stored.minima is None else stored.minima[(*rows, groups)].copy(),
        order=None if stored.order is None else stored.order[tuple(rows[:-1])].copy(),
    )


def between_groups(inputs: slice, packed: Packed) -> slice:
    """Return the range of quantization groups that a range of inputs of a matrix covers.

    The inputs of a group share one scale. Raise ValueError if the range `inputs` cuts a group, or
    if the inputs of `packed` are reordered (field `order`) and the range is not all of them.
    """
    width, group = packed.shape[-2], packed.group
    if (inputs.start, inputs.stop) == (0, width):
        return slice(0, -(-width // group))
    if packed.order is not None:
        raise ValueError(f"the inputs of a packed matrix of {width} are sorted; read all of them")
    if inputs.start % group or inputs.stop % group:
        raise ValueError(
            f"inputs {inputs.start} to {inputs.stop} of a packed matrix; expected multiples of "
            f"{group}, which share a scale"
        )
    return slice(inputs.start // group, inputs.stop // group)


def concatenate(parts: Sequence[Stored], axis: int) -> Stored:
    """Join the tensors `parts` along the axis `axis` that they have in the file.

    Matrices that are quantized (Packed) in different ways become dense float32.
    """
    if len(parts) == 1:
        return parts[0]
    packed = alike(parts)
    if not packed:
        return np.concatenate([unpacked(each) for each in parts], axis)
    by_input = axis in (-1, len(packed[0].shape) - 1)
    if by_input and any(each.order is not None for each in packed):
        return np.concatenate([unpacked(each) for each in parts], axis)
    return merged(packed, lambda arrays: np.concatenate(arrays, axis), packed[0].order)


def stack(parts: Sequence[Stored]) -> Stored:
    """Join tensors along a new first axis; differently quantized matrices become float32."""
    packed = alike(parts)
    if not packed:
        return np.stack([unpacked(each) for each in parts])
    order = packed[0].order
    return merged(packed, np.stack, None if order is None else np.stack([order] * len(packed)))


def unstack(stored: Stored) -> list[Stored]:
    """Undo `stack`: return each slice along the first axis."""
    if not isinstance(stored, Packed):
        return list(stored)
    return [one_of(stored, place) for place in range(len(stored.codes))]


def alike(parts: Sequence[Stored]) -> list[Packed]:
    """Return `parts` if all are matrices that are quantized in the same way, else [].

    The same are bits, type of codes, group size, order of inputs, and whether there are minima.
    """
    packed = [each for each in parts if isinstance(each, Packed)]
    kinds = {
        (
            each.bits,
            each.codes.dtype,
            each.group,
            each.minima is None,
            None if each.order is None else np.asarray(each.order).tobytes(),
        )
        for each in packed
    }
    return packed if len(packed) == len(parts) and len(kinds) == 1 else []


def merged(
    parts: Sequence[Packed],
    join: Callable[[list[np.ndarray]], np.ndarray],
    order: np.ndarray | None,
) -> Packed:
    """Return one matrix made of `parts`, matrices that are quantized in the same way.

    `join` makes one array of a list of arrays; it is called for the codes, the scales and the
    minima of all parts. `order` is the order of inputs in the result; None: the original order.
    """
    minima = [each.minima for each in parts if each.minima is not None]
    return dataclasses.replace(
        parts[0],
        codes=join([each.codes for each in parts]),
        scales=join([each.scales for each in parts]),
        minima=join(minima) if minima else None,
        order=order,
    )


def minima_around_middle(scales: np.ndarray) -> np.ndarray:
    """Return the minimum of each group of a four-bit matrix: -8 times the group's scale.

    The code 8 then stands for the weight 0, as weight = scale * code + minimum. NumPy multiplies
    float16 slowly: 3 is added to the exponents instead if all scales are normal numbers, and small
    enough; otherwise the products are looked up in a table.
    """
    if scales.dtype == np.float16:
        bits = scales.view(np.uint16)
        # The exponent of 0 and of subnormal numbers is 0; less a step it wraps around to the top.
        if ((bits & EXPONENT) - STEP).max(initial=0) <= LARGEST - STEP:
            return ((bits ^ SIGN) + 3 * STEP).view(np.float16)
        return np.take(products_of_halves(), bits, mode="clip")
    with np.errstate(all="ignore"):  # damaged scales may be NaN; the engine checks for that
        return scales * scales.dtype.type(-MIDDLE)


@cache
def products_of_halves() -> np.ndarray:
    """Return -8 times every float16 number, as an array of 65,536 products.

    The index of a product is the float16 number's bit pattern, read as an integer.
    """
    with np.errstate(all="ignore"):
        return np.arange(1 << 16, dtype=np.uint16).view(np.float16) * np.float16(-MIDDLE)


def unpacked(stored: Stored) -> np.ndarray:
    """Return a tensor as a dense array, dequantized, with its axes in the order of the file."""
    return dense_of(stored).swapaxes(-1, -2) if isinstance(stored, Packed) else stored


def move_rows(stored: Stored, move: Callable[[np.ndarray], np.ndarray]) -> Stored:
    """Return a tensor with its rows permuted by `move`, which permutes the rows of one array.

    For a quantized matrix, `move` is called for its codes, its scales and its minima.
    """
    if not isinstance(stored, Packed):
        return move(stored)
    return with_rows(stored, lambda array: move(np.asarray(array)))


def read_rows(
    index: Index, shape: Shape, nbytes: int, read: Callable[[int, int], Stored]
) -> Stored:
    """Read part `index` of a tensor of shape `shape` that a file stores row by row.

    `read(start, stop)` returns whole rows (slices along the first axis); `nbytes` is the size of
    the whole tensor in the file. Where only some columns are requested, few rows are read at a
    time, so that little more than the part is in memory.
    """
    rows, columns = index[0], index[1:]
    if columns == whole(shape[1:]):
        return read(rows.start, rows.stop)
    step = max(1, CHUNK * shape[0] // max(nbytes, 1))
    parts = [
        part_of(read(start, stop), (slice(0, stop - start), *columns))
        for start, stop in chunks(rows, step)
    ]
    return concatenate(parts, 0)


def chunks(rows: slice, step: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of consecutive ranges of at most `step` rows that together make `rows`.

    Yields one empty range if there are no rows.
    """
    for start in range(rows.start, max(rows.stop, rows.start + 1), step):
        yield start, min(start + step, rows.stop)
