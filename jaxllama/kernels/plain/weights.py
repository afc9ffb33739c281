"""Weights of the plain body: dense or packed, multiplied by XLA."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxllama.kernels.body import ActiveRows, GroupMember, NormWeight
from jaxllama.kernels.packed import Packed, in_order, take_rows, unpack_after
from jaxllama.kernels.plain.matmul import matmul, matmul_by_output, norm
from jaxllama.shapes import Array, Float, Int


class StandaloneWeight:
    """Base of dense and packed weights: norm, matmul, bias and residual one by one, on all rows."""

    def dot(self, x: Float[Array, "L I"]) -> Float[Array, "L O"]:
        """Return x · weight in float32."""
        raise NotImplementedError

    def matmul(
        self,
        x: Float[Array, "L I"],
        *,
        bias: Any = None,
        norm: NormWeight | None = None,
        add: Array | None = None,
        active: ActiveRows = None,
    ) -> Float[Array, "L O"]:
        """Return norm(x) · weight + bias + add in float32."""
        del active
        y = self.dot(x if norm is None else normed(x, norm))
        y = y if bias is None else y + bias.astype(jnp.float32)
        return y if add is None else add + y

    def project(
        self,
        x: Float[Array, "L I"],
        group: Sequence[GroupMember],
        *,
        norm: NormWeight,
        active: ActiveRows,
    ) -> list[Array]:
        """Multiply norm(x) by every matrix of the group."""
        del active
        x = normed(x, norm)
        return [member.weight.matmul(x, bias=member.bias) for member in group]

    def gated(
        self,
        x: Float[Array, "L I"],
        group: Sequence[GroupMember],
        *,
        norm: NormWeight,
        active: ActiveRows,
    ) -> Float[Array, "L O"]:
        """Return silu(norm(x) · gate) * (norm(x) · up)."""
        gate, up = self.project(x, group, norm=norm, active=active)
        return jax.nn.silu(gate) * up


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DenseWeight(StandaloneWeight):
    """Numbers as an array: [in, out], or [vocab, width] for an embedding."""

    array: Any
    by_output: bool = dataclasses.field(default=False, metadata={"static": True})

    def dot(self, x: Float[Array, "L I"]) -> Float[Array, "L O"]:
        """Return x · weight in float32."""
        return matmul_by_output(x, self.array) if self.by_output else matmul(x, self.array)

    def take(self, tokens: Int[Array, " L"], vocab: int) -> Float[Array, "L I"]:
        """Look up the embedding of every token, float32."""
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
        """Look up the embedding of every token, float32."""
        del vocab
        return take_rows(self.packed, tokens)


def normed(x: Float[Array, "L I"], by: NormWeight) -> Float[Array, "L I"]:
    """Apply a norm."""
    return norm(x, by.weight, by.eps)
