"""The key/value cache: one row per slot, separate buffers per layer, updated in place.

Owned by `DecodeState`, passed through the model, written by the attention operation. Columns after
the last one that can be attended to are scratch space, for rows that must not change the cache.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp

from jaxllama.config import EngineConfig, ModelConfig
from jaxllama.kernels.storage import stored_dtype
from jaxllama.shapes import Array, Float, Shaped

SCALE_BYTES = 4


class LayerCache(NamedTuple):
    """Keys and values of one layer; an int8 cache has a scale per token and head."""

    keys: Shaped[Array, "S K T H"]
    values: Shaped[Array, "S K T H"]
    key_scales: Float[Array, "S K T"] | None = None
    value_scales: Float[Array, "S K T"] | None = None

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays that exist, as the attention operations take them."""
        return tuple(part for part in self if part is not None)


KVCache = tuple[LayerCache, ...]


def cache_shape(model: ModelConfig, engine: EngineConfig, chunk: int) -> tuple[int, int, int, int]:
    """Return [slots, heads, columns + scratch, head size]; the scratch holds a whole chunk."""
    return (engine.slots, model.kv_heads, engine.columns + chunk, model.head_dim)


def cache_bytes(model: ModelConfig, engine: EngineConfig, chunk: int = 0) -> int:
    """Return the memory of the whole cache."""
    shape = cache_shape(model, engine, chunk)
    scales = SCALE_BYTES if engine.cache_dtype == "int8" else 0
    column = model.head_dim * jnp.dtype(engine.cache_dtype).itemsize + scales
    return 2 * model.layers * math.prod(shape[:3]) * column


def empty_cache(model: ModelConfig, engine: EngineConfig, chunk: int) -> KVCache:
    """Return a cache of zeros."""
    shape, dtype = cache_shape(model, engine, chunk), stored_dtype(engine.cache_dtype)
    scaled = engine.cache_dtype == "int8"

    def layer() -> LayerCache:
        sides = [jnp.zeros(shape, dtype) for _ in range(2)]
        scales = [jnp.zeros(shape[:3], jnp.float32) if scaled else None for _ in range(2)]
        return LayerCache(*sides, *scales)

    return tuple(layer() for _ in range(model.layers))
