"""Packed: a matrix in the few bits that its file stores, without loss.

Made by weight readers (as NumPy arrays), laid out by the bodies. Knows no file format.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxllama.shapes import Array, Float

Bits = Literal[4, 5, 6, 8]
FLOAT8_TYPES = tuple(map(jnp.dtype, (jnp.float8_e4m3fn, jnp.float8_e5m2)))  # of codes
Part = Any  # an Array in programs; NumPy from readers, a shape or sharding while a tree is built


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """A logical [in, out] matrix stored by output: weight = scale * code + minimum.

    A stack of matrices (experts) has one more axis before these, in every array.

    codes    bits 4: UInt8 [out, in/2], low nibble the even input; else Int8 [out, in], of which
             the kernels keep 5 or 6 bits: from 0 where there are minima, else around 0; bits 8
             may also be float8 numbers [out, in], of one of FLOAT8_TYPES
    scales   [out, in/group], float16 where that is exact, else float32
    minima   like scales, or None where the format has none; -zero * scale where it has zeros
    order    Int32 [in], or None: the input that the k-th stored one is (act-order GPTQ sorts them)
    """

    codes: Part
    scales: Part
    minima: Part | None
    bits: Bits = dataclasses.field(metadata={"static": True})
    group: int = dataclasses.field(metadata={"static": True})
    order: Part | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape [in, out]; a stack of matrices has its own axes before these."""
        *outer, out, stored = self.codes.shape
        return *outer, (stored * 2 if self.bits == 4 else stored), out  # noqa: PLR2004 - two per byte

    @property
    def is_float8(self) -> bool:
        """Say whether the codes are float8 numbers."""
        return holds_float8(self.codes)

    @property
    def nbytes(self) -> int:
        """Return the size of all arrays together, in bytes."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self))


def holds_float8(codes: Any) -> bool:
    """Say whether an array of codes, or a reference to one in a kernel, holds float8 numbers."""
    return codes.dtype in FLOAT8_TYPES


def in_order(packed: Packed, x: Float[Array, "L I"]) -> Float[Array, "L I"]:
    """Reorder the columns of `x` to the order in which the matrix stores its inputs."""
    return x if packed.order is None else x[:, packed.order]


def unpack_after(
    x: Float[Array, "L I"], packed: Packed
) -> tuple[Float[Array, "L I"], Float[Array, "O I"]]:
    """Unpack a matrix to [out, in], but not before its input `x` is computed; return (x, matrix).

    If unpacking did not depend on `x`, XLA would unpack all matrices ahead of the decode loop, and
    the copies would need more memory than a dense model.
    """
    x, packed = lax.optimization_barrier((x, packed))
    return x, unpack(packed)


def unpack(packed: Packed) -> Float[Array, "O I"]:
    """Unpack the matrix to float32 [out, in], exactly, with inputs in stored order."""
    outer = packed.codes.shape[:-1]
    codes = packed.codes
    if packed.bits == 4:  # noqa: PLR2004
        codes = jnp.stack([codes & 15, codes >> 4], axis=-1)
    grouped = codes.reshape(*outer, -1, packed.group).astype(jnp.float32)
    values = grouped * packed.scales.astype(jnp.float32)[..., None]
    if packed.minima is not None:
        values = values + packed.minima.astype(jnp.float32)[..., None]
    return values.reshape(*outer, -1)


def with_rows(packed: Packed, choose: Callable[[Any], Any]) -> Packed:
    """Return the matrix with only the outputs that `choose` selects, or with their order changed.

    `choose` gets each array of the matrix (codes, scales, minima), with the outputs as first axis,
    and returns the array to keep.
    """
    return dataclasses.replace(
        packed,
        codes=choose(packed.codes),
        scales=choose(packed.scales),
        minima=None if packed.minima is None else choose(packed.minima),
    )


def take_rows(packed: Packed, rows: Array) -> Float[Array, "L I"]:
    """Return the weights of the outputs with the indices `rows` in float32, such as embeddings.

    Raises ValueError if the matrix stores its inputs reordered, as act-order GPTQ does.
    """
    if packed.order is not None:
        raise ValueError("rows can be taken of a matrix whose inputs are in their own order only")
    return unpack(with_rows(packed, lambda array: array[rows]))


def dense_of(value: Packed) -> np.ndarray:
    """Return the packed matrix as dense [in, out] float32, on the host."""
    if len(value.shape) > 2:  # noqa: PLR2004 - a stack
        return np.stack([dense_of(one_of(value, i)) for i in range(value.shape[0])])
    width, out = value.shape
    groups = width // value.group
    matrix = np.empty((width, out), np.float32)
    codes = np.ascontiguousarray(value.codes.T)
    scales = value.scales.T.astype(np.float32)[:, None, :]
    minima = None if value.minima is None else value.minima.T.astype(np.float32)[:, None, :]
    halves = 2 if value.bits == 4 else 1  # noqa: PLR2004
    target = matrix.reshape(groups, value.group // halves, halves, out)
    for half in range(halves):
        part = codes if halves == 1 else (codes >> 4 if half else codes & 15)
        view = target[:, :, half, :]
        # Damaged files may hold infinity and NaN; the engine checks for that.
        with np.errstate(over="ignore", invalid="ignore"):
            np.multiply(part.reshape(groups, -1, out), scales, out=view)
        if minima is not None:
            view += minima
    if value.order is not None:
        matrix[np.asarray(value.order)] = matrix.copy()
    return matrix


def one_of(stack: Packed, place: int) -> Packed:
    """Return the matrix at index `place` of a stack of packed matrices, such as experts."""
    return dataclasses.replace(
        stack,
        codes=stack.codes[place],
        scales=stack.scales[place],
        minima=None if stack.minima is None else stack.minima[place],
        order=None if stack.order is None else stack.order[place],
    )


def own_outputs(value: Any, index: int, parts: int) -> Any:
    """Return part `index` of `parts` equal parts of a matrix along its outputs, or of a bias.

    `value` is the matrix, packed or dense, or the bias; None stays None.
    """
    if value is None:
        return None

    def cut(array: np.ndarray, axis: int) -> np.ndarray:
        return np.split(array, parts, axis)[index]

    if isinstance(value, Packed):
        minima = None if value.minima is None else cut(value.minima, 0)
        return dataclasses.replace(
            value, codes=cut(value.codes, 0), scales=cut(value.scales, 0), minima=minima
        )
    return cut(value, value.ndim - 1)
