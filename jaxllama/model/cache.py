"""The key/value cache: one row per slot, separate buffers per layer, updated in place.

Owned by `DecodeState`, passed through the model, written by the attention operation. Columns after
the last one that can be attended to are scratch space, for rows that must not change the cache.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllama.config import KEY_BLOCK, EngineConfig, ModelConfig
from jaxllama.kernels import body_named
from jaxllama.kernels.storage import CacheSize, Layer, read_columns, write_columns
from jaxllama.model.key_heads import with_copies
from jaxllama.shapes import Array, Float, Shaped

KVCache = tuple[Layer, ...]


class Columns(NamedTuple):
    """A block of KEY_BLOCK columns of one row: keys and values of all layers, in their order."""

    numbers: Shaped[Array, "parts K L H"]
    scales: Float[Array, "parts K L"] | None = None


def cache_shape(model: ModelConfig, engine: EngineConfig, chunk: int) -> CacheSize:
    """Return the cache sizes of one layer, with `chunk` spare columns at the end of each slot.

    A column holds one token. The spare ones take the writes of rows that must not change the cache.
    """
    heads = with_copies(model, engine.model_parallel).kv_heads
    return CacheSize(engine.slots, heads, engine.columns + chunk, model.head_dim)


def cache_bytes(model: ModelConfig, engine: EngineConfig, chunk: int = 0) -> int:
    """Return the bytes of the whole KV cache, with `chunk` spare columns in each slot."""
    slots, _, columns, _ = cache_shape(model, engine, chunk)
    return slots * columns * column_bytes(model, engine)


def column_bytes(model: ModelConfig, engine: EngineConfig) -> int:
    """Return the bytes of one token in the cache: its keys and values in all layers."""
    size = CacheSize(1, with_copies(model, engine.model_parallel).kv_heads, 1, model.head_dim)
    arrays = body_named(engine.kernels).cache_arrays(size, engine.cache_dtype)
    return model.layers * sum(math.prod(each.shape) * each.dtype.itemsize for each in arrays)


def empty_cache(model: ModelConfig, engine: EngineConfig, chunk: int) -> KVCache:
    """Return a KV cache of zeros, with `chunk` spare columns in each slot."""
    arrays = body_named(engine.kernels).cache_arrays(
        cache_shape(model, engine, chunk), engine.cache_dtype
    )
    return tuple(
        tuple(jnp.zeros(each.shape, each.dtype) for each in arrays) for _ in range(model.layers)
    )


def read_block(cache: KVCache, slot: Array, start: Array) -> Columns:
    """Read the block of KEY_BLOCK columns of one slot that begins at column `start`.

    Returns keys and values of all layers.
    """
    parts = [read_columns(part, slot, start, KEY_BLOCK)[0] for part in jax.tree.leaves(cache)]
    numbers = [part for part in parts if part.ndim == 3]  # noqa: PLR2004 - heads, columns, size
    scales = [part for part in parts if part.ndim == 2]  # noqa: PLR2004
    return Columns(jnp.stack(numbers), jnp.stack(scales) if scales else None)


def write_block(cache: KVCache, columns: Columns, slot: Array, start: Array) -> KVCache:
    """Return the cache with a block of one slot, from column `start` on, replaced by `columns`.

    `columns` holds the keys and values of all layers, as `read_block` returns them.
    """
    numbers = iter(columns.numbers)
    scales = iter(() if columns.scales is None else columns.scales)

    def write(part: Array) -> Array:
        new = next(numbers if part.ndim == 4 else scales)  # noqa: PLR2004 - slots, ..., size
        return write_columns(part, new[None], slot, start)

    written: KVCache = jax.tree.map(write, cache)
    return written
