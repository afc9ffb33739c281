"""The key/value cache: one row per slot, separate buffers per layer, updated in place.

Owned by `DecodeState`, passed through the model, written by the attention operation. Columns after
the last one that can be attended to are scratch space, for rows that must not change the cache.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllama.config import KEY_BLOCK, EngineConfig, ModelConfig
from jaxllama.kernels.storage import read_columns, stored_dtype, write_columns
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


class Columns(NamedTuple):
    """A block of KEY_BLOCK columns of one row: keys and values of all layers, in their order."""

    numbers: Shaped[Array, "parts K L H"]
    scales: Float[Array, "parts K L"] | None = None


def cache_shape(model: ModelConfig, engine: EngineConfig, chunk: int) -> tuple[int, int, int, int]:
    """Return [slots, heads, columns + scratch, head size]; the scratch holds a whole chunk."""
    return (engine.slots, model.kv_heads, engine.columns + chunk, model.head_dim)


def cache_bytes(model: ModelConfig, engine: EngineConfig, chunk: int = 0) -> int:
    """Return the memory of the whole cache."""
    slots, _, columns, _ = cache_shape(model, engine, chunk)
    return slots * columns * column_bytes(model, engine)


def column_bytes(model: ModelConfig, engine: EngineConfig) -> int:
    """Return the memory of one token: its keys and values in all layers."""
    scales = SCALE_BYTES if engine.cache_dtype == "int8" else 0
    head = model.head_dim * jnp.dtype(engine.cache_dtype).itemsize + scales
    return 2 * model.layers * model.kv_heads * head


def empty_cache(model: ModelConfig, engine: EngineConfig, chunk: int) -> KVCache:
    """Return a cache of zeros."""
    shape, dtype = cache_shape(model, engine, chunk), stored_dtype(engine.cache_dtype)
    scaled = engine.cache_dtype == "int8"

    def layer() -> LayerCache:
        sides = [jnp.zeros(shape, dtype) for _ in range(2)]
        scales = [jnp.zeros(shape[:3], jnp.float32) if scaled else None for _ in range(2)]
        return LayerCache(*sides, *scales)

    return tuple(layer() for _ in range(model.layers))


def read_block(cache: KVCache, slot: Array, start: Array) -> Columns:
    """Read a block of columns of one row."""
    parts = [read_columns(part, slot, start, KEY_BLOCK)[0] for part in jax.tree.leaves(cache)]
    numbers = [part for part in parts if part.ndim == 3]  # noqa: PLR2004 - heads, columns, size
    scales = [part for part in parts if part.ndim == 2]  # noqa: PLR2004
    return Columns(jnp.stack(numbers), jnp.stack(scales) if scales else None)


def write_block(cache: KVCache, columns: Columns, slot: Array, start: Array) -> KVCache:
    """Replace a block of columns of one row."""
    numbers = iter(columns.numbers)
    scales = iter(() if columns.scales is None else columns.scales)

    def write(part: Array) -> Array:
        new = next(numbers if part.ndim == 4 else scales)  # noqa: PLR2004 - slots, ..., size
        return write_columns(part, new[None], slot, start)

    written: KVCache = jax.tree.map(write, cache)
    return written
