"""From the canonical tree to what the programs run on: dtype, unpacking, place on the mesh.

Called once per weight while a checkpoint is loaded. The only code that knows both how weights are
kept in files' terms and how the chosen operations want them.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxllama.model.params import Leaf
from jaxllama.model.quantized import Packed
from jaxllama.shapes import Array
from jaxllama.sharding import shard_shape


def place(leaf: Leaf, value: np.ndarray | Packed, mesh: Mesh, dtype: str) -> Array | Packed:
    """One weight on its devices; a Packed one stays packed."""
    if isinstance(value, Packed):
        return place_packed(leaf, value, mesh)
    # Vectors (norms, biases) are few and numerics ask for them in float32.
    wanted = jnp.dtype(dtype) if leaf.is_matrix else jnp.dtype("float32")
    where = shard_shape(mesh, leaf.shape, leaf.axes)
    return jax.device_put(np.ascontiguousarray(value, wanted), where)


def place_packed(leaf: Leaf, value: Packed, mesh: Mesh) -> Packed:
    """Every part is stored by output, so its axes are the logical ones reversed."""
    axes = leaf.axes if leaf.axes[0] == "vocab" else leaf.axes[::-1]

    def put(part: Any) -> Array:
        return jax.device_put(part, shard_shape(mesh, part.shape, axes))

    minima = None if value.minima is None else put(value.minima)
    return dataclasses.replace(
        value, codes=put(value.codes), scales=put(value.scales), minima=minima
    )


def unpacked(leaf: Leaf, value: Packed) -> np.ndarray:
    """The dense canonical matrix, float32, exactly what the packed one means."""
    width, out = value.shape
    groups = width // value.group
    dense = np.empty((width, out), np.float32)
    codes = np.ascontiguousarray(value.codes.T)
    scales = value.scales.T.astype(np.float32)[:, None, :]
    minima = None if value.minima is None else value.minima.T.astype(np.float32)[:, None, :]
    halves = 2 if value.bits == 4 else 1  # noqa: PLR2004
    target = dense.reshape(groups, value.group // halves, halves, out)
    for half in range(halves):
        part = codes if halves == 1 else (codes >> 4 if half else codes & 15)
        view = target[:, :, half, :]
        np.multiply(part.reshape(groups, -1, out), scales, out=view)
        if minima is not None:
            view += minima
    return dense.T if leaf.axes[0] == "vocab" else dense
