"""Parcels: many small host arrays that go to a device as one.

Made by `programs.py` of the row that begins to decode: handing over sixty arrays takes longer than
the program they are for. Knows no row.
"""

import math
from typing import Any, TypeVar

import jax
import numpy as np

from jaxllama.shapes import Array, UInt8

T = TypeVar("T")


def pack(tree: Any) -> np.ndarray:
    """The bytes of all leaves, one after the other."""
    return np.frombuffer(b"".join(leaf.tobytes() for leaf in jax.tree.leaves(tree)), np.uint8)


def size_of(like: Any) -> int:
    """How many bytes a parcel of such a tree has."""
    return sum(map(bytes_of, jax.tree.leaves(like)))


def unpack(parcel: UInt8[Array, " B"], like: T) -> T:
    """The tree, `like` having its shapes and types; inside a program."""
    leaves, begin = [], 0
    for leaf in jax.tree.leaves(like):
        end = begin + bytes_of(leaf)
        leaves.append(read(parcel[begin:end], leaf.shape, np.dtype(leaf.dtype)))
        begin = end
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def bytes_of(leaf: Any) -> int:
    """Of one array."""
    return math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize


def read(raw: UInt8[Array, " B"], shape: tuple[int, ...], dtype: np.dtype) -> Array:
    """One array of its bytes."""
    if dtype == np.bool_:
        return raw.reshape(shape) != 0
    if dtype.itemsize == 1:
        return jax.lax.bitcast_convert_type(raw.reshape(shape), dtype)
    return jax.lax.bitcast_convert_type(raw.reshape(*shape, dtype.itemsize), dtype)
