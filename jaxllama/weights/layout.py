"""Layout steps: reversible conversions of a stored tensor to canonical layout.

Named in the rules of weight formats. A step is a value: a plugin may bring steps of its own by
subclassing `Step`. Axes are those of the file; a Packed matrix counts as [out, in] and stays so.
Knows no file format.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from einops import rearrange

from jaxllama.kernels.packed import Packed
from jaxllama.weights.stored import Index, Shape, Stored, move_rows, part_of, whole


class Step(ABC):
    """One conversion: its effect on values, on shapes before any value is read, and its inverse.

    Subclasses are frozen dataclasses, so that tables can be compared.
    """

    @abstractmethod
    def apply(self, stored: Stored) -> Stored:
        """Convert a stored tensor, or the part of it that `source` named, and return the result."""

    @abstractmethod
    def shape(self, shape: Shape) -> Shape:
        """Return the shape that a tensor of this shape has after the step."""

    @abstractmethod
    def inverse(self) -> "Step":
        """Return the step that undoes this one."""

    def source(self, index: Index, shape: Shape) -> tuple[Index, Index]:
        """Return which part of the step's input to convert to get part `index` of its result.

        Also return the index of part `index` within the result of that conversion. `shape` is that
        of the whole input. By default the whole input is converted.
        """
        return whole(shape), index


@dataclass(frozen=True)
class Transpose(Step):
    """Swaps the last two axes: [out, in] to our [in, out]; a Packed matrix stays by output."""

    def apply(self, stored: Stored) -> Stored:
        """Swap the last two axes of a dense tensor; return a Packed one as it is."""
        if isinstance(stored, Packed):
            return stored
        return np.ascontiguousarray(stored.swapaxes(-1, -2))

    def shape(self, shape: Shape) -> Shape:
        """Return the shape with its last two sizes swapped."""
        return (*shape[:-2], *shape[:-3:-1])

    def inverse(self) -> "Transpose":
        """Return this step: transposing twice changes nothing."""
        return self

    def source(self, index: Index, shape: Shape) -> tuple[Index, Index]:
        """Return `index` with its last two slices swapped, and the index of all of that part."""
        del shape
        inner = (*index[:-2], *index[:-3:-1])
        return inner, whole(tuple(each.stop - each.start for each in index))


@dataclass(frozen=True)
class UnpairRope(Step):
    """Reorders the rows of each head: rotated neighbours become rotated halves."""

    head_dim: int

    def apply(self, stored: Stored) -> Stored:
        """Reorder the rows of each head from interleaved pairs to two halves."""
        return move_rows(stored, self._move)

    def shape(self, shape: Shape) -> Shape:
        """Return the same shape."""
        return shape

    def inverse(self) -> Step:
        """Return the step that pairs the halves again."""
        return PairRope(self.head_dim)

    def source(self, index: Index, shape: Shape) -> tuple[Index, Index]:
        """Return `index` with its rows widened to whole heads.

        Also return the index of the wanted rows within the widened part. `shape` is not needed.
        """
        del shape
        rows, size = index[0], self.head_dim
        start, stop = rows.start // size * size, -(-rows.stop // size) * size
        kept = slice(rows.start - start, rows.stop - start)
        others = tuple(slice(0, each.stop - each.start) for each in index[1:])
        return (slice(start, stop), *index[1:]), (kept, *others)

    def _move(self, rows: np.ndarray) -> np.ndarray:
        pairs = self.head_dim // 2
        moved = rearrange(rows, "(heads pairs two) ... -> heads two pairs ...", pairs=pairs, two=2)
        return moved.reshape(rows.shape)


@dataclass(frozen=True)
class PairRope(UnpairRope):
    """Reorders the rows of each head: rotated halves become rotated neighbours."""

    def inverse(self) -> Step:
        """Return the step that separates the pairs again."""
        return UnpairRope(self.head_dim)

    def _move(self, rows: np.ndarray) -> np.ndarray:
        pairs = self.head_dim // 2
        moved = rearrange(rows, "(heads two pairs) ... -> heads pairs two ...", pairs=pairs, two=2)
        return moved.reshape(rows.shape)


@dataclass(frozen=True)
class Shift(Step):
    """Adds a number to a dense tensor, in float32: norms that a file stores as w - 1."""

    amount: float

    def apply(self, stored: Stored) -> Stored:
        """Add the number to every value."""
        if isinstance(stored, Packed):
            raise ValueError("a packed matrix cannot be shifted; expected a dense tensor")
        return stored.astype(np.float32) + np.float32(self.amount)

    def shape(self, shape: Shape) -> Shape:
        """Return the same shape."""
        return shape

    def inverse(self) -> Step:
        """Return the step that subtracts the number."""
        return Shift(-self.amount)

    def source(self, index: Index, shape: Shape) -> tuple[Index, Index]:
        """Return `index` itself and the index of all of that part: every number stays in place."""
        del shape
        return index, whole(tuple(each.stop - each.start for each in index))


TRANSPOSE = Transpose()
TRANSPOSED = (TRANSPOSE,)  # the steps of a plain matrix that is stored as [out, in]


def arrange(stored: Stored, steps: Sequence[Step]) -> Stored:
    """Apply the steps to a stored tensor; return the result, which is in canonical layout."""
    for step in steps:
        stored = step.apply(stored)
    return stored


def arranged_shape(shape: Shape, steps: Sequence[Step]) -> Shape:
    """Return the shape that `arrange` will give, without reading values."""
    for step in steps:
        shape = step.shape(shape)
    return shape


def inverted(steps: Sequence[Step]) -> tuple[Step, ...]:
    """Return the steps that undo these steps."""
    return tuple(step.inverse() for step in reversed(steps))


def arrange_part(part: Stored, steps: Sequence[Step], places: Sequence[Index]) -> Stored:
    """Return the wanted part of the steps' result, made from the part that `sources` asked for.

    `part` is that part of the stored tensor; `places` are the indices that `sources` returned with
    it: for each step, where the wanted part lies in the result of the step.
    """
    is_flipped = False
    for step, place in zip(steps, places, strict=True):
        part = step.apply(part)
        is_flipped ^= isinstance(step, Transpose)
        by_output = isinstance(part, Packed) and is_flipped  # so its axes are still the file's
        part = part_of(part, TRANSPOSE.source(place, ())[0] if by_output else place)
    return part


def sources(index: Index, steps: Sequence[Step], shape: Shape) -> tuple[Index, list[Index]]:
    """Return which part of a stored tensor to read for part `index` of the result of the steps.

    Also return one index per step: where the wanted part lies in what the step makes of the part
    that was read. `shape` is that of the whole stored tensor.
    """
    shapes = [shape]
    for step in steps[:-1]:
        shapes.append(step.shape(shapes[-1]))
    places: list[Index] = []
    for step, before in zip(reversed(steps), reversed(shapes), strict=False):
        index, place = step.source(index, before)
        places.append(place)
    return index, places[::-1]
