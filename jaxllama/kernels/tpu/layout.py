"""How the TPU body stores weights: matrices that read the same rows as one, split by device."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxllama.kernels.body import (
    GroupKind,
    HostMatrix,
    InGroup,
    MatrixGroup,
    Placed,
    Placement,
    in_memory,
)
from jaxllama.kernels.packed import Packed, dense_of
from jaxllama.kernels.plain.layout import experts_of, placed_bias
from jaxllama.kernels.tpu.grouped import GroupedMatrix, can_group, grouped, zero_of
from jaxllama.kernels.tpu.weights import DenseStorage, GroupWeight, PackedStorage
from jaxllama.sharding import RULES

EXPERTS = (GroupKind.EXPERT, GroupKind.EXPERT_GATE_UP)


@dataclasses.dataclass(frozen=True)
class Split:
    """The division of a matrix [in, out] over the devices: by inputs, by outputs, or none."""

    parts: int
    inputs: bool
    outputs: bool

    def cut(self, array: np.ndarray, index: int, axis: int) -> np.ndarray:
        """Split an array along an axis into one part per device; return part `index`."""
        return np.split(array, self.parts, axis)[index]

    def of(self, matrix: HostMatrix, index: int) -> HostMatrix:
        """Return the part of a matrix [in, out] that belongs to device `index` of the mesh.

        The whole matrix if it is not split.
        """
        if not (self.inputs or self.outputs):
            return matrix
        if not isinstance(matrix, Packed):
            return self.cut(matrix, index, 0 if self.inputs else 1)
        axis = 1 if self.inputs else 0  # packed arrays are [out, in]
        minima = None if matrix.minima is None else self.cut(matrix.minima, index, axis)
        return dataclasses.replace(
            matrix,
            codes=self.cut(matrix.codes, index, axis),
            scales=self.cut(matrix.scales, index, axis),
            minima=minima,
        )

    def place(self, parts: Sequence[np.ndarray], mesh: Mesh) -> jax.Array:
        """Copy a matrix [in, out], given in parts, to the devices along the mesh axis `model`.

        `parts` has one array per device; a matrix that is not split has one part, which every
        device gets.
        """
        axis = 0 if self.inputs else 1
        where = ("model" if self.inputs else None, "model" if self.outputs else None)
        whole = parts[0] if len(parts) == 1 else np.concatenate(list(parts), axis)
        return jax.device_put(whole, NamedSharding(mesh, PartitionSpec(*where)))


def lay_out(group: MatrixGroup, to: Placement) -> list[Placed]:
    """Copy a group of matrices to the devices; return the stored weight and bias of each.

    A group is matrices that multiply the same rows. If all are stored alike, they become one
    weight: the first result has it, and the others have the mark `InGroup` in its place. `to` is
    the devices and the dtype of dense weights. Packed matrices stay packed if the kernels can read
    them; those of experts are unpacked.
    """
    matrices = [in_memory(each) for each in group.matrices]
    if group.kind in EXPERTS:
        return [Placed(experts_of(each, group.axes, to), None) for each in matrices]
    biases = [placed_bias(each, group, to) for each in group.biases]
    if group.kind is GroupKind.EMBEDDING:
        return [Placed(embedding_of(matrices[0], to), biases[0])]
    split = split_of(matrices, group, to.mesh)
    stored = [readable(each, split) for each in matrices]
    if len({form_of(each) for each in stored}) > 1 or any(has_order(each) for each in stored[1:]):
        weights: list[Any] = [joined([each], split, to) for each in stored]
    else:
        weights = [joined(stored, split, to), *(InGroup(),) * (len(stored) - 1)]
    return [Placed(*pair) for pair in zip(weights, biases, strict=True)]


def split_of(matrices: Sequence[HostMatrix], group: MatrixGroup, mesh: Mesh) -> Split:
    """Decide how the devices of a mesh divide `matrices`, which multiply the same rows.

    `group` names the logical axes of the matrices, to which the sharding rules apply.
    """
    inward, outward = group.axes
    parts = mesh.shape["model"]
    inputs = RULES[inward] == "model" and parts > 1
    outputs = RULES[outward] == "model" and parts > 1
    outputs = outputs and not any(each.shape[1] % parts for each in matrices)
    return Split(parts if inputs or outputs else 1, inputs, outputs)


def readable(matrix: HostMatrix, split: Split) -> HostMatrix:
    """Unpack a packed matrix unless the kernels can read each device's part of it.

    `split` says how the devices divide it. A dense matrix is returned unchanged.
    """
    if not isinstance(matrix, Packed):
        return matrix
    if split.inputs and (
        matrix.order is not None or matrix.shape[0] % (matrix.group * split.parts)
    ):
        return dense_of(matrix)
    return matrix if can_group(own_part(matrix, split)) else dense_of(matrix)


def own_part(matrix: Packed, split: Split) -> Packed:
    """Return device 0's part of a packed matrix; the whole if it is not split.

    The parts of the other devices have the same shape.
    """
    part = split.of(matrix, 0)
    return part if isinstance(part, Packed) else matrix


def form_of(matrix: HostMatrix) -> object:
    """Return a key that is equal for matrices that can be concatenated into one."""
    if not isinstance(matrix, Packed):
        return None
    is_half = matrix.scales.dtype == np.float16
    float8 = matrix.codes.dtype if matrix.is_float8 else None
    return matrix.bits == 4, float8, matrix.group, zero_of(matrix), is_half  # noqa: PLR2004


def has_order(matrix: HostMatrix) -> bool:
    """Say whether a packed matrix stores its inputs in another order than the model's (GPTQ)."""
    return isinstance(matrix, Packed) and matrix.order is not None


def joined(matrices: Sequence[HostMatrix], split: Split, to: Placement) -> GroupWeight:
    """Concatenate matrices by output and copy them to the devices as one weight.

    Each device gets its part of every matrix, as `split` says; `to` is the devices and the dtype of
    dense weights.
    """
    parts = [
        side_by_side([split.of(each, index) for each in matrices]) for index in range(split.parts)
    ]
    return GroupWeight(placed(parts, split, to), split.inputs)


def side_by_side(matrices: Sequence[HostMatrix]) -> HostMatrix:
    """Concatenate matrices along their outputs; all must be stored alike (`form_of` is equal)."""
    if len(matrices) == 1:
        return matrices[0]
    packed = [each for each in matrices if isinstance(each, Packed)]
    if not packed:
        return np.concatenate([np.asarray(each) for each in matrices], axis=1)
    minima = [each.minima for each in packed if each.minima is not None]
    return dataclasses.replace(
        packed[0],
        codes=np.concatenate([each.codes for each in packed]),
        scales=np.concatenate([each.scales for each in packed]),
        minima=np.concatenate(minima) if minima else None,
    )


def placed(
    parts: Sequence[HostMatrix], split: Split, to: Placement
) -> DenseStorage | PackedStorage:
    """Copy the parts of a matrix to their devices, dense or in the kernels' packed form.

    `parts` has one part per device, `split` says along which axis they lie, and `to` is the devices
    and the dtype of dense weights.
    """
    if not isinstance(parts[0], Packed):
        dense = [np.ascontiguousarray(each, jnp.dtype(to.dtype)) for each in parts]
        return DenseStorage(split.place(dense, to.mesh))
    zeros = {zero_of(each) for each in parts if isinstance(each, Packed)}
    zero = zeros.pop() if len(zeros) == 1 else None
    each = [grouped(part, zero) for part in parts if isinstance(part, Packed)]

    def put(*arrays: np.ndarray) -> jax.Array:
        if arrays[0].ndim == 1:  # the order of inputs
            return jax.device_put(arrays[0], NamedSharding(to.mesh, PartitionSpec()))
        return split.place(arrays, to.mesh)

    matrix: GroupedMatrix = jax.tree.map(put, *each)
    return PackedStorage(matrix, parts[0].shape[0])


def embedding_of(matrix: HostMatrix, to: Placement) -> GroupWeight:
    """Copy an embedding to the devices, packed if the kernels can read that, else dense.

    The dense form is [vocab, width], the packed one [width, vocab]. The tokens are split over the
    devices if their number divides evenly; otherwise every device gets the whole. `to` is the
    devices and the dtype of dense weights.
    """
    parts = to.mesh.shape["model"]
    if isinstance(matrix, Packed):
        outputs = matrix.shape[1] % parts == 0 and parts > 1
        split = Split(parts if outputs else 1, inputs=False, outputs=outputs)
        if can_group(matrix) and matrix.order is None:
            return joined([matrix], split, to)
        matrix = dense_of(matrix).T
    by_token = matrix.shape[0] % parts == 0 and parts > 1
    split = Split(parts if by_token else 1, inputs=by_token, outputs=False)
    dense = np.ascontiguousarray(matrix, jnp.dtype(to.dtype))
    where = PartitionSpec("model" if split.inputs else None, None)
    return GroupWeight(
        DenseStorage(jax.device_put(dense, NamedSharding(to.mesh, where)), by_output=True),
        splits_inputs=False,
    )
