"""Weights of the TPU body: matrices that read the same rows lie side by side in one array.

On a mesh every device has its own part, and the products of split inputs are added up here.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jaxllama.kernels.body import ActiveRows, GroupMember, InGroup, NormWeight
from jaxllama.kernels.plain.weights import DenseWeight, UnfusedWeight, normed, split_outputs
from jaxllama.kernels.spread import take_split
from jaxllama.kernels.tpu.grouped import GroupedMatrix
from jaxllama.shapes import Array, Float, Int
from jaxllama.sharding import add_up


class StoredMatrix(Protocol):
    """One way to store a matrix on a device: dense or packed."""

    def dot(self, x: Float[Array, "L I"]) -> Float[Array, "L O"]:
        """Return x · matrix in float32."""

    def rows(self, tokens: Int[Array, " L"]) -> Float[Array, "L I"]:
        """Return the embeddings of `tokens`, the weights of these outputs, as float32."""

    @property
    def outputs(self) -> int:
        """Return the number of the matrix's outputs on one device."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DenseStorage:
    """A matrix stored dense: [in, out], or [vocab, width] for an embedding."""

    array: Any
    by_output: bool = dataclasses.field(default=False, metadata={"static": True})

    def dot(self, x: Float[Array, "L I"]) -> Float[Array, "L O"]:
        """Return x · matrix in float32."""
        return DenseWeight(self.array, self.by_output).dot(x)

    def rows(self, tokens: Int[Array, " L"]) -> Float[Array, "L I"]:
        """Return the embeddings of `tokens`, the weights of these outputs, as float32."""
        taken: Array = self.array[tokens].astype(jnp.float32)
        return taken

    @property
    def outputs(self) -> int:
        """Return the number of outputs of the matrix; for an embedding, its number of tokens."""
        count: int = self.array.shape[0 if self.by_output else 1]
        return count


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedStorage:
    """A matrix stored in the 4 or 8 bits of its file; the kernels unpack it while they multiply."""

    grouped: GroupedMatrix
    inputs: int = dataclasses.field(metadata={"static": True})  # of one device, without padding

    def dot(self, x: Float[Array, "L I"]) -> Float[Array, "L O"]:
        """Return x · matrix in float32."""
        from jaxllama.kernels.tpu.grouped_matmul import multiply  # noqa: PLC0415 - slow to import

        return multiply(x, self.grouped)

    def rows(self, tokens: Int[Array, " L"]) -> Float[Array, "L I"]:
        """Return the embeddings of `tokens`, the weights of these outputs, as float32."""
        from jaxllama.kernels.tpu.grouped_matmul import take  # noqa: PLC0415 - slow to import

        return take(self.grouped, tokens.astype(jnp.int32))[:, : self.inputs]

    @property
    def outputs(self) -> int:
        """Return the number of the matrix's outputs on one device, without padding."""
        return self.grouped.outputs


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GroupWeight(UnfusedWeight):
    """A matrix, or all matrices of a group (matrices that multiply the same rows), side by side."""

    matrix: Any  # a StoredMatrix
    splits_inputs: bool = dataclasses.field(metadata={"static": True})

    def matmul(
        self,
        x: Float[Array, "L I"],
        *,
        bias: Any = None,
        norm: NormWeight | None = None,
        add: Array | None = None,
        active: ActiveRows = None,
    ) -> Float[Array, "L O"]:
        """Return norm(x) · weight + bias + add in float32; an argument that is None is left out.

        `active` has no effect.
        """
        del active
        y: Array = self.matrix.dot(x if norm is None else normed(x, norm))
        y = add_up(y, "model") if self.splits_inputs else y
        y = y if bias is None else y + bias.astype(jnp.float32)
        return y if add is None else add + y

    def project(
        self,
        x: Float[Array, "L I"],
        group: Sequence[GroupMember],
        *,
        norm: NormWeight | None,
        add: Array | None = None,
        active: ActiveRows,
    ) -> list[Array]:
        """Multiply norm(x) by each matrix of a group, which all read x; return one array for each.

        Each matrix's bias is added. `norm` None: x is used as it is. `add`, if given, holds the
        summands for all results side by side. `active` has no effect.
        """
        x = x if norm is None else normed(x, norm)
        if any(isinstance(member.weight, InGroup) for member in group):
            found = split_outputs(self.matmul(x, active=active), group)
        else:
            found = [member.weight.matmul(x, active=active) for member in group]
        biases = (member.bias for member in group)
        found = [
            y if bias is None else y + bias.astype(jnp.float32)
            for y, bias in zip(found, biases, strict=True)
        ]
        if add is None:
            return found
        return [y + part for y, part in zip(found, split_outputs(add, group), strict=True)]

    def take(self, tokens: Int[Array, " L"], vocab: int) -> Float[Array, "L I"]:
        """Return the embedding of every token; `vocab` is the vocabulary size over all devices.

        Where the vocabulary is split, each device looks up its own tokens.
        """
        return take_split(self.matrix.rows, tokens, self.matrix.outputs, vocab)
