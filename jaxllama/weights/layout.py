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
        """Convert a stored tensor, or a part of one; return the result.

        A part must be one that the method `source` selects.
        """

    @abstractmethod
    def shape(self, shape: Shape) -> Shape:
        """Return the shape that a tensor of shape `shape` has after the step."""

    @abstractmethod
    def inverse(self) -> "Step":
        """Return the step that turns the result back into the stored tensor."""

    def source(self, index: Index, shape: Shape) -> tuple[Index, Index]:
        """Return which part of the input has to be read to get part `index` of the step's result.

        Also return a second index: it selects part `index` from the result of converting only the
        part that was read. `shape` is that of the whole input. By default the whole input is read.
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
        """Return which part of the input to read: `index` with its last two slices swapped.

        Also return the index that selects the requested values from the converted part: all of
        them. `shape` is not needed.
        """
        del shape
        inner = (*index[:-2], *index[:-3:-1])
        return inner, whole(tuple(each.stop - each.start for each in index))


@dataclass(frozen=True)
class UnpairRope(Step):
    """Reorders the rows of each head for rotary embedding: pairs (0, 1), (2, 3) to two halves."""

    head_dim: int

    def apply(self, stored: Stored) -> Stored:
        """Move the two rows of each rotated pair from side by side to half a head apart."""
        return move_rows(stored, self._move)

    def shape(self, shape: Shape) -> Shape:
        """Return `shape` unchanged: the step only reorders rows."""
        return shape

    def inverse(self) -> Step:
        """Return the step that moves the two rows of each rotated pair side by side again."""
        return PairRope(self.head_dim)

    def source(self, index: Index, shape: Shape) -> tuple[Index, Index]:
        """Return which part of the input to read: the whole heads that hold the rows of `index`.

        Also return the index that selects the requested rows from that part. `shape` is not needed.
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
    """Reorders the rows of each head for rotary embedding: two halves to pairs side by side."""

    def inverse(self) -> Step:
        """Return the step that moves the rows of each rotated pair half a head apart again."""
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
        """Add this step's constant to every value of a dense tensor; return the sums in float32."""
        if isinstance(stored, Packed):
            raise ValueError("a packed matrix cannot be shifted; expected a dense tensor")
        return stored.astype(np.float32) + np.float32(self.amount)

    def shape(self, shape: Shape) -> Shape:
        """Return `shape` unchanged."""
        return shape

    def inverse(self) -> Step:
        """Return the step that subtracts this step's constant."""
        return Shift(-self.amount)

    def source(self, index: Index, shape: Shape) -> tuple[Index, Index]:
        """Return `index` itself as the part of the input to read, since no value moves.

        Also return the index that selects the requested values from the converted part: all of
        them. `shape` is not needed.
        """
        del shape
        return index, whole(tuple(each.stop - each.start for each in index))


TRANSPOSE = Transpose()
TRANSPOSED = (TRANSPOSE,)  # the steps of a plain matrix that is stored as [out, in]


def arrange(stored: Stored, steps: Sequence[Step]) -> Stored:
    """Apply the steps to a stored tensor; return the result, which has the model's layout."""
    for step in steps:
        stored = step.apply(stored)
    return stored


def arranged_shape(shape: Shape, steps: Sequence[Step]) -> Shape:
    """Return the shape that a tensor of shape `shape` has after the steps."""
    for step in steps:
        shape = step.shape(shape)
    return shape


def inverted(steps: Sequence[Step]) -> tuple[Step, ...]:
    """Return the steps that turn a result of `steps` back into the stored tensor."""
    return tuple(step.inverse() for step in reversed(steps))


def arrange_part(part: Stored, steps: Sequence[Step], places: Sequence[Index]) -> Stored:
    """Apply the steps to `part` of a stored tensor, and return the requested part of the result.

    `part` may hold more than is requested. `places` has one index per step, which selects the
    requested part from the step's result. `sources` tells which part to read, and returns `places`.
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

    Also return one index per step, for `arrange_part`: it selects the requested part from the
    result of the step. `shape` is that of the whole stored tensor.
    """
    shapes = [shape]
    for step in steps[:-1]:
        shapes.append(step.shape(shapes[-1]))
    places: list[Index] = []
    for step, before in zip(reversed(steps), reversed(shapes), strict=False):
        index, place = step.source(index, before)
        places.append(place)
    return index, places[::-1]
