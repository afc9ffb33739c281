"""The key/value cache: one row per slot, separate buffers per layer, updated in place.

Owned by `DecodeState`, passed through the model, written here and nowhere else. Columns from
`scratch` on are written by rows that must leave no trace; nothing ever attends to them.
"""

from typing import NamedTuple

import jax.numpy as jnp
from einops import rearrange

from jaxllama import kernels
from jaxllama.config import EngineConfig, ModelConfig
from jaxllama.shapes import Array, Float, Int, Shaped


class LayerCache(NamedTuple):
    """Keys and values of one layer."""

    keys: Shaped[Array, "S K T H"]
    values: Shaped[Array, "S K T H"]


KVCache = tuple[LayerCache, ...]


def cache_shape(model: ModelConfig, engine: EngineConfig, chunk: int) -> tuple[int, int, int, int]:
    """[slots, heads, columns + scratch, head size]; a whole chunk fits behind the last column."""
    return (engine.slots, model.kv_heads, engine.columns + chunk, model.head_dim)


def cache_bytes(model: ModelConfig, engine: EngineConfig, chunk: int = 0) -> int:
    """Memory of the whole cache."""
    slots, heads, columns, size = cache_shape(model, engine, chunk)
    return (
        2 * model.layers * slots * heads * columns * size * jnp.dtype(engine.cache_dtype).itemsize
    )


def empty_cache(model: ModelConfig, engine: EngineConfig, chunk: int) -> KVCache:
    """Zeros."""
    shape, dtype = cache_shape(model, engine, chunk), kernels.stored_dtype(engine.cache_dtype)
    return tuple(
        LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(model.layers)
    )


def write_step(
    layer: LayerCache,
    keys: Float[Array, "S K H"],
    values: Float[Array, "S K H"],
    column: Int[Array, " S"],
) -> LayerCache:
    """One new column per row, each at its own place."""
    row = jnp.arange(keys.shape[0])
    # Indexed dimensions first: slots stay where they are when they are sharded.
    return LayerCache(
        *(
            old.at[row, :, column].set(
                kernels.narrow(new, old.dtype), unique_indices=True, mode="promise_in_bounds"
            )
            for old, new in zip(layer, (keys, values), strict=True)
        )
    )


def write_prompt(
    layer: LayerCache,
    keys: Float[Array, "L K H"],
    values: Float[Array, "L K H"],
    slot: Int[Array, ""],
    start: Int[Array, ""],
) -> LayerCache:
    """A run of columns of one row; what lies past the prompt is overwritten before it is read."""
    return LayerCache(
        *(
            kernels.write_columns(
                old, rearrange(kernels.narrow(new, old.dtype), "l k h -> 1 k l h"), slot, start
            )
            for old, new in zip(layer, (keys, values), strict=True)
        )
    )
