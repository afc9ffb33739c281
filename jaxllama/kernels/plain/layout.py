"""How the plain body stores weights: each matrix by itself, placed by the rules of the mesh."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxllama.kernels.body import (
    Axes,
    GroupKind,
    HostMatrix,
    MatrixGroup,
    Placed,
    Placement,
    UnreadMatrix,
    in_memory,
)
from jaxllama.kernels.packed import Packed, dense_of
from jaxllama.kernels.plain.weights import DenseExperts, DenseWeight, PackedWeight
from jaxllama.shapes import Array
from jaxllama.sharding import place, shard_shape


def lay_out(group: MatrixGroup, to: Placement) -> list[Placed]:
    """Copy every matrix and bias of a group to the devices, each by itself.

    A group is matrices that multiply the same rows. `to` is the devices and the dtype. Packed
    matrices are unpacked unless `to.packed`; those of experts always.
    """
    if group.kind in (GroupKind.EXPERT, GroupKind.EXPERT_GATE_UP):
        return [
            Placed(experts_of(in_memory(each), group.axes, to), None) for each in group.matrices
        ]
    by_output = group.kind is GroupKind.EMBEDDING
    return [
        Placed(placed(matrix, group.axes, to, by_output=by_output), placed_bias(bias, group, to))
        for matrix, bias in zip(group.matrices, group.biases, strict=True)
    ]


def placed(
    matrix: HostMatrix | UnreadMatrix, axes: Axes, to: Placement, *, by_output: bool
) -> DenseWeight | PackedWeight:
    """Copy one matrix to the devices, split by the sharding rules for its axes.

    A matrix that is still in its file is read part by part, so that host memory holds only one
    part. `by_output`: the matrix is an embedding [vocab, width], else it is [in, out]; `axes` has
    the logical names of these two axes. `to` is the devices and the dtype.
    """
    if isinstance(matrix, UnreadMatrix):
        if not must_be_whole(matrix, axes, to, by_output=by_output):
            return weight_in_parts(matrix, axes, to, by_output=by_output)
        matrix = matrix.read(None)
    return weight_of(matrix, axes, to, by_output=by_output)


def weight_of(
    matrix: HostMatrix, axes: Axes, to: Placement, *, by_output: bool
) -> DenseWeight | PackedWeight:
    """Convert one matrix to a weight and copy it to the devices, split by the sharding rules.

    `by_output`: the matrix is an embedding [vocab, width], else it is [in, out]; `axes` has the
    logical names of these two axes. `to` is the devices and the dtype.
    """
    held = prepared(matrix, to, by_output=by_output)
    if isinstance(held, PackedWeight):
        by_axis = axes if by_output else axes[::-1]
        return PackedWeight(place_packed(held.packed, by_axis, to.mesh))
    where = shard_shape(to.mesh, held.array.shape, axes)
    return DenseWeight(place(held.array, where), by_output)


def must_be_whole(matrix: UnreadMatrix, axes: Axes, to: Placement, *, by_output: bool) -> bool:
    """Say whether a matrix has to be read whole because devices cannot read their parts alone.

    That is so if the inputs are split over devices and are stored reordered, or if the split
    separates inputs that share a scale. Reads one output to find out. `by_output`: the matrix is an
    embedding [vocab, width], else it is [in, out]; `axes` has the logical names of these two axes.
    `to` names the devices.
    """
    inward = 1 if by_output else 0
    split = shard_shape(to.mesh, matrix.shape, axes).shard_shape(matrix.shape)[inward]
    if split == matrix.shape[inward]:
        return False
    one, each = slice(0, 1), slice(0, None)
    sample = matrix.read((one, each) if by_output else (each, one))
    return isinstance(sample, Packed) and (sample.order is not None or split % sample.group != 0)


def weight_in_parts(
    matrix: UnreadMatrix, axes: Axes, to: Placement, *, by_output: bool
) -> DenseWeight | PackedWeight:
    """Read from its file the part of a matrix for each device, and assemble the weight.

    A part that several devices hold is read once. `by_output`: the matrix is an embedding [vocab,
    width], else it is [in, out]; `axes` has the logical names of these two axes. `to` is the
    devices and the dtype.
    """
    where = shard_shape(to.mesh, matrix.shape, axes)
    parts = []
    for index, devices in devices_by_part(where, matrix.shape):
        held = prepared(matrix.read(index), to, by_output=by_output)
        parts += [jax.device_put(held, device) for device in devices]
    counts = zip(axes, matrix.shape, where.shard_shape(matrix.shape), strict=True)
    cuts = {None: 1} | {axis: full // part for axis, full, part in counts}
    by_axis = axes if by_output or isinstance(parts[0], DenseWeight) else axes[::-1]

    def assemble(*arrays: Array) -> Array:
        split = by_axis if arrays[0].ndim == len(by_axis) else (None,)  # the order of inputs
        shape = tuple(size * cuts[axis] for size, axis in zip(arrays[0].shape, split, strict=True))
        placement = shard_shape(to.mesh, shape, split)
        return jax.make_array_from_single_device_arrays(shape, placement, list(arrays))

    assembled: DenseWeight | PackedWeight = jax.tree.map(assemble, *parts)
    return assembled


def devices_by_part(
    where: NamedSharding, shape: tuple[int, ...]
) -> Iterator[tuple[tuple[slice, ...], list[jax.Device]]]:
    """Yield (slices, devices) for every part of an array that this machine's devices hold.

    `shape` is the array's shape, `where` its sharding; `slices` select the part.
    """
    found: dict[tuple[tuple[int | None, int | None], ...], list[jax.Device]] = {}
    for device, index in where.addressable_devices_indices_map(shape).items():
        found.setdefault(tuple((each.start, each.stop) for each in index or ()), []).append(device)
    for ends, devices in found.items():
        yield tuple(slice(*each) for each in ends), devices


def prepared(matrix: HostMatrix, to: Placement, *, by_output: bool) -> DenseWeight | PackedWeight:
    """Convert a matrix, or a part of one, to the weight that programs use, still on the host.

    `to` says the dtype and whether packed matrices stay packed. `by_output`: the matrix is an
    embedding [vocab, width], else it is [in, out].
    """
    if isinstance(matrix, Packed):
        if to.packed:
            return PackedWeight(matrix)
        matrix = dense_of(matrix).T if by_output else dense_of(matrix)
    return DenseWeight(np.ascontiguousarray(matrix, jnp.dtype(to.dtype)), by_output)


def experts_of(matrices: HostMatrix, axes: Axes, to: Placement) -> DenseExperts:
    """Copy the matrices [experts, in, out] to the devices, unpacked, as one array.

    `to` is the devices and the dtype. `axes` are the logical axes of the inputs and outputs of one
    expert's matrix.
    """
    dense = dense_of(matrices) if isinstance(matrices, Packed) else matrices
    where = shard_shape(to.mesh, dense.shape, ("experts", *axes))
    return DenseExperts(place(np.ascontiguousarray(dense, jnp.dtype(to.dtype)), where))


def placed_bias(bias: np.ndarray | None, group: MatrixGroup, to: Placement) -> Array | None:
    """Copy a bias to the devices in `to` as float32; None stays None.

    It is split over the devices like the outputs of its matrix, which is one of `group`.
    """
    if bias is None:
        return None
    where = shard_shape(to.mesh, bias.shape, group.axes[1:])
    return place(np.ascontiguousarray(bias, np.float32), where)


def place_packed(value: Packed, axes: Axes, mesh: Mesh) -> Packed:
    """Copy the arrays of a packed matrix, stored [out, in], to the devices of a mesh.

    `axes` are the logical axes of its outputs and inputs, in this order.
    """

    def put(part: Any) -> Array:
        return place(part, shard_shape(mesh, part.shape, axes))

    minima = None if value.minima is None else put(value.minima)
    order = None
    if value.order is not None:
        order = place(value.order, shard_shape(mesh, value.order.shape, (None,)))
    return dataclasses.replace(
        value, codes=put(value.codes), scales=put(value.scales), minima=minima, order=order
    )
