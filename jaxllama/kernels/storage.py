"""How numbers lie in the cache: narrow when stored, float32 when used; and whose columns are whose.

Used by the plain attention to store and read, by the engine to copy a row's beginning.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax

from jaxllama.shapes import Array, Float, Int, Shaped
from jaxllama.sharding import slots_are_split


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


def append_step(
    side: Shaped[Array, "S K T H"], new: Float[Array, "S K H"], column: Int[Array, " S"]
) -> Shaped[Array, "S K T H"]:
    """One new column per row, each at its own place."""
    row = jnp.arange(new.shape[0])
    # Indexed dimensions first: slots stay where they are when they are split.
    return side.at[row, :, column].set(
        narrow(new, side.dtype), unique_indices=True, mode="promise_in_bounds"
    )


def append_prompt(
    side: Shaped[Array, "S K T H"], new: Float[Array, "L K H"], slot: Array, start: Array
) -> Shaped[Array, "S K T H"]:
    """A run of columns of one row; what lies past the prompt is overwritten before it is read."""
    columns = rearrange(narrow(new, side.dtype), "l k h -> 1 k l h")
    return write_columns(side, columns, slot, start)


def read_columns(
    side: Shaped[Array, "S K T H"], slot: Array, start: Array, count: int
) -> Shaped[Array, "1 K L H"]:
    """A run of columns of one row."""
    if slots_are_split():
        # A slice along a split axis would gather the whole cache; a gather moves one row's part.
        return jnp.swapaxes(side[slot, :, start + jnp.arange(count)], 0, 1)[None]
    _, heads, _, size = side.shape
    return lax.dynamic_slice(side, (slot, 0, start, 0), (1, heads, count, size))


def write_columns(
    side: Shaped[Array, "S K T H"], new: Shaped[Array, "1 K L H"], slot: Array, start: Array
) -> Shaped[Array, "S K T H"]:
    """The cache with a run of columns of one row replaced."""
    if slots_are_split():
        place = start + jnp.arange(new.shape[2])
        return side.at[slot, :, place].set(
            jnp.swapaxes(new[0], 0, 1), unique_indices=True, mode="promise_in_bounds"
        )
    return lax.dynamic_update_slice(side, new, (slot, 0, start, 0))
