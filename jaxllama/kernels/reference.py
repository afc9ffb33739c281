"""Plain JAX: what every operation means, and the path that runs where no kernel does.

Seed contract: a row's result must not depend on how many rows share the call. XLA orders the sums
of a matmul by its shape, so every matmul of a program has the same number of rows, never fewer than
ROW_TILE (short ones are padded), and prompts go through in tiles of exactly the decode step's
rows. Attention walks each row's own keys in fixed blocks; blocks a row may not see change nothing.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxllama.config import KEY_BLOCK
from jaxllama.kernels.storage import (
    Layer,
    append_prompt,
    append_step,
    layer_of,
    meant,
    read_columns,
    sides,
)
from jaxllama.shapes import Array, Bool, Float, Int

ROW_TILE = 8  # fewer rows cost the same on XLA:CPU, except a single one
HIDDEN = -1e30  # score of a key that may not be seen; finite, so that -inf - -inf cannot arise

ReadBlock = Callable[[Array], tuple[Array, Array]]


class Place(NamedTuple):
    """Where the first `rows` rows of a prompt go: to a slot, from column `start` on."""

    slot: Int[Array, ""]
    start: Int[Array, ""]
    rows: Int[Array, ""]


Parts = tuple[Array, Array, Array]  # queries [L N H], keys and values [L K H], not rotated
Turn = tuple[Array, Array]  # cosines and sines [L U]


def matmul(x: Float[Array, "L I"], weight: Float[Array, "I O"]) -> Float[Array, "L O"]:
    """x · weight, float32 sums."""
    return padded_dot(x, weight, 0)


def matmul_by_output(x: Float[Array, "L I"], weight: Float[Array, "O I"]) -> Float[Array, "L O"]:
    """x · weightᵀ, float32 sums, for matrices stored by output: embeddings, packed weights."""
    return padded_dot(x, weight, 1)


def padded_dot(x: Array, weight: Array, contracted: int) -> Float[Array, "L O"]:
    """A dot of at least ROW_TILE rows."""
    rows = x.shape[0]
    if rows < ROW_TILE:
        x = jnp.pad(x, ((0, ROW_TILE - rows), (0, 0)))
    y = lax.dot_general(
        x.astype(weight.dtype),
        weight,
        (((1,), (contracted,)), ((), ())),
        precision=lax.Precision.HIGHEST,  # float32 stays float32 where there are faster ways
        preferred_element_type=jnp.float32,
    )
    return y[:rows]


def norm(x: Float[Array, "*L D"], weight: Float[Array, " D"], eps: float) -> Float[Array, "*L D"]:
    """Root-mean-square norm in float32."""
    mean = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    return x * lax.rsqrt(mean + eps) * weight.astype(jnp.float32)


def attend_step(
    parts: Parts,
    turn: Turn,
    layer: Layer,
    position: Int[Array, " S"],
    active: Bool[Array, " S"],
    window: int | None,
) -> tuple[Float[Array, "S W"], Layer]:
    """Rotate, append row s at its position, attend to columns 0..position[s]; consumes `layer`.

    Rows that are not active write to scratch.
    """
    q, k, v = rotated(parts, turn)
    column = jnp.where(active, position, layer[0].shape[2] - 1)
    new = zip(sides(layer), (k, v), strict=True)
    keys, values = (append_step(*pair, column) for pair in new)

    def cut(part: Array, block: Array) -> Array:
        return lax.dynamic_slice_in_dim(part, block * KEY_BLOCK, KEY_BLOCK, 2)

    def read(block: Array) -> tuple[Array, Array]:
        k, v = (tuple(cut(part, block) for part in side) for side in (keys, values))
        return meant(k), meant(v)

    out = attend_blocks(q, read, jnp.where(active, position, 0), window)
    return out, layer_of(keys, values)


def attend_prompt(
    parts: Parts,
    turn: Turn,
    layer: Layer,
    place: Place,
    window: int | None,
) -> tuple[Float[Array, "L W"], Layer]:
    """Rotate, append a run of rows to a slot, each attends up to itself; consumes `layer`.

    Rows past `place.rows` go to columns that are written again before they are read.
    """
    q, k, v = rotated(parts, turn)
    slot, start, _ = place
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

    return attend_blocks(q, read, position, window), layer_of(keys, values)


def rotated(parts: Parts, turn: Turn) -> Parts:
    """Queries and keys turned by their positions, values as they are."""
    q, k, v = parts
    return rotate(q, *turn), rotate(k, *turn), v


def rotate(
    x: Float[Array, "L N H"], cos: Float[Array, "L U"], sin: Float[Array, "L U"]
) -> Float[Array, "L N H"]:
    """Turn every head of every token by its position's angles; a pair lies half a head apart."""
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attend_blocks(
    q: Float[Array, "L N H"], read: ReadBlock, position: Int[Array, " L"], window: int | None
) -> Float[Array, "L W"]:
    """Softmax attention over blocks of keys, with running maximum and sum, float32."""
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
        return fold_block(grouped, k, v, seen, carry)

    start = (
        jnp.full((*grouped.shape[:3], 1), HIDDEN, jnp.float32),
        jnp.zeros((*grouped.shape[:3], 1), jnp.float32),
        jnp.zeros(grouped.shape, jnp.float32),
    )
    _, total, out = lax.fori_loop(first, last + 1, block, start)
    return (out / jnp.maximum(total, 1e-30)).reshape(rows, heads * size)


def visible(block: Array, position: Int[Array, " L"], window: int | None) -> Bool[Array, "L B"]:
    """Which columns of a block each row may see."""
    column = block * KEY_BLOCK + jnp.arange(KEY_BLOCK)
    seen = column[None, :] <= position[:, None]
    if window is not None:
        seen &= column[None, :] > position[:, None] - window
    return seen


def fold_block(
    q: Float[Array, "L K G H"],
    k: Float[Array, "L K B H"],
    v: Float[Array, "L K B H"],
    seen: Bool[Array, "L 1 1 B"],
    carry: tuple[Array, Array, Array],
) -> tuple[Array, Array, Array]:
    """One block into the running softmax; a block no row sees leaves it bit for bit."""
    top, total, out = carry
    contract = {"precision": lax.Precision.HIGHEST, "preferred_element_type": jnp.float32}
    scores = jnp.einsum("lkgh,lkbh->lkgb", q, k, **contract)
    scores = jnp.where(seen, scores, HIDDEN)
    higher = jnp.maximum(top, jnp.max(scores, axis=-1, keepdims=True))
    weight = jnp.where(seen, jnp.exp(scores - higher), 0.0)
    fade = jnp.exp(top - higher)
    total = total * fade + jnp.sum(weight, axis=-1, keepdims=True)
    mixed = jnp.einsum("lkgb,lkbh->lkgh", weight, v, **contract)
    return higher, total, out * fade + mixed
