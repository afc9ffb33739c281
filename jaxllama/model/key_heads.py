"""Copies of key/value heads, for a mesh with more devices than the model has such heads.

A device of the mesh axis `model` holds whole heads. Where there are fewer key/value heads than
devices, each is stored several times side by side, so that every device has the one that its query
heads use. Used where weights are loaded and where the programs' sizes are decided.
"""

from dataclasses import replace
from functools import partial
from typing import overload

import numpy as np

from jaxllama.config import ModelConfig
from jaxllama.kernels.body import HostMatrix, UnreadMatrix
from jaxllama.kernels.packed import Packed, with_rows


def copies_of_heads(model: ModelConfig, parts: int) -> int:
    """Return how often each key/value head is stored if `parts` devices share the model.

    That is once for a number of devices over which the heads cannot be spread; `make_mesh` refuses
    it.
    """
    can_copy = parts % model.kv_heads == 0 and model.heads % parts == 0
    return parts // model.kv_heads if can_copy else 1


def with_copies(model: ModelConfig, parts: int) -> ModelConfig:
    """Return the model's config as `parts` devices compute it: copies of heads count as heads."""
    copies = copies_of_heads(model, parts)
    return model if copies == 1 else replace(model, kv_heads=model.kv_heads * copies)


@overload
def copied_heads(value: np.ndarray, size: int, copies: int) -> np.ndarray: ...


@overload
def copied_heads(
    value: HostMatrix | UnreadMatrix, size: int, copies: int
) -> HostMatrix | UnreadMatrix: ...


def copied_heads(
    value: HostMatrix | UnreadMatrix, size: int, copies: int
) -> HostMatrix | UnreadMatrix:
    """Return a weight or bias of keys or values with each head in its last axis `copies` times.

    `size` is the size of a head.
    """
    count = value.shape[-1] * copies
    if isinstance(value, UnreadMatrix):
        return UnreadMatrix((*value.shape[:-1], count), partial(read_copied, value, size, copies))
    return taken(value, sources(slice(0, count), size, copies))


def read_copied(
    matrix: UnreadMatrix, size: int, copies: int, index: tuple[slice, ...] | None
) -> HostMatrix:
    """Read part `index` of what `copied_heads` returns for an unread matrix; None: all of it.

    Of the file, only the heads are read that have copies in the part.
    """
    if index is None:
        whole = matrix.read(None)
        return taken(whole, sources(slice(0, matrix.shape[-1] * copies), size, copies))
    *outer, last = index
    wanted = sources(last, size, copies)
    first = int(wanted.min())
    part = matrix.read((*outer, slice(first, int(wanted.max()) + 1)))
    return taken(part, wanted - first)


def sources(wanted: slice, size: int, copies: int) -> np.ndarray:
    """Return, for each output in the range `wanted`, the output of the model that it is a copy of.

    `size` is the size of a head, which is stored `copies` times.
    """
    output = np.arange(wanted.start, wanted.stop)
    return output // (size * copies) * size + output % size


def taken(matrix: HostMatrix, outputs: np.ndarray) -> HostMatrix:
    """Select outputs of a matrix by index; of a vector (a bias), its numbers."""
    if not isinstance(matrix, Packed):
        return np.take(matrix, outputs, axis=-1)
    return with_rows(matrix, lambda array: np.asarray(array)[outputs])
