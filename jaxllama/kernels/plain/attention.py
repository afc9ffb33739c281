"""Attention in plain JAX: what every attention kernel computes.

Each row walks its own keys in fixed blocks with a running softmax; a block that a row may not see
changes none of its bits. This is half of the seed contract; `matmul.py` is the other half.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxllama.config import KEY_BLOCK
from jaxllama.kernels.body import Projections, PromptSpan, Rotation
from jaxllama.kernels.storage import (
    Layer,
    append_prompt,
    append_step,
    layer_of,
    meant,
    read_columns,
    sides,
)
from jaxllama.scopes import scoped
from jaxllama.shapes import Array, Bool, Float, Int

HIDDEN = -1e30  # score of a key that may not be seen; finite, so that -inf - -inf cannot arise

ReadBlock = Callable[[Array], tuple[Array, Array]]


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
    """Compute attention of a decode step; return its result and the cache layer with new columns.

    The key and value of row s are stored in column position[s] of slot s; its query attends to the
    columns up to that one. `projections` are queries, keys and values, before the rotary embedding
    whose tables `rotation` has. Rows that are not active write to a spare column. `layer` must not
    be used afterwards. `window` limits the columns, `cap` the scores; None: no limit.
    """
    q, k, v = rotated(projections, rotation)
    column = jnp.where(active, position, layer[0].shape[2] - 1)
    new = zip(sides(layer), (k, v), strict=True)
    keys, values = (append_step(*pair, column) for pair in new)

    def cut(part: Array, block: Array) -> Array:
        return lax.dynamic_slice_in_dim(part, block * KEY_BLOCK, KEY_BLOCK, 2)

    def read(block: Array) -> tuple[Array, Array]:
        k, v = (tuple(cut(part, block) for part in side) for side in (keys, values))
        return meant(k), meant(v)

    out = attend_blocks(q, read, jnp.where(active, position, 0), window, cap)
    return out, layer_of(keys, values)


@scoped
def attend_prompt(
    projections: Projections,
    rotation: Rotation,
    layer: Layer,
    span: PromptSpan,
    window: int | None,
    cap: float | None = None,
) -> tuple[Float[Array, "L W"], Layer]:
    """Compute attention of prompt rows; return its result and the cache layer with new columns.

    The rows' keys and values are stored in one slot; each row attends to the columns up to its own.
    `projections` are queries, keys and values, before the rotary embedding whose tables `rotation`
    has; `span` is the slot, the first column and the number of real rows. Padding rows go to
    columns that are written again before they are read. `layer` must not be used afterwards.
    `window` limits the columns, `cap` the scores; None: no limit.
    """
    q, k, v = rotated(projections, rotation)
    slot, start, _ = span
    new = zip(sides(layer), (k, v), strict=True)
    keys, values = (append_prompt(*pair, slot, start) for pair in new)
    rows = q.shape[0]
    position = start + jnp.arange(rows, dtype=jnp.int32)

    def cut(part: Array, block: Array) -> Array:
        # One copy per row: the dots then have the shapes of `attend_step`, and its sums.
        return jnp.repeat(read_columns(part, slot, block * KEY_BLOCK, KEY_BLOCK), rows, axis=0)

    def read(block: Array) -> tuple[Array, Array]:
        k, v = (tuple(cut(part, block) for part in side) for side in (keys, values))
        return meant(k), meant(v)

    return attend_blocks(q, read, position, window, cap), layer_of(keys, values)


def rotated(projections: Projections, rotation: Rotation) -> Projections:
    """Apply rotary embedding to queries and keys; return them together with the same values."""
    q, k, v = projections
    return rotate(q, *rotation), rotate(k, *rotation), v


def rotate(
    x: Float[Array, "L N H"], cos: Float[Array, "L U"], sin: Float[Array, "L U"]
) -> Float[Array, "L N H"]:
    """Apply rotary embedding to every head of every token.

    It rotates pairs of numbers that lie half a head apart. `cos` and `sin` are the rotary tables:
    one number for each token and pair.
    """
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attend_blocks(
    q: Float[Array, "L N H"],
    read: ReadBlock,
    position: Int[Array, " L"],
    window: int | None,
    cap: float | None,
) -> Float[Array, "L W"]:
    """Compute attention of every row up to its position, block by block, in float32.

    `q` are the rotated queries, `position` the cache column of each row. `read` takes the number of
    a block of KEY_BLOCK columns and returns its keys and values. `window` limits the columns, `cap`
    the scores; None: no limit.
    """
    rows, heads, size = q.shape
    last = jnp.max(position) // KEY_BLOCK
    first = jnp.zeros_like(last)
    if window is not None:
        first = jnp.maximum(jnp.min(position) - window + 1, 0) // KEY_BLOCK

    sample, _ = jax.eval_shape(read, first)
    kv_heads = sample.shape[1]
    grouped = q.reshape(rows, kv_heads, heads // kv_heads, size) * (size**-0.5)

    def block(index: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        k, v = read(index)
        seen = visible(index, position, window)[:, None, None, :]
        return fold_block((grouped, k, v), seen, carry, cap)

    start = (
        jnp.full((*grouped.shape[:3], 1), HIDDEN, jnp.float32),
        jnp.zeros((*grouped.shape[:3], 1), jnp.float32),
        jnp.zeros(grouped.shape, jnp.float32),
    )
    _, total, out = lax.fori_loop(first, last + 1, block, start)
    return (out / jnp.maximum(total, 1e-30)).reshape(rows, heads * size)


def visible(block: Array, position: Int[Array, " L"], window: int | None) -> Bool[Array, "L B"]:
    """Return a mask of the columns of block number `block` that each row may attend to.

    `position` is the cache column of each row; `window` limits the columns, None: no limit.
    """
    column = block * KEY_BLOCK + jnp.arange(KEY_BLOCK)
    seen = column[None, :] <= position[:, None]
    if window is not None:
        seen &= column[None, :] > position[:, None] - window
    return seen


def fold_block(
    qkv: tuple[Float[Array, "L K G H"], Float[Array, "L K B H"], Float[Array, "L K B H"]],
    seen: Bool[Array, "L 1 1 B"],
    carry: tuple[Array, Array, Array],
    cap: float | None,
) -> tuple[Array, Array, Array]:
    """Add one block of keys and values to the running softmax; return the new carry.

    `qkv` are the queries of all rows and the block's keys and values; `seen` masks the columns that
    each row may attend to; `carry` is the largest score, the sum of weights and the weighted values
    so far. `cap` limits scores, None: no limit. The carry of a row that may see no column of the
    block stays bit-identical.
    """
    q, k, v = qkv
    top, total, out = carry
    contract = {"precision": lax.Precision.HIGHEST, "preferred_element_type": jnp.float32}
    scores = jnp.einsum("lkgh,lkbh->lkgb", q, k, **contract)
    if cap is not None:
        scores = cap * jnp.tanh(scores / cap)
    scores = jnp.where(seen, scores, HIDDEN)
    higher = jnp.maximum(top, jnp.max(scores, axis=-1, keepdims=True))
    weight = jnp.where(seen, jnp.exp(scores - higher), 0.0)
    fade = jnp.exp(top - higher)
    total = total * fade + jnp.sum(weight, axis=-1, keepdims=True)
    mixed = jnp.einsum("lkgb,lkbh->lkgh", weight, v, **contract)
    return higher, total, out * fade + mixed
