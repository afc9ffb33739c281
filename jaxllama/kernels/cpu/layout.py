"""How the C++ body stores weights: in tiles, matrices that read the same rows side by side."""

import dataclasses
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxllama.errors import ConfigError
from jaxllama.kernels.body import (
    Axes,
    GroupKind,
    HostMatrix,
    MatrixGroup,
    Placed,
    Placement,
    UnreadMatrix,
    in_memory,
    placed_together,
)
from jaxllama.kernels.cpu.tiled import Tiled
from jaxllama.kernels.cpu.tiling import can_tile, tile, tile_pair
from jaxllama.kernels.cpu.weights import TiledExperts, TiledWeight
from jaxllama.kernels.packed import Packed, dense_of, own_outputs
from jaxllama.shapes import Array
from jaxllama.sharding import RULES, place

STORED = "stored"  # dtype of dense weights: each file's own


APART = (GroupKind.QKV, GroupKind.GATE_UP_APART)  # groups whose outputs are returned one by one

# Groups of matrices of experts, and the kinds that they have when the experts lie side by side.
EXPERTS = {GroupKind.EXPERT: GroupKind.SINGLE, GroupKind.EXPERT_GATE_UP: GroupKind.GATE_UP}


def lay_out(group: MatrixGroup, to: Placement) -> list[Placed]:
    """Store the matrices of a group in tiles of 32 outputs, and copy them to the devices.

    A group is matrices that multiply the same rows; the first weight of the result holds all its
    matrices and biases. `to` is the devices and the dtype of dense weights.
    """
    axes = group.axes[::-1] if group.kind is GroupKind.EMBEDDING else group.axes
    weight: TiledWeight | TiledExperts
    if group.kind in EXPERTS:
        (tiled,) = tiles_of(experts_side_by_side(group), to)
        count = group.matrices[0].shape[0]
        weight = TiledExperts(place_tiled(tiled, axes, to.mesh), count)
    else:
        parts = tuple(place_tiled(each, axes, to.mesh) for each in tiles_of(group, to))
        splits_inputs = RULES[axes[0]] is not None and group.kind is GroupKind.SINGLE
        weight = TiledWeight(parts, splits_inputs)
    return placed_together(weight, group.biases)


def tiles_of(group: MatrixGroup, to: Placement) -> list[Tiled]:
    """Tile the matrices of a group: weights of 32 outputs lie together, as the kernels read them.

    A group is matrices that multiply the same rows. Returns one set of tiles, in which matrices of
    different storage (dtype, bits) become float32. If the group's outputs are used apart, as
    queries, keys and values are, returns one set per kind of storage instead. On several devices,
    there is one set, in which each device has its part of the queries, keys and values. `to` is the
    devices and the dtype of dense weights.
    """
    parts = to.mesh.shape["model"]
    embedding = group.kind is GroupKind.EMBEDDING
    given = [in_memory(each) for each in group.matrices]
    matrices = [kept(each, to.dtype, by_output=embedding) for each in given]
    biases: list[Any] = group.biases
    runs = [list(run) for _, run in groupby(range(len(matrices)), lambda i: kind_of(matrices[i]))]
    if len(runs) > 1 and group.kind in APART and parts == 1:
        return [side_by_side(tile, matrices, biases, run) for run in runs]
    if len(runs) > 1:
        matrices = [widened(each) for each in matrices]
    if embedding and isinstance(matrices[0], np.ndarray):
        matrices = [matrices[0].T]
    if group.kind in APART and parts > 1:
        matrices = [own_outputs(each, i, parts) for i in range(parts) for each in matrices]
        biases = [own_outputs(each, i, parts) for i in range(parts) for each in biases]
    how = tile_pair if group.kind is GroupKind.GATE_UP else tile
    return [side_by_side(how, matrices, biases, range(len(matrices)))]


def experts_side_by_side(group: MatrixGroup) -> MatrixGroup:
    """Return the group with one matrix [in, experts * out] for each stack [experts, in, out]."""

    def joined(value: HostMatrix) -> HostMatrix:
        if not isinstance(value, Packed):
            return np.concatenate(list(value), axis=1)
        parts = (value.codes, value.scales, value.minima)
        codes, scales, minima = (
            None if part is None else part.reshape(-1, part.shape[-1]) for part in parts
        )
        return dataclasses.replace(value, codes=codes, scales=scales, minima=minima)

    matrices: list[HostMatrix | UnreadMatrix] = [joined(in_memory(each)) for each in group.matrices]
    return group._replace(kind=EXPERTS[group.kind], matrices=matrices)


def kept(value: HostMatrix, dtype: str, *, by_output: bool) -> HostMatrix:
    """Return the matrix `value` in a form that the kernels take.

    A packed (quantized) matrix stays as it is if the kernels take it. Otherwise it becomes dense:
    [in, out], or [out, in] with `by_output`. A dense matrix, and a float8 one, for which there are
    no tiles, is converted to `dtype`; STORED: dense ones keep theirs, and float8 becomes float32.
    """
    if isinstance(value, Packed):
        if not value.is_float8 and can_tile(value):
            return value
        dense = dense_of(value).T if by_output else dense_of(value)
        if not value.is_float8:
            return dense
        value = dense
    return value if dtype == STORED else value.astype(jnp.dtype(dtype))


def kind_of(matrix: HostMatrix) -> object:
    """Return a key that is equal for matrices that can be stored in the same tiles.

    A tile holds the weights of 32 outputs.
    """
    if not isinstance(matrix, Packed):
        return matrix.dtype
    order = order_of(matrix)
    return matrix.bits, matrix.group, None if order is None else order.tobytes()


def side_by_side(
    how: Callable[..., Tiled], matrices: list[HostMatrix], biases: list[Any], which: Sequence[int]
) -> Tiled:
    """Store some matrices and their biases as one matrix in the layout of the C++ kernels.

    Their outputs lie side by side. `which` has their indices in `matrices`; all must be stored
    alike. `how` is the function for the layout: `tile`, or `tile_pair` for gate and up, whose
    outputs alternate. `biases` has one entry per matrix, None if it has no bias.
    """
    added = [biases[i] for i in which]
    return how(
        *(matrices[i] for i in which),
        biases=added if any(bias is not None for bias in added) else (),
        order=order_of(matrices[which[0]]),
    )


def widened(matrix: HostMatrix) -> np.ndarray:
    """Convert a matrix, packed or dense, to dense float32."""
    return dense_of(matrix) if isinstance(matrix, Packed) else matrix.astype(np.float32)


def order_of(matrix: HostMatrix) -> np.ndarray | None:
    """Return the input index of each stored row of a matrix; None if rows are in input order."""
    if not isinstance(matrix, Packed) or matrix.order is None:
        return None
    return np.asarray(matrix.order)


def place_tiled(tiled: Tiled, axes: Axes, mesh: Mesh) -> Tiled:
    """Place a tiled matrix on the devices of a mesh, split by outputs or by inputs.

    `axes` are the logical names of its input axis and its output axis, which decide how it is
    split. Raises ConfigError if the matrix does not divide over the devices.
    """
    inward, outward = axes
    by_output, by_input = RULES[outward], RULES[inward]
    if outward == "vocab" and tiled.shape[1] % (tiled.tile * mesh.shape["model"]):
        by_output = None  # stays whole
    if by_input is not None and tiled.shape[0] % (tiled.shared * mesh.shape[by_input]):
        raise ConfigError(
            f"a matrix of {tiled.shape[0]} inputs, of which {tiled.shared} share scales, does not "
            f"divide over {by_input}={mesh.shape[by_input]}; choose another mesh or --kernels xla"
        )
    if by_input is not None and tiled.order is not None and mesh.shape[by_input] > 1:
        raise ConfigError(
            f"a matrix whose {tiled.shape[0]} inputs are sorted does not divide over "
            f"{by_input}={mesh.shape[by_input]}; choose another mesh or --kernels xla"
        )

    def put(part: Any) -> Array:
        split = PartitionSpec(by_output, None if part is tiled.bias else by_input)
        whole = part is tiled.order
        return place(part, NamedSharding(mesh, PartitionSpec() if whole else split))

    return jax.tree.map(put, tiled)
