"""How the KV cache stores numbers: narrow in memory, float32 when used.

Used by the plain attention to read and write, by the engine to copy the prefix of a row. A layer is
(keys, values), or for int8 (keys, values, key scales, value scales). An int8 column of a head holds
whole numbers from -127 to 127 and one scale: the largest absolute value of the column over 127.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax

from jaxllama.kernels.platform import platform_in_force
from jaxllama.shapes import Array, Float, Int, Shaped
from jaxllama.sharding import slots_are_split

Layer = tuple[Array, ...]
Side = tuple[Array, ...]  # numbers [S K T H], and scales [S K T] if they are int8

LARGEST = 127.0  # int8
SMALLEST = 1e-37  # a scale below this has no inverse that is a number


class CacheSize(NamedTuple):
    """The sizes of one layer of the cache."""

    slots: int
    kv_heads: int
    columns: int  # scratch columns included
    head_dim: int


def cache_arrays(size: CacheSize, dtype: str) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Return shapes and types of the arrays of one cache layer, for a cache of this dtype.

    On CPUs, the arrays of a bfloat16 cache are uint16. `size` has the numbers of slots, key/value
    heads and columns, and the size of a head.
    """
    return layer_arrays(size, stored_dtype(dtype))


def layer_arrays(size: CacheSize, dtype: jnp.dtype | str) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Return shapes and types of the arrays of one cache layer that stores exactly this dtype.

    `size` has the numbers of slots, key/value heads and columns, and the size of a head.
    """
    numbers = jax.ShapeDtypeStruct(size, jnp.dtype(dtype))
    scales = jax.ShapeDtypeStruct(size[:3], jnp.float32)
    return (numbers, numbers, scales, scales) if numbers.dtype == jnp.int8 else (numbers, numbers)


def stored_dtype(name: str) -> jnp.dtype:
    """Return the array dtype that stores a cache of the dtype `name` on this platform."""
    if name == "bfloat16" and platform_in_force() == "cpu":
        # XLA:CPU widens whole bf16 buffers around every update; plain bits it leaves alone.
        return jnp.dtype("uint16")
    return jnp.dtype(name)


def sides(layer: Layer) -> tuple[Side, Side]:
    """Split a layer of the KV cache into the arrays of keys and the arrays of values."""
    return layer[0::2], layer[1::2]


def layer_of(keys: Side, values: Side) -> Layer:
    """Join the arrays of keys and the arrays of values to a layer of the KV cache."""
    return tuple(part for pair in zip(keys, values, strict=True) for part in pair)


def stored(x: Float[Array, "*L H"], side: Side) -> Side:
    """Convert float32 keys or values to the form in which the cache stores them.

    `side` are the cache's arrays for these keys or values; their dtype decides the form. The result
    is one array, or for an int8 cache two: the numbers and their scales.
    """
    if len(side) == 1:
        return (narrow(x, side[0].dtype),)
    scale = jnp.max(jnp.abs(x), axis=-1) / LARGEST
    inverse = jnp.where(scale > SMALLEST, 1.0 / scale, 0.0)
    return jnp.rint(x * inverse[..., None]).astype(jnp.int8), scale


def meant(side: Side) -> Float[Array, "*L H"]:
    """Convert keys or values to float32 from the form in which the cache stores them.

    `side` is one array, or for an int8 cache two: the numbers and their scales.
    """
    numbers, *scales = side
    return widen(numbers) * scales[0][..., None] if scales else widen(numbers)


def narrow(x: Float[Array, "*L"], dtype: jnp.dtype) -> Array:
    """Convert float32 numbers to the cache's `dtype`, unscaled; uint16 holds bits of bfloat16."""
    if dtype == jnp.uint16:
        return lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16)
    return x.astype(dtype)


def widen(x: Array) -> Float[Array, "*L"]:
    """Convert stored numbers to float32 without applying a scale; uint16 holds bits of bfloat16."""
    if x.dtype == jnp.uint16:
        return lax.bitcast_convert_type(x.astype(jnp.uint32) << 16, jnp.float32)
    return x.astype(jnp.float32)


def append_step(side: Side, new: Float[Array, "S K H"], column: Int[Array, " S"]) -> Side:
    """Write one new column to every slot of the keys or values `side`, each at its own `column`.

    `side` is one array, or for an int8 cache two: the numbers and their scales. `new` are float32
    keys or values. Returns the changed arrays.
    """
    row = jnp.arange(new.shape[0])
    # Indexed dimensions first: slots stay where they are when they are split.
    return tuple(
        part.at[row, :, column].set(each, unique_indices=True, mode="promise_in_bounds")
        for part, each in zip(side, stored(new, side), strict=True)
    )


def append_prompt(side: Side, new: Float[Array, "L K H"], slot: Array, start: Array) -> Side:
    """Write consecutive columns to one slot of the keys or values `side`, from `start` on.

    `side` is one array, or for an int8 cache two: the numbers and their scales. `new` are float32
    keys or values; rows that pad the prompt are stored, too, but their columns are written again
    before they are read. Returns the changed arrays.
    """
    return tuple(
        write_columns(part, rearrange(each, "l k ... -> 1 k l ..."), slot, start)
        for part, each in zip(side, stored(new, side), strict=True)
    )


def read_columns(
    part: Shaped[Array, "S K T *H"], slot: Array, start: Array, count: int
) -> Shaped[Array, "1 K L *H"]:
    """Read `count` columns of one slot from `start` on; the slot axis stays, of size 1.

    `part` is one array of a cache layer: keys, values or scales of one of these.
    """
    if slots_are_split():
        # A slice along a split axis would gather the whole cache; a gather moves one row's part.
        return jnp.swapaxes(part[slot, :, start + jnp.arange(count)], 0, 1)[None]
    _, heads, _, *size = part.shape
    return lax.dynamic_slice(part, place(part, slot, start), (1, heads, count, *size))


def write_columns(
    part: Shaped[Array, "S K T *H"], new: Shaped[Array, "1 K L *H"], slot: Array, start: Array
) -> Shaped[Array, "S K T *H"]:
    """Return `part` with consecutive columns of one slot, from `start` on, replaced by `new`.

    `part` is one array of a cache layer: keys, values or scales of one of these.
    """
    if slots_are_split():
        columns = start + jnp.arange(new.shape[2])
        return part.at[slot, :, columns].set(
            jnp.swapaxes(new[0], 0, 1), unique_indices=True, mode="promise_in_bounds"
        )
    return lax.dynamic_update_slice(part, new, place(part, slot, start))


def place(part: Array, slot: Array, start: Array) -> tuple[Array | int, ...]:
    """Return the index of column `start` of `slot` in a cache array, one number per axis.

    `part` is the array; on its other axes, the index is 0.
    """
    return (slot, 0, start, 0)[: part.ndim]
