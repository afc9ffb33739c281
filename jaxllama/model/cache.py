"""The key/value cache: one row per slot, separate buffers per layer, updated in place.

Owned by `DecodeState`, passed through the model, written by the attention operation. Columns behind
the last one that can be attended are scratch, for rows that must leave no trace.
"""

from typing import NamedTuple

import jax.numpy as jnp

from jaxllama import kernels
from jaxllama.config import EngineConfig, ModelConfig
from jaxllama.shapes import Array, Shaped


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
