"""How the plain body stores weights: each matrix by itself, placed by the rules of the mesh."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxllama.kernels.body import GroupKind, HostMatrix, MatrixGroup, Placed, Placement
from jaxllama.kernels.packed import Packed, dense_of
from jaxllama.kernels.plain.weights import DenseWeight, PackedWeight
from jaxllama.shapes import Array
from jaxllama.sharding import shard_shape

Axes = tuple[str | None, str | None]


def lay_out(group: MatrixGroup, to: Placement) -> list[Placed]:
    """Place every matrix and bias; packed matrices are unpacked unless they shall stay packed."""
    by_output = group.kind is GroupKind.EMBEDDING
    return [
        Placed(weight_of(matrix, group.axes, to, by_output=by_output), placed_bias(bias, group, to))
        for matrix, bias in zip(group.matrices, group.biases, strict=True)
    ]


def weight_of(
    matrix: HostMatrix, axes: Axes, to: Placement, *, by_output: bool
) -> DenseWeight | PackedWeight:
    """Place one matrix."""
    if isinstance(matrix, Packed):
        if to.packed:
            return PackedWeight(
                place_packed(matrix, axes[::-1] if not by_output else axes, to.mesh)
            )
        matrix = dense_of(matrix).T if by_output else dense_of(matrix)
    where = shard_shape(to.mesh, matrix.shape, axes)
    array = jax.device_put(np.ascontiguousarray(matrix, jnp.dtype(to.dtype)), where)
    return DenseWeight(array, by_output)


def placed_bias(bias: np.ndarray | None, group: MatrixGroup, to: Placement) -> Array | None:
    """Place one bias; vectors are few, and numerics need them in float32."""
    if bias is None:
        return None
    where = shard_shape(to.mesh, bias.shape, group.axes[1:])
    return jax.device_put(np.ascontiguousarray(bias, np.float32), where)


def place_packed(value: Packed, axes: Axes, mesh: Mesh) -> Packed:
    """Place every part of a packed matrix; `axes` name the axes of its [out, in] form."""

    def put(part: Any) -> Array:
        return jax.device_put(part, shard_shape(mesh, part.shape, axes))

    minima = None if value.minima is None else put(value.minima)
    order = None
    if value.order is not None:
        order = jax.device_put(value.order, shard_shape(mesh, value.order.shape, (None,)))
    return dataclasses.replace(
        value, codes=put(value.codes), scales=put(value.scales), minima=minima, order=order
    )
