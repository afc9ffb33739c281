"""How numbers lie in the cache: narrow when stored, float32 when used.

Used by `model/cache.py` to store and by the attention bodies to read.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxllama.shapes import Array, Float


def stored_dtype(name: str) -> jnp.dtype:
    """What a cache of this dtype is made of on this platform."""
    if name == "bfloat16" and jax.default_backend() == "cpu":
        # XLA:CPU widens whole bf16 buffers around every update; plain bits it leaves alone.
        return jnp.dtype("uint16")
    return jnp.dtype(name)


def narrow(x: Float[Array, "*L"], dtype: jnp.dtype) -> Array:
    """Numbers as they are stored."""
    if dtype == jnp.uint16:
        return lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16)
    return x.astype(dtype)


def widen(x: Array) -> Float[Array, "*L"]:
    """Stored numbers as float32."""
    if x.dtype == jnp.uint16:
        return lax.bitcast_convert_type(x.astype(jnp.uint32) << 16, jnp.float32)
    return x.astype(jnp.float32)
