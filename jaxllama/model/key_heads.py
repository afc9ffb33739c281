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

    With more devices than key/value heads, heads are stored several times, so that every device has
    one. Returns 1 if that is not needed, or if the heads cannot be divided evenly.
    """
    can_copy = parts % model.kv_heads == 0 and model.heads % parts == 0
    return parts // model.kv_heads if can_copy else 1


def with_copies(model: ModelConfig, parts: int) -> ModelConfig:
    """Return the model's config with as many key/value heads as `parts` devices store.

    With more devices than key/value heads, heads are stored several times; each copy counts as a
    head.
    """
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
    """Return a weight or bias of keys or values with each head repeated `copies` times.

    Heads lie side by side on the last axis; `size` is the size of a head. A matrix that is not yet
    read from its file is not read here either.
    """
    count = value.shape[-1] * copies
    if isinstance(value, UnreadMatrix):
        return UnreadMatrix((*value.shape[:-1], count), partial(read_copied, value, size, copies))
    return taken(value, sources(slice(0, count), size, copies))


def read_copied(
    matrix: UnreadMatrix, size: int, copies: int, index: tuple[slice, ...] | None
) -> HostMatrix:
    """Read a weight of keys or values, with each head repeated `copies` times.

    `size` is the size of a head. `index` selects a part of the result, None: all of it. Only the
    heads that the part needs are read from the file.
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
    """Return, for each output in the range `wanted`, its index in the original matrix.

    `wanted` is a range of outputs of the matrix with repeated heads. In that matrix, each head of
    `size` outputs is stored `copies` times side by side.
    """
    output = np.arange(wanted.start, wanted.stop)
    return output // (size * copies) * size + output % size


def taken(matrix: HostMatrix, outputs: np.ndarray) -> HostMatrix:
    """Select outputs of a matrix, or numbers of a bias vector, by their indices `outputs`."""
    if not isinstance(matrix, Packed):
        return np.take(matrix, outputs, axis=-1)
    return with_rows(matrix, lambda array: np.asarray(array)[outputs])
