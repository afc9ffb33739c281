"""Attention of the TPU body: rotates, stores keys beside values, and calls the kernels.

A layer is one array [S K T 2H]: the key of a column and head, then its value, so that head size 64
fills the 128 lanes of a tile. For int8 there are scales [S 2K T] as well: of head k, row 2k holds
those of the keys and row 2k + 1 those of the values.
"""

import jax
import jax.numpy as jnp
from einops import rearrange

from jaxllama.errors import ConfigError
from jaxllama.kernels.body import Projections, PromptSpan, Rotation
from jaxllama.kernels.plain.attention import rotated
from jaxllama.kernels.storage import LARGEST, SMALLEST, CacheSize, Layer, write_columns
from jaxllama.scopes import scoped
from jaxllama.shapes import Array, Bool, Float, Int

STORED = ("bfloat16", "float32", "int8")
LANES = 128
STEP_BLOCK = 128  # columns that a decode step reads at a time
PROMPT_BLOCKS = (512, 256, 128)  # the same for a prompt; the first that divides the columns


def cache_arrays(size: CacheSize, dtype: str) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Return shapes and types of the arrays of one cache layer.

    `size` has the numbers of slots, key/value heads and columns, and the size of a head; `dtype` is
    that of the cache. Raises ConfigError for a dtype without a kernel.
    """
    if dtype not in STORED:
        raise ConfigError(
            f"cache_dtype is {dtype!r}; kernels 'tpu' take one of {', '.join(STORED)}"
        )
    slots, heads, columns, head_dim = size
    numbers = jax.ShapeDtypeStruct((slots, heads, columns, 2 * head_dim), jnp.dtype(dtype))
    if dtype != "int8":
        return (numbers,)
    return numbers, jax.ShapeDtypeStruct((slots, 2 * heads, columns), jnp.float32)


@scoped
def attend_step(  # noqa: PLR0913, PLR0917 - the operation's arguments, and the cap
    projections: Projections,
    rotation: Rotation,
    layer: Layer,
    position: Int[Array, " S"],
    active: Bool[Array, " S"],
    window: int | None,
    cap: float | None = None,
) -> tuple[Float[Array, "S W"], Layer]:
    """Store the new key and value of every active slot, and compute attention for its query.

    Row s is the new token of slot s, at column position[s] of the cache; it attends to the columns
    up to its own. `projections` are queries, keys and values, which are rotated here by the tables
    of `rotation`. Rows that are not active store nothing and return zeros. `window` is the length
    of the sliding window, `cap` the tanh cap of scores; None: no limit. Returns the result and the
    new layer; consumes `layer`.
    """
    from jaxllama.kernels.tpu.decode_attention import attend_rows  # noqa: PLC0415 - slow to import

    q, k, v = rotated(projections, rotation)
    new = stored(k, v, layer)
    fresh = [rearrange(new[0].astype(jnp.float32), "s k w -> s k 1 w")]
    fresh += [rearrange(scales, "s k -> s k 1") for scales in new[1:]]
    grouped = rearrange(queries(q, layer), "s (k g) w -> s k g w", k=k.shape[1])
    where = jnp.where(active, position, -1).astype(jnp.int32)
    mixed, layer = attend_rows(grouped, tuple(fresh), layer, where, STEP_BLOCK, window, cap)
    size = q.shape[2]
    return rearrange(mixed[..., -size:], "s k g h -> s (k g h)"), layer


@scoped
def attend_prompt(
    projections: Projections,
    rotation: Rotation,
    layer: Layer,
    span: PromptSpan,
    window: int | None,
    cap: float | None = None,
) -> tuple[Float[Array, "L W"], Layer]:
    """Store the keys and values of prompt rows in one slot, and compute attention for each row.

    A row attends to the columns of the cache up to its own. `projections` are queries, keys and
    values, which are rotated here by the tables of `rotation`. `span` is the slot, the first column
    and the number of real rows; the rest is padding, whose columns are written again before they
    are read. `window` is the length of the sliding window, `cap` the tanh cap of scores; None: no
    limit. Returns the result and the new layer; consumes `layer`.
    """
    from jaxllama.kernels.tpu.prompt_attention import attend_run  # noqa: PLC0415 - slow to import

    q, k, v = rotated(projections, rotation)
    slot, start, rows = span
    layer = tuple(
        write_columns(part, rearrange(each, "l k ... -> 1 k l ..."), slot, start)
        for part, each in zip(layer, stored(k, v, layer), strict=True)
    )
    kv_heads, size = k.shape[1:]
    grouped = rearrange(queries(q, layer), "l (k g) w -> k (l g) w", k=kv_heads)
    block = next(each for each in PROMPT_BLOCKS if layer[0].shape[2] % each == 0)
    group = q.shape[1] // kv_heads
    # Without a real row, nothing has to be read but the first block.
    first = jnp.where(rows > 0, start, 0)
    mixed = attend_run(grouped, layer, slot, first, group, block, window, cap)
    return rearrange(mixed[..., -size:], "k (l g) h -> l (k g h)", g=group), layer


def queries(q: Float[Array, "L N H"], layer: Layer) -> Float[Array, "L N W"]:
    """Divide queries by the root of the head size; pad the queries of narrow heads with zeros.

    A head is narrow if its size is no multiple of 128: its key and value share one vector of the
    cache layer `layer`, and the zeros cancel the value in the scores.
    """
    size = q.shape[2]
    zeros = size if size % LANES else 0
    dtype = jnp.float32 if layer[0].dtype == jnp.float32 else jnp.bfloat16
    return jnp.pad(q * (size**-0.5), ((0, 0), (0, 0), (0, zeros))).astype(dtype)


def stored(
    keys: Float[Array, "L K H"], values: Float[Array, "L K H"], layer: Layer
) -> tuple[Array, ...]:
    """Convert new keys and values to the form in which the cache layer `layer` stores them.

    Returns an array [L K 2H], each key beside its value; for an int8 cache also their scales, an
    array [L 2K].
    """
    if len(layer) == 1:
        return (jnp.concatenate([keys, values], axis=-1).astype(layer[0].dtype),)
    sides = jnp.stack([keys, values], axis=2)
    scales = jnp.max(jnp.abs(sides), axis=-1) / LARGEST
    inverse = jnp.where(scales > SMALLEST, 1.0 / scales, 0.0)
    numbers = jnp.rint(sides * inverse[..., None]).astype(jnp.int8)
    return rearrange(numbers, "l k s h -> l k (s h)"), rearrange(scales, "l k s -> l (k s)")
