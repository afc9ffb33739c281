"""Choose tokens on GPUs and TPUs: the operations of `plain/choice.py` without sorts and scatters.

A sort of a vocabulary takes longer than a decode step there, and a cumulative sum or a scatter
becomes many small kernels. Here the best candidates are found by a threshold, and places by
counting and by products with a triangle of ones. The module is the `Choosing` of these bodies.
"""

from functools import partial

import jax.numpy as jnp
from jax import lax

from jaxllama.kernels.body import Best
from jaxllama.kernels.plain import choice as plain
from jaxllama.kernels.plain.choice import (
    BLOCK,
    blocks_of,
    logprob,
    put_held,
    set_aside,
    survey,
    take_held,
)
from jaxllama.shapes import Array, Bool, Float, Int32, UInt32

__all__ = [
    "best_candidates",
    "close_ranks",
    "draw",
    "logprob",
    "put_held",
    "set_aside",
    "survey",
    "take_held",
]

DIGIT = 4  # bits of a threshold that one pass over the vocabulary finds
WORD = 32
MOST_RANKED = 4096  # more candidates than these are sorted


def largest(
    logits: Float[Array, "S V"], count: int
) -> tuple[Int32[Array, "S C"], Float[Array, "S C"]]:
    """Return ids and logits of the `count` largest logits of each row, best first.

    Among equal logits the lower id comes first.
    """
    if count > MOST_RANKED:
        return plain.largest(logits, count)
    ids = chosen_ids(logits, count)
    values = jnp.take_along_axis(logits, ids, axis=1)
    order = order_of(values)
    return jnp.take_along_axis(ids, order, axis=1), jnp.take_along_axis(values, order, axis=1)


def chosen_ids(logits: Float[Array, "S V"], count: int) -> Int32[Array, "S C"]:
    """Return the ids of the `count` largest logits of each row, in ascending order of id."""
    keys = sortable(logits)
    least = kth_largest(keys, count)[:, None]
    above = keys > least
    # Of equals to the last one, the first few that are needed.
    spare = count - jnp.sum(above, axis=1, keepdims=True)
    equal = keys == least
    chosen = above | (equal & (running_count(equal) <= spare))
    return places_of(chosen, count)


def sortable(x: Float[Array, "S V"]) -> UInt32[Array, "S V"]:
    """Map floats to integers of the same order; -0 becomes 0, NaN the smallest number."""
    x = jnp.where(jnp.isnan(x), -jnp.inf, jnp.where(x == 0, 0.0, x))
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    sign = bits >> (WORD - 1)
    return jnp.where(sign == 1, ~bits, bits | jnp.uint32(1 << (WORD - 1)))


def kth_largest(keys: UInt32[Array, "S V"], count: int) -> UInt32[Array, " S"]:
    """Return the `count`-th largest number of each row, found digit by digit from the highest.

    `keys` are the numbers.
    """

    def find(step: Array, known: Array) -> Array:
        shift = (WORD - DIGIT - DIGIT * step).astype(jnp.uint32)
        digits = jnp.arange(1, 1 << DIGIT, dtype=jnp.uint32)
        bounds = known[:, None] + (digits[None, :] << shift)
        reached = jnp.sum(keys[:, None, :] >= bounds[:, :, None], axis=2)
        digit = jnp.sum(reached >= count, axis=1).astype(jnp.uint32)
        return known + (digit << shift)

    return lax.fori_loop(0, WORD // DIGIT, find, jnp.zeros(keys.shape[0], jnp.uint32))


def running_sums(x: Float[Array, "*L N"]) -> Float[Array, "*L N"]:
    """Return the cumulative sums along the last axis, by a product with a triangle of ones."""
    width = x.shape[-1]
    triangle = jnp.triu(jnp.ones((width, width), x.dtype))
    return lax.dot_general(
        x,
        triangle,
        (((x.ndim - 1,), (0,)), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def running_count(marks: Bool[Array, "S V"]) -> Int32[Array, "S V"]:
    """Return, for each place of a row, the number of true marks up to and including it."""
    # Exact: counts up to 256 in bfloat16 with float32 sums, counts of blocks in float32.
    blocks = blocks_of(marks, False)
    inside = running_sums(blocks.astype(jnp.bfloat16))
    before = running_sums(inside[:, :, -1]) - inside[:, :, -1]
    counts = (inside + before[:, :, None]).astype(jnp.int32)
    return counts.reshape(len(marks), -1)[:, : marks.shape[1]]


def places_of(marks: Bool[Array, "S V"], count: int) -> Int32[Array, "S C"]:
    """Return the indices of the first `count` true marks of each row; a row must have that many."""
    blocks = blocks_of(marks, False)
    upto = running_sums(jnp.sum(blocks, axis=2, dtype=jnp.float32)).astype(jnp.int32)  # by block
    number = jnp.arange(count, dtype=jnp.int32)
    block = jnp.sum(upto[:, None, :] <= number[None, :, None], axis=2, dtype=jnp.int32)
    block = jnp.minimum(block, blocks.shape[1] - 1)
    before = jnp.where(block > 0, jnp.take_along_axis(upto, jnp.maximum(block - 1, 0), 1), 0)
    own = jnp.take_along_axis(blocks, block[:, :, None], axis=1)
    reached = running_sums(own.astype(jnp.bfloat16)).astype(jnp.int32)
    inside = jnp.sum(reached <= (number - before)[:, :, None], axis=2, dtype=jnp.int32)
    return block * BLOCK + inside


def order_of(values: Float[Array, "S C"]) -> Int32[Array, "S C"]:
    """Return the indices that sort each row in descending order; equals keep their order."""
    count = values.shape[1]
    place = jnp.arange(count, dtype=jnp.int32)
    keys = sortable(values)
    one, other = keys[:, :, None], keys[:, None, :]
    comes_first = (other > one) | ((other == one) & (place[None, :] < place[:, None]))
    rank = jnp.sum(comes_first, axis=2, dtype=jnp.int32)
    return inverse_of(rank)


def inverse_of(rank: Int32[Array, "S C"]) -> Int32[Array, "S C"]:
    """Invert the permutation in each row: return, for every rank, the index that has this rank.

    The result is 0 for ranks that no index has.
    """
    place = jnp.arange(rank.shape[1], dtype=jnp.int32)
    has = rank[:, None, :] == place[None, :, None]
    return jnp.sum(jnp.where(has, place[None, None, :], 0), axis=2, dtype=jnp.int32)


def to_front(
    best: Best, keep: Bool[Array, "S C"]
) -> tuple[Int32[Array, "S C"], Float[Array, "S C"], Int32[Array, " S"]]:
    """Move the candidates in the mask `keep` to the front of each row, in their order.

    `best` are the candidates. Returns ids [S C], logits [S C], and the number of kept candidates of
    each row [S]. The entries after the kept ones hold the other candidates.
    """
    if keep.shape[1] > MOST_RANKED:
        return plain.to_front(best, keep)
    order, count = places_kept(keep)
    ids, logits = (jnp.take_along_axis(each, order, axis=1) for each in (best.ids, best.logits))
    return ids, logits, count


def places_kept(keep: Bool[Array, "S C"]) -> tuple[Int32[Array, "S C"], Int32[Array, " S"]]:
    """Return the indices that move kept candidates to the front of each row, and their number.

    Kept candidates and others keep their order.
    """
    kept, place = running_count(keep), jnp.arange(keep.shape[1], dtype=jnp.int32)
    count = kept[:, -1]
    rank = jnp.where(keep, kept - 1, count[:, None] + place - kept)
    return inverse_of(rank), count


best_candidates = partial(plain.best_candidates, find=largest)
draw = partial(plain.draw, running=running_sums)
close_ranks = partial(plain.close_ranks, move=to_front)
