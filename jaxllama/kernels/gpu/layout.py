"""How the GPU body stores weights: matrices that read the same rows side by side."""

import dataclasses
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
    in_memory,
    placed_together,
)
from jaxllama.kernels.gpu.weights import JoinedWeight
from jaxllama.kernels.packed import Packed, dense_of, own_outputs
from jaxllama.shapes import Array
from jaxllama.sharding import RULES

FLOAT8_FROM = (8, 9)  # compute capability of Ada
APART = (GroupKind.QKV, GroupKind.GATE_UP, GroupKind.GATE_UP_APART)


def lay_out(group: MatrixGroup, to: Placement) -> list[Placed]:
    """Concatenate the matrices of a group, with their biases, and copy them to the devices.

    A group is matrices that multiply the same rows. `to` is the devices and the dtype of dense
    weights. The first weight of the result holds all; the others only say that they are part of it.
    """
    parts = to.mesh.shape["model"]
    embedding = group.kind is GroupKind.EMBEDDING
    # An embedding is stored [vocab, width]; its axes are (vocab, width).
    inward, outward = group.axes[::-1] if embedding else group.axes
    split_in = RULES[inward]
    matrices = [kept(in_memory(each), to, split_in, by_output=embedding) for each in group.matrices]
    biases: list[Any] = group.biases
    if group.kind in APART and parts > 1:
        matrices = [own_outputs(each, i, parts) for i in range(parts) for each in matrices]
        biases = [own_outputs(each, i, parts) for i in range(parts) for each in biases]
    runs = [list(run) for _, run in groupby(matrices, form_of)]
    if len(runs) > 1 and parts > 1:
        runs = [[dense(each, to) for each in matrices]]
    split_out = divided(RULES[outward], sum(outputs_of(m, embedding) for m in matrices), to.mesh)
    placed = tuple(
        place(side_by_side(run, embedding), (split_in, split_out), embedding, to.mesh)
        for run in runs
    )
    weight = JoinedWeight(
        placed,
        place_bias(biases, matrices, split_out, to.mesh, embedding),
        to.dtype,
        by_output=embedding,
        splits_inputs=split_in is not None and parts > 1,
    )
    return placed_together(weight, group.biases)


def kept(value: HostMatrix, to: Placement, split_in: str | None, *, by_output: bool) -> HostMatrix:
    """Convert a dense matrix to `to.dtype`; leave a packed one packed if the kernels can read it.

    `split_in` names the mesh axis over which its inputs are split, None: they are not. `by_output`:
    it is an embedding, [vocab, width] if dense. A float8 matrix becomes dense where the GPU cannot
    convert float8 numbers, and where devices would share a group of inputs, which has one scale.
    """
    if isinstance(value, Packed):
        parts = to.mesh.shape[split_in] if split_in else 1
        is_whole = value.shape[0] % (parts * value.group) == 0
        is_readable = not value.is_float8 or (is_whole and not lacks_float8(to.mesh))
        if is_readable and not (by_output and value.order is not None):
            return value
        value = dense_of(value).T if by_output else dense_of(value)
    return value.astype(jnp.dtype(to.dtype), copy=False)


def lacks_float8(mesh: Mesh) -> bool:
    """Say whether a mesh has GPUs that cannot convert float8 numbers, or whether that is unknown.

    On other devices the kernels are interpreted.
    """
    device = mesh.devices.flat[0]
    return device.platform == "gpu" and not converts_float8(str(device.compute_capability))


def converts_float8(capability: str) -> bool:
    """Say whether Triton converts float8 numbers on GPUs of a compute capability such as "8.9".

    Other GPUs than NVIDIA's have names such as "gfx942" there; they were not tried.
    """
    major, _, minor = capability.partition(".")
    return major.isdigit() and minor.isdigit() and (int(major), int(minor)) >= FLOAT8_FROM


def dense(value: HostMatrix, to: Placement) -> np.ndarray:
    """Unpack a packed matrix to [in, out] in `to.dtype`; return a dense one unchanged."""
    return dense_of(value).astype(jnp.dtype(to.dtype)) if isinstance(value, Packed) else value


def form_of(matrix: HostMatrix) -> object:
    """Return a key that is equal for matrices stored alike, which can be concatenated."""
    if not isinstance(matrix, Packed):
        return matrix.dtype
    order = None if matrix.order is None else np.asarray(matrix.order).tobytes()
    minima = None if matrix.minima is None else matrix.minima.dtype
    kinds = matrix.codes.dtype, matrix.scales.dtype, minima
    return matrix.bits, matrix.group, kinds, order


def outputs_of(matrix: HostMatrix, embedding: bool) -> int:
    """Return the number of outputs of a matrix; of an embedding, the number of tokens."""
    return matrix.shape[0] if embedding and not isinstance(matrix, Packed) else matrix.shape[1]


def divided(axis: str | None, outputs: int, mesh: Mesh) -> str | None:
    """Return `axis` if the devices along it divide the outputs evenly, else None.

    `axis` is the name of an axis of the mesh, or None; `outputs` is a number of outputs.
    """
    return axis if axis and outputs % mesh.shape[axis] == 0 else None


def side_by_side(run: list[HostMatrix], embedding: bool) -> HostMatrix:
    """Concatenate the matrices `run`, for which `form_of` is equal, along their outputs.

    `embedding`: they are embeddings, of which dense ones are [vocab, width].
    """
    first = run[0]
    if len(run) == 1:
        return first
    if not isinstance(first, Packed):
        return np.concatenate(
            [each for each in run if isinstance(each, np.ndarray)], axis=0 if embedding else 1
        )

    def together(name: str) -> np.ndarray:
        return np.concatenate([getattr(each, name) for each in run])

    minima = None if first.minima is None else together("minima")
    return dataclasses.replace(
        first, codes=together("codes"), scales=together("scales"), minima=minima
    )


def place(matrix: HostMatrix, split: Axes, embedding: bool, mesh: Mesh) -> Any:
    """Copy a matrix to the devices; `split` names the mesh axes of its inputs and outputs.

    None in `split`: not split. `embedding`: a dense matrix is [vocab, width], not [in, out]. Raises
    ConfigError if the inputs of a packed matrix cannot be split over the devices.
    """
    inward, outward = split

    def put(part: Any, *axes: str | None) -> Array:
        return jax.device_put(part, NamedSharding(mesh, PartitionSpec(*axes)))

    if not isinstance(matrix, Packed):
        return put(matrix, outward, inward) if embedding else put(matrix, inward, outward)
    parts = mesh.shape[inward] if inward else 1
    if parts > 1 and (matrix.shape[0] % (parts * matrix.group) or matrix.order is not None):
        raise ConfigError(
            f"a matrix of {matrix.shape[0]} inputs, of which {matrix.group} share scales, does not "
            f"divide over {inward}={parts}; choose another mesh or --kernels xla"
        )
    return dataclasses.replace(
        matrix,
        codes=put(matrix.codes, outward, inward),
        scales=put(matrix.scales, outward, inward),
        minima=None if matrix.minima is None else put(matrix.minima, outward, inward),
        order=None if matrix.order is None else put(matrix.order, None),
    )


def place_bias(
    biases: list[Any],
    matrices: list[HostMatrix],
    split_out: str | None,
    mesh: Mesh,
    embedding: bool,
) -> Array | None:
    """Concatenate the biases of some matrices and copy them to the devices; None if none has one.

    A matrix without a bias gets zeros. `split_out` names the mesh axis over which outputs are
    split, None: they are not. `embedding`: dense matrices are [vocab, width].
    """
    if all(each is None for each in biases):
        return None
    whole = np.concatenate(
        [
            np.zeros(outputs_of(matrix, embedding), np.float32)
            if bias is None
            else np.asarray(bias, np.float32)
            for bias, matrix in zip(biases, matrices, strict=True)
        ]
    )
    return jax.device_put(whole, NamedSharding(mesh, PartitionSpec(split_out)))
