"""Products of tiles inside kernels."""

import jax.numpy as jnp
from jax.experimental.pallas import triton as plgpu

from jaxllama.kernels.platform import interpreted
from jaxllama.shapes import Array


def multiply(a: Array, b: Array) -> Array:
    """Return a · b inside a Pallas kernel, with float32 sums; float32 is not rounded to TF32."""
    if interpreted():  # XLA:CPU lacks some products in bfloat16; in float32 they are the same
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    if a.dtype == jnp.float32:
        return plgpu.dot(a, b, allow_tf32=False)
    return plgpu.dot(a, b)
