"""Matmul and norm in plain JAX.

XLA orders the sums of a matmul by its shape. So that a row's result does not depend on how many
rows share the call, every matmul of a program has the same number of rows, never fewer than
ROW_TILE (fewer are padded), and prompts go through in tiles of exactly the decode step's rows.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxllama.config import Activation
from jaxllama.shapes import Array, Float

ROW_TILE = 8  # fewer rows cost the same on XLA:CPU, except a single one


def matmul(x: Float[Array, "L I"], weight: Float[Array, "I O"]) -> Float[Array, "L O"]:
    """Return x · weight with float32 sums."""
    return padded_dot(x, weight, 0)


def matmul_by_output(x: Float[Array, "L I"], weight: Float[Array, "O I"]) -> Float[Array, "L O"]:
    """Return x · weightᵀ with float32 sums, for matrices stored [out, in], such as embeddings."""
    return padded_dot(x, weight, 1)


def padded_dot(x: Array, weight: Array, contracted: int) -> Float[Array, "L O"]:
    """Return the product of x and weight, computed with at least ROW_TILE rows.

    `contracted` is the axis of the weight's inputs.
    """
    rows = x.shape[0]
    if rows < ROW_TILE:
        x = jnp.pad(x, ((0, ROW_TILE - rows), (0, 0)))
    y = lax.dot_general(
        x.astype(weight.dtype),
        weight,
        (((1,), (contracted,)), ((), ())),
        precision=lax.Precision.HIGHEST,  # float32 stays float32 where there are faster ways
        preferred_element_type=jnp.float32,
    )
    return y[:rows]


def norm(x: Float[Array, "*L D"], weight: Float[Array, " D"], eps: float) -> Float[Array, "*L D"]:
    """Scale every vector to unit mean square, then by the weight, in float32.

    `eps` is added to the mean square before its root is taken.
    """
    mean = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    return x * lax.rsqrt(mean + eps) * weight.astype(jnp.float32)


def activated(x: Float[Array, "*L D"], activation: Activation) -> Float[Array, "*L D"]:
    """Apply the activation of a gated feed-forward: silu, or gelu by its tanh approximation."""
    return jax.nn.silu(x) if activation == "silu" else jax.nn.gelu(x, approximate=True)
