"""Parcels: many small host arrays packed into one, to pass them to a device together.

`programs.py` packs the row that starts to decode: passing sixty arrays takes longer than the
program that needs them. Knows nothing of rows.
"""

import math
from typing import Any, TypeVar

import jax
import numpy as np

from jaxllama.shapes import Array, UInt8

T = TypeVar("T")


def pack(tree: Any) -> np.ndarray:
    """Concatenate the bytes of all arrays of a tree into one uint8 array.

    An array that is packed already comes back unchanged.
    """
    return np.frombuffer(b"".join(leaf.tobytes() for leaf in jax.tree.leaves(tree)), np.uint8)


def size_of(like: Any) -> int:
    """Return how many bytes `pack` makes of a tree with the shapes and types of `like`."""
    return sum(map(bytes_of, jax.tree.leaves(like)))


def unpack(parcel: UInt8[Array, " B"], like: T) -> T:
    """Convert a parcel, the bytes that `pack` made, to a tree like `like`; traceable by JAX.

    `like` has the shapes and types of the arrays.
    """
    leaves, begin = [], 0
    for leaf in jax.tree.leaves(like):
        end = begin + bytes_of(leaf)
        leaves.append(read(parcel[begin:end], leaf.shape, np.dtype(leaf.dtype)))
        begin = end
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def bytes_of(leaf: Any) -> int:
    """Return the number of bytes of one array."""
    return math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize


def read(raw: UInt8[Array, " B"], shape: tuple[int, ...], dtype: np.dtype) -> Array:
    """Convert raw bytes to an array of this shape and type, in code that JAX traces."""
    if dtype == np.bool_:
        return raw.reshape(shape) != 0
    if dtype.itemsize == 1:
        return jax.lax.bitcast_convert_type(raw.reshape(shape), dtype)
    return jax.lax.bitcast_convert_type(raw.reshape(*shape, dtype.itemsize), dtype)
