"""Weights of the C++ body: tiles that the library multiplies, fused with norm, bias and residual.

On a mesh each device runs the library on its own part under `shard_map`; sums over split inputs
are added up here.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxllama.config import Activation
from jaxllama.kernels.body import ActiveRows, GroupMember, NormWeight
from jaxllama.kernels.cpu import matmul
from jaxllama.kernels.cpu.tiled import Tiled
from jaxllama.kernels.plain.weights import UnfusedWeight
from jaxllama.kernels.spread import take_split
from jaxllama.shapes import Array, Bool, Float, Int
from jaxllama.sharding import add_up, own_parts


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TiledWeight(UnfusedWeight):
    """The matrices of a group with their biases, outputs side by side.

    `parts` has one set of tiles for each kind of storage; only queries, keys and values can have
    several. Gate and up share their tiles.
    """

    parts: tuple[Tiled, ...]
    splits_inputs: bool = dataclasses.field(default=False, metadata={"static": True})

    def matmul(
        self,
        x: Float[Array, "L I"],
        *,
        bias: Any = None,
        norm: NormWeight | None = None,
        add: Array | None = None,
        active: ActiveRows = None,
    ) -> Float[Array, "L O"]:
        """Return norm(x) · weight + the bias in the tiles + add, in float32.

        `bias` is ignored. `norm` or `add` None: left out. Only the result's rows in the mask
        `active` have a meaning; None: all rows.
        """
        del bias  # in the tiles
        tiled = self.parts[0]
        if self.splits_inputs and norm is None and own_parts("model") > 1:
            return summed(x, tiled, add, active)
        if len(self.parts) == 1:
            return fused(x, tiled, norm, add, active)
        y = jnp.concatenate([fused(x, part, norm, None, active) for part in self.parts], axis=1)
        return y if add is None else add + y

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

        This weight holds both matrices; `group` lists them, for the widths of their outputs. `norm`
        None: x is used as it is. `add` has the summands of both side by side, None: nothing is
        added. Only the result's rows in the mask `active` have a meaning; None: all rows.
        """
        if activation != "silu":
            return super().gated(x, group, norm=norm, activation=activation, add=add, active=active)
        weight, eps = (None, 0.0) if norm is None else norm
        return matmul.normed_swiglu(x, weight, eps, self.parts[0], active, add)

    def take(self, tokens: Int[Array, " L"], vocab: int) -> Float[Array, "L I"]:
        """Return the embedding of every token; `vocab` is the vocabulary size over all devices.

        Where the vocabulary is split over devices, each looks up the tokens of its own part, and
        the results are added up, so that every device has all embeddings.
        """
        (tiled,) = self.parts
        return take_split(partial(matmul.take_rows, tiled), tokens, tiled.shape[1], vocab)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TiledExperts:
    """One kind of matrix of all experts of a layer (down), or gate and up together."""

    tiled: Tiled  # experts side by side, along the outputs
    count: int = dataclasses.field(metadata={"static": True})

    def gated(
        self,
        expert: Int[Array, ""],
        x: Float[Array, "L I"],
        up: Any,
        activation: Activation,
        active: Bool[Array, " L"],
    ) -> Float[Array, "L O"]:
        """Return silu(x · gate) * (x · up) for the expert with the index `expert`.

        These tiles hold both matrices, so `up` is ignored. Rows not in the mask `active` become 0.
        Raises ValueError for an activation other than silu.
        """
        del up
        if activation != "silu":
            raise ValueError(f"activation is {activation!r}; tiles of gate and up give silu only")
        return matmul.matmul_expert(x, self.tiled, (expert, self.count), active)

    def matmul(
        self, expert: Int[Array, ""], x: Float[Array, "L I"], active: Bool[Array, " L"]
    ) -> Float[Array, "L O"]:
        """Return x · weight for the expert with the index `expert`; inactive rows become 0."""
        return matmul.matmul_expert(x, self.tiled, (expert, self.count), active)


def fused(
    x: Float[Array, "L I"],
    tiled: Tiled,
    norm: NormWeight | None,
    add: Array | None,
    active: ActiveRows,
) -> Float[Array, "L O"]:
    """Return norm(x) · weight + bias + add by one kernel; `norm` and `add` may be None.

    `tiled` holds weight and bias as the kernels read them. Only rows in the mask `active` are
    valid in the result; None: all.
    """
    weight, eps = (None, 0.0) if norm is None else norm
    return matmul.multiply(x, weight, eps, tiled, add, active)


def summed(
    x: Float[Array, "L I"], tiled: Tiled, add: Array | None, active: ActiveRows
) -> Float[Array, "L O"]:
    """Return x · weight + bias + add, where each device has a part of the inputs and of `tiled`.

    The product is summed over the devices; then the bias (a part of `tiled`) and `add` are added
    once. `add` None: left out. Only rows in the mask `active` are valid in the result
    (None: all).
    """
    part = matmul.normed_matmul(x, None, 0.0, dataclasses.replace(tiled, bias=None), active)
    y = add_up(part, "model")
    y = y if tiled.bias is None else y + tiled.bias.reshape(-1)[: y.shape[1]]
    return y if add is None else add + y
