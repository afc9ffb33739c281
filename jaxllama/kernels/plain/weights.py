"""Weights of the plain body: dense or packed, multiplied by XLA."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxllama.config import Activation
from jaxllama.kernels.body import ActiveRows, GroupMember, NormWeight
from jaxllama.kernels.packed import Packed, in_order, take_rows, unpack_after
from jaxllama.kernels.plain.matmul import activated, matmul, matmul_by_output, norm
from jaxllama.shapes import Array, Bool, Float, Int


class UnfusedWeight(ABC):
    """Base of weights that apply the activation after the products of gate and up."""

    @abstractmethod
    def matmul(
        self,
        x: Float[Array, "L I"],
        *,
        bias: Any = None,
        norm: NormWeight | None = None,
        add: Array | None = None,
        active: ActiveRows = None,
    ) -> Float[Array, "L O"]:
        """Return norm(x) · weight + bias + add; an argument that is None is left out.

        Only the result's rows in the mask `active` are used, None: all.
        """

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

        This weight holds all matrices; `group` gives the width of each result. `norm` None: x is
        used as it is. `add`, if given, holds the summands for all results side by side. `active`,
        None for all rows, is passed to `matmul`.
        """
        return split_outputs(self.matmul(x, norm=norm, add=add, active=active), group)

    def gated(
        self,
        x: Float[Array, "L I"],
        group: Sequence[GroupMember],
        *,
        norm: NormWeight | None,
        activation: Activation = "silu",
        add: Array | None = None,
        active: ActiveRows,
    ) -> Float[Array, "L O"]:
        """Return activation(norm(x) · gate) * (norm(x) · up), after adding `add` to both products.

        `group` holds the two matrices. `norm` None: x is used as it is. `add` has the summands of
        both side by side, None: nothing is added. Only the result's rows in the mask `active` are
        used, None: all.
        """
        gate, up = self.project(x, group, norm=norm, add=add, active=active)
        return activated(gate, activation) * up


class StandaloneWeight(UnfusedWeight):
    """Base of dense and packed weights: norm, matmul, bias and residual one by one, on all rows."""

    @abstractmethod
    def dot(self, x: Float[Array, "L I"]) -> Float[Array, "L O"]:
        """Return x · weight in float32."""

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
        y = self.dot(x if norm is None else normed(x, norm))
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

        `norm` None: x is used as it is. `add`, if given, holds the summands for all results side by
        side. `active` has no effect.
        """
        del active
        x = x if norm is None else normed(x, norm)
        found = [member.weight.matmul(x, bias=member.bias) for member in group]
        if add is None:
            return found
        return [y + part for y, part in zip(found, split_outputs(add, group), strict=True)]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DenseWeight(StandaloneWeight):
    """A matrix of numbers without compression: [in, out], or [vocab, width] for an embedding."""

    array: Any
    by_output: bool = dataclasses.field(default=False, metadata={"static": True})

    def dot(self, x: Float[Array, "L I"]) -> Float[Array, "L O"]:
        """Return x · weight in float32."""
        return matmul_by_output(x, self.array) if self.by_output else matmul(x, self.array)

    def take(self, tokens: Int[Array, " L"], vocab: int) -> Float[Array, "L I"]:
        """Return the embedding of every token in float32; `vocab` has no effect."""
        del vocab
        return self.array[tokens].astype(jnp.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedWeight(StandaloneWeight):
    """A matrix in the few bits its file holds, unpacked inside each program."""

    packed: Packed

    def dot(self, x: Float[Array, "L I"]) -> Float[Array, "L O"]:
        """Return x · weight in float32."""
        x, matrix = unpack_after(x, self.packed)
        return matmul_by_output(in_order(self.packed, x), matrix)

    def take(self, tokens: Int[Array, " L"], vocab: int) -> Float[Array, "L I"]:
        """Return the embedding of every token in float32; `vocab` has no effect."""
        del vocab
        return take_rows(self.packed, tokens)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DenseExperts:
    """One kind of matrix (gate, up or down) of all experts, as an array [experts, in, out]."""

    array: Any

    def gated(
        self,
        expert: Int[Array, ""],
        x: Float[Array, "L I"],
        up: Any,
        activation: Activation,
        active: Bool[Array, " L"],
    ) -> Float[Array, "L O"]:
        """Return activation(x · gate) * (x · up) for the expert with the index `expert`.

        This object holds the gate matrices, `up` the up matrices of all experts; `active` has no
        effect.
        """
        gate = activated(self.matmul(expert, x, active), activation)
        return gate * up.matmul(expert, x, active)

    def matmul(
        self, expert: Int[Array, ""], x: Float[Array, "L I"], active: Bool[Array, " L"]
    ) -> Float[Array, "L O"]:
        """Return x · weight of the expert with this index; `active` has no effect."""
        del active
        return matmul(x, lax.dynamic_index_in_dim(self.array, expert, keepdims=False))


def normed(x: Float[Array, "L I"], by: NormWeight) -> Float[Array, "L I"]:
    """Apply the root-mean-square norm `by` to every row."""
    return norm(x, by.weight, by.eps)


def split_outputs(y: Float[Array, "L O"], group: Sequence[GroupMember]) -> list[Array]:
    """Split `y`, the outputs of all matrices of a group side by side, into one array per matrix."""
    cuts = list(accumulate(member.width for member in group))[:-1]
    return jnp.split(y, cuts, axis=1)
