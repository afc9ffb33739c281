"""Linear, Embedding and Norm: one call whatever a weight is stored in.

Used by every block of `llama.py`; knows how a weight is stored, not what it is for. A Tiled weight
goes to the C++ kernels, which norm, multiply and add in one call, for the rows that are `wanted`;
the plain path does the same in steps, for all. Where a Tiled weight is one device's part, the parts
are added up here.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jax import lax

from jaxllama import kernels
from jaxllama.kernels import cpu_matmul
from jaxllama.kernels.cpu_matmul import Wanted
from jaxllama.kernels.tiled import Several, Tiled
from jaxllama.model.quantized import Packed, in_order, take_rows, unpack_after
from jaxllama.shapes import Array, Float, Int
from jaxllama.sharding import RULES, add_up, own_parts


class Norm(nnx.Module):
    """Root-mean-square norm."""

    def __init__(self, width: int, eps: float) -> None:
        self.weight = nnx.Param(jnp.zeros(width), axes=("width",))
        self.eps = eps

    def __call__(self, x: Float[Array, "*L D"]) -> Float[Array, "*L D"]:
        """Scale every vector to unit mean square, then by the weight."""
        return kernels.norm(x, self.weight.get_value(), self.eps)


class Linear(nnx.Module):
    """x · weight + bias; the sum is float32 whatever the weight is stored in."""

    def __init__(self, inward: int, outward: int, axes: tuple[str, str], *, bias: bool) -> None:
        self.weight = nnx.Param(jnp.zeros((inward, outward)), axes=axes)
        self.bias = nnx.Param(jnp.zeros(outward), axes=axes[1:]) if bias else None
        self.splits_inputs = RULES[axes[0]] is not None

    def __call__(
        self,
        x: Float[Array, "L I"],
        *,
        norm: Norm | None = None,
        add: Array | None = None,
        wanted: Wanted = None,
    ) -> Float[Array, "L O"]:
        """Apply to every row, normed first and added to `add` if given."""
        weight = self.weight.get_value()
        if isinstance(weight, Tiled):
            if self.splits_inputs and norm is None and own_parts("model") > 1:
                return summed_matmul(x, weight, add, wanted)
            return tiled_matmul(x, weight, norm, add, wanted)
        if isinstance(weight, Several):
            y = jnp.concatenate(
                [tiled_matmul(x, each, norm, None, wanted) for each in weight.parts], axis=1
            )
            return y if add is None else add + y
        x = x if norm is None else norm(x)
        if isinstance(weight, Packed):
            x, matrix = unpack_after(x, weight)
            y = kernels.matmul_by_output(in_order(weight, x), matrix)
        else:
            y = kernels.matmul(x, weight)
        y = y if self.bias is None else y + self.bias.get_value().astype(jnp.float32)
        return y if add is None else add + y


class GateUp(nnx.Module):
    """silu(x · gate) * (x · up) from one Tiled weight that holds both."""

    def __init__(self, inward: int, outward: int) -> None:
        self.weight = nnx.Param(jnp.zeros((inward, 2 * outward)), axes=("width", "ffn"))

    def __call__(
        self, x: Float[Array, "L I"], *, norm: Norm, wanted: Wanted = None
    ) -> Float[Array, "L O"]:
        """Apply to every row, normed first."""
        return cpu_matmul.normed_swiglu(
            x, norm.weight.get_value(), norm.eps, self.weight.get_value(), wanted
        )


class Embedding(nnx.Module):
    """Token vectors; also the output head of a tied model."""

    def __init__(self, vocab: int, width: int) -> None:
        self.weight = nnx.Param(jnp.zeros((vocab, width)), axes=("vocab", "width"))
        self.vocab = vocab

    def __call__(self, tokens: Int[Array, " L"]) -> Float[Array, "L D"]:
        """Look every token up, float32."""
        weight = self.weight.get_value()
        if isinstance(weight, Tiled):
            return look_up(weight, tokens, self.vocab)
        if isinstance(weight, Packed):
            return take_rows(weight, tokens)
        return weight[tokens].astype(jnp.float32)

    def scores(
        self, x: Float[Array, "L D"], *, norm: Norm, wanted: Wanted = None
    ) -> Float[Array, "L V"]:
        """How well every token of the vocabulary matches each row, normed first."""
        weight = self.weight.get_value()
        if isinstance(weight, Tiled):
            return tiled_matmul(x, weight, norm, None, wanted)
        x = norm(x)
        if isinstance(weight, Packed):
            x, weight = unpack_after(x, weight)
        return kernels.matmul_by_output(x, weight)


def tiled_matmul(
    x: Float[Array, "L I"], weight: Tiled, norm: Norm | None, add: Array | None, wanted: Wanted
) -> Float[Array, "L O"]:
    """The fused kernel that does what was asked."""
    if add is not None:
        return cpu_matmul.matmul_add(x, weight, add, wanted)
    if norm is None:
        return cpu_matmul.normed_matmul(x, None, 0.0, weight, wanted)
    return cpu_matmul.normed_matmul(x, norm.weight.get_value(), norm.eps, weight, wanted)


def summed_matmul(
    x: Float[Array, "L I"], weight: Tiled, add: Array | None, wanted: Wanted
) -> Float[Array, "L O"]:
    """Every device has its own inputs; the bias and `add` are the same everywhere, added once."""
    part = cpu_matmul.normed_matmul(x, None, 0.0, dataclasses.replace(weight, bias=None), wanted)
    y = add_up(part, "model")
    y = y if weight.bias is None else y + weight.bias.reshape(-1)[: y.shape[1]]
    return y if add is None else add + y


def look_up(weight: Tiled, tokens: Int[Array, " L"], vocab: int) -> Float[Array, "L D"]:
    """Rows of an embedding; where the vocabulary is split, each device looks up its own tokens."""
    own = weight.shape[1]
    if own == vocab:
        return cpu_matmul.take_rows(weight, tokens)
    place = tokens - lax.axis_index("model") * own
    mine = (place >= 0) & (place < own)
    rows = cpu_matmul.take_rows(weight, jnp.clip(place, 0, own - 1))
    return add_up(jnp.where(mine[:, None], rows, 0.0), "model")
