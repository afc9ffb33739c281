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

APART = (GroupKind.QKV, GroupKind.GATE_UP, GroupKind.GATE_UP_APART)


def lay_out(group: MatrixGroup, to: Placement) -> list[Placed]:
    """Join a group; the first weight holds all of it, biases included."""
    parts = to.mesh.shape["model"]
    embedding = group.kind is GroupKind.EMBEDDING
    matrices = [kept(in_memory(each), to, by_output=embedding) for each in group.matrices]
    biases: list[Any] = group.biases
    if group.kind in APART and parts > 1:
        matrices = [own_outputs(each, i, parts) for i in range(parts) for each in matrices]
        biases = [own_outputs(each, i, parts) for i in range(parts) for each in biases]
    runs = [list(run) for _, run in groupby(matrices, form_of)]
    if len(runs) > 1 and parts > 1:
        runs = [[dense(each, to) for each in matrices]]
    # An embedding is stored [vocab, width]; its axes are (vocab, width).
    inward, outward = group.axes[::-1] if embedding else group.axes
    split_out = divided(RULES[outward], sum(outputs_of(m, embedding) for m in matrices), to.mesh)
    split_in = RULES[inward]
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


def kept(value: HostMatrix, to: Placement, *, by_output: bool) -> HostMatrix:
    """Return a packed matrix as it is, a dense one in the type asked for."""
    if isinstance(value, Packed):
        if not (by_output and value.order is not None):
            return value
        value = dense_of(value).T
    return value.astype(jnp.dtype(to.dtype), copy=False)


def dense(value: HostMatrix, to: Placement) -> np.ndarray:
    """Return a matrix as dense [in, out]."""
    return dense_of(value).astype(jnp.dtype(to.dtype)) if isinstance(value, Packed) else value


def form_of(matrix: HostMatrix) -> object:
    """Return a key that is equal for matrices that can lie side by side."""
    if not isinstance(matrix, Packed):
        return matrix.dtype
    order = None if matrix.order is None else np.asarray(matrix.order).tobytes()
    kinds = matrix.scales.dtype, None if matrix.minima is None else matrix.minima.dtype
    return matrix.bits, matrix.group, kinds, order


def outputs_of(matrix: HostMatrix, embedding: bool) -> int:
    """Return the number of outputs of a matrix: rows of the vocabulary, of an embedding."""
    return matrix.shape[0] if embedding and not isinstance(matrix, Packed) else matrix.shape[1]


def divided(axis: str | None, outputs: int, mesh: Mesh) -> str | None:
    """Return the mesh axis that splits so many outputs; None if they do not divide."""
    return axis if axis and outputs % mesh.shape[axis] == 0 else None


def side_by_side(run: list[HostMatrix], embedding: bool) -> HostMatrix:
    """Join matrices of one form along their outputs."""
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
    """Place a joined matrix on its devices; `split`: the mesh axes of inputs and outputs."""
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
    """Place the joined biases of all matrices, zeros where a matrix has none; None without any."""
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
