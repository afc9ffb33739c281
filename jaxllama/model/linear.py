"""Linear and Embedding: one call for a dense or a packed weight.

Used by every block of `llama.py`; knows how a weight is stored, not what it is for.
"""

import jax.numpy as jnp
from flax import nnx

from jaxllama import kernels
from jaxllama.model.quantized import Packed, take_rows, unpack
from jaxllama.shapes import Array, Float, Int


class Linear(nnx.Module):
    """x · weight + bias; the sum is float32 whatever the weight is stored in."""

    def __init__(self, inward: int, outward: int, axes: tuple[str, str], *, bias: bool) -> None:
        self.weight = nnx.Param(jnp.zeros((inward, outward)), axes=axes)
        self.bias = nnx.Param(jnp.zeros(outward), axes=axes[1:]) if bias else None

    def __call__(self, x: Float[Array, "L I"]) -> Float[Array, "L O"]:
        """Apply to every row."""
        weight = self.weight.get_value()
        if isinstance(weight, Packed):
            y = kernels.matmul_by_output(x, unpack(weight))
        else:
            y = kernels.matmul(x, weight)
        return y if self.bias is None else y + self.bias.get_value().astype(jnp.float32)


class Embedding(nnx.Module):
    """Token vectors; also the output head of a tied model."""

    def __init__(self, vocab: int, width: int) -> None:
        self.weight = nnx.Param(jnp.zeros((vocab, width)), axes=("vocab", "width"))

    def __call__(self, tokens: Int[Array, " L"]) -> Float[Array, "L D"]:
        """Look every token up, float32."""
        weight = self.weight.get_value()
        if isinstance(weight, Packed):
            return take_rows(weight, tokens)
        return weight[tokens].astype(jnp.float32)

    def scores(self, x: Float[Array, "L D"]) -> Float[Array, "L V"]:
        """How well every token of the vocabulary matches each row."""
        weight = self.weight.get_value()
        return kernels.matmul_by_output(x, unpack(weight) if isinstance(weight, Packed) else weight)
