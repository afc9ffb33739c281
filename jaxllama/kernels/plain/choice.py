"""Choose tokens from rows of logits in plain JAX: the reference for every choosing kernel.

The module is the `Choosing` of the plain body (`kernels/body.py` defines each operation); the
sampler bank calls it inside the decode program. Knows float32 logits and rows of tokens: no
sampler, no request, no key. It computes inactive rows like all others.

The functions that need a sort or a cumulative sum take it as a keyword argument, so that a body can
replace that part alone (`accelerator/choice.py`).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxllama.kernels.body import Best, HeldTokens, Survey
from jaxllama.scopes import scoped
from jaxllama.shapes import Array, Bool, Float, Int32

BLOCK = 256  # logits summed at a time by `draw`; a cumulative sum over a vocabulary is slow

# Finds ids and logits of the largest logits of every row [S V], so many.
Find = Callable[[Array, int], tuple[Array, Array]]
# Moves the kept candidates of every row [S C] to the front: their ids and logits, and their number.
Move = Callable[[Best, Array], tuple[Array, Array, Array]]


@scoped
def set_aside(
    logits: Float[Array, "S V"], active: Bool[Array, " S"]
) -> tuple[Float[Array, "S V"], Float[Array, "S V"]]:
    """Return the logits twice: once to be changed in place, once to be kept; XLA copies them.

    `active` has no effect.
    """
    del active
    return logits, logits


@scoped
def survey(logits: Float[Array, "S V"], active: Bool[Array, " S"]) -> Survey:
    """Find the largest logit of every row, and whether the row is free of NaN and +inf.

    `active` has no effect.
    """
    del active
    token, best = likeliest(logits)
    return Survey(token, best, is_sound(logits))


def is_sound(logits: Float[Array, "S V"]) -> Bool[Array, " S"]:
    """Return which rows are free of NaN and +inf; -inf marks a banned token and is allowed.

    Uses comparisons, because XLA's `max` on CPU may skip a NaN.
    """
    return jnp.all(logits < jnp.inf, axis=-1)


def likeliest(logits: Float[Array, "S V"]) -> tuple[Int32[Array, " S"], Float[Array, " S"]]:
    """Return the id of each row's largest logit, and this logit.

    Among equal logits it takes the lowest id; the id is 0 where the largest logit is NaN. On CPU
    this takes a fifth of the time of one `argmax`.
    """
    vocab = logits.shape[-1]
    best = jnp.max(logits, axis=-1)
    places = jnp.arange(vocab, dtype=jnp.int32)
    first = jnp.min(jnp.where(logits == best[:, None], places, vocab), axis=-1)
    return jnp.where(first < vocab, first, 0), best


def largest(
    logits: Float[Array, "S V"], count: int
) -> tuple[Int32[Array, "S C"], Float[Array, "S C"]]:
    """Return ids and logits of the `count` largest logits of each row, best first.

    Among equal logits the lower id comes first.
    """
    values, ids = jax.lax.top_k(logits, count)
    # Without barriers a slice in the caller merges with this one; XLA then no longer recognises a
    # top-k and sorts the vocabulary, which is fifty times slower on CPU. One barrier around both
    # arrays crashes XLA when the logits are sharded.
    return jax.lax.optimization_barrier(ids), jax.lax.optimization_barrier(values)


@scoped
def best_candidates(
    logits: Float[Array, "S V"],
    best: Float[Array, " S"],
    heat: Float[Array, " S"],
    active: Bool[Array, " S"],
    count: int,
    *,
    find: Find = largest,
) -> tuple[Int32[Array, "S C"], Float[Array, "S C"], Float[Array, " S"]]:
    """Find the `count` largest logits of each row, best first, and the row's log-sum-exp.

    Returns their ids, their (logit - best) / heat, and the log-sum-exp of (logit - best) / heat
    over the whole vocabulary. `best` is each row's largest logit, `heat` its temperature.
    find(logits, count) returns ids and logits of the largest; `active` has no effect.
    """
    del active
    ids, values = find(logits, count)
    total = jnp.sum(jnp.exp((logits - best[:, None]) / heat[:, None]), axis=-1)
    return ids, (values - best[:, None]) / heat[:, None], jnp.log(total)


def blocks_of(x: Array, fill: object) -> Array:
    """Cut rows [S V] into blocks [S, blocks, BLOCK], the last one filled up with `fill`."""
    spare = -x.shape[1] % BLOCK
    return jnp.pad(x, ((0, 0), (0, spare)), constant_values=fill).reshape(len(x), -1, BLOCK)


def running_sums(x: Float[Array, "S N"]) -> Float[Array, "S N"]:
    """Return the cumulative sums along the last axis."""
    return jnp.cumsum(x, axis=-1)


@scoped
def draw(
    logits: Float[Array, "S V"],
    best: Float[Array, " S"],
    heat: Float[Array, " S"],
    chance: Float[Array, " S"],
    active: Bool[Array, " S"],
    *,
    running: Callable[[Array], Array] = running_sums,
) -> tuple[Int32[Array, " S"], Float[Array, " S"]]:
    """Draw one token per row from the whole vocabulary, by a random number `chance` in [0, 1).

    Returns ids, and the log-sum-exp of (logit - best) / heat, where `best` is the row's largest
    logit and `heat` its temperature. Adds up shares in order of ids until they exceed `chance`,
    first by blocks, then inside one block; `running` returns cumulative sums; `active` has no
    effect.
    """
    del active
    tiles = blocks_of(logits, -jnp.inf)
    sums = jnp.sum(jnp.exp((tiles - best[:, None, None]) / heat[:, None, None]), axis=-1)
    reached = running(sums)
    target = chance * reached[:, -1]
    block = first_past(sums, reached, target)
    below = jnp.where(block > 0, at(reached, block - 1), 0.0)
    tile = jnp.take_along_axis(tiles, block[:, None, None], axis=1)[:, 0]
    weights = jnp.exp((tile - best[:, None]) / heat[:, None])
    place = first_past(weights, running(weights), target - below)
    return block * BLOCK + place, jnp.log(reached[:, -1])


@scoped
def logprob(
    logits: Float[Array, "S V"], token: Int32[Array, " S"], active: Bool[Array, " S"]
) -> Float[Array, " S"]:
    """Return the log-probability of one token per row, `token`; `active` has no effect."""
    del active
    return at(logits, token) - jax.nn.logsumexp(logits, axis=-1)


@scoped
def take_held(
    logits: Float[Array, "S V"], tokens: Int32[Array, "S T"], count: Int32[Array, " S"]
) -> HeldTokens:
    """Return the logits of the tokens that each row already contains.

    `tokens` are the ids of each row's prompt and answer, padded after the first `count` ids.
    Returns, for each position in `tokens`, the first position of the same id and the id's logit;
    and, for each row, whether these logits are free of NaN and +inf.
    """
    vocab, width = logits.shape[1], tokens.shape[1]
    place = jnp.arange(width, dtype=jnp.int32)

    def places(tokens: Int32[Array, " T"], count: Int32[Array, ""]) -> Int32[Array, " T"]:
        is_token = (place < count) & (tokens >= 0) & (tokens < vocab)
        ids = jnp.where(is_token, tokens, vocab)
        return (
            jnp.full(vocab + 1, width, jnp.int32)
            .at[ids]
            .min(jnp.where(is_token, place, width))[ids]
        )

    first = jax.vmap(places)(tokens, count)
    is_held = first < width
    held = jnp.take_along_axis(logits, jnp.where(is_held, tokens, 0), axis=1)
    held = jnp.where(is_held, held, 0.0)
    return HeldTokens(first, held, is_sound(held))


@scoped
def put_held(
    logits: Float[Array, "S V"],
    tokens: Int32[Array, "S T"],
    first: Int32[Array, "S T"],
    held: Float[Array, "S T"],
) -> Float[Array, "S V"]:
    """Write changed logits of the tokens that a row contains back to `logits`.

    `tokens` are the row's ids; `first`, the index at which each id occurs first, comes from
    `take_held`; `held` are the changed logits. Of a repeated token the first position counts.
    """
    vocab, width = logits.shape[1], tokens.shape[1]
    ids = jnp.where(first == jnp.arange(width), tokens, vocab)
    return jax.vmap(lambda row, at, new: row.at[at].set(new, mode="drop"))(logits, ids, held)


def to_front(
    best: Best, keep: Bool[Array, "S C"]
) -> tuple[Int32[Array, "S C"], Float[Array, "S C"], Int32[Array, " S"]]:
    """Move the candidates in the mask `keep` to the front of each row, in their order.

    The other candidates follow them. `best` are the candidates. Returns ids, logits, and the number
    of kept candidates of each row.
    """
    has_gap = jnp.any(keep[:, 1:] & ~keep[:, :-1])
    ids, logits = jax.lax.cond(
        has_gap, close_gaps, lambda ids, logits, _: (ids, logits), best.ids, best.logits, keep
    )
    return ids, logits, jnp.sum(keep, axis=-1)


@scoped
def close_ranks(
    keep: Bool[Array, "S C"], on: Bool[Array, " S"], best: Best, *, move: Move = to_front
) -> tuple[Best, Int32[Array, " S"]]:
    """Drop the candidates that are not in the mask `keep`, in the rows where `on` is true.

    If that would drop all candidates of a row, none is dropped. `best` holds the candidates; the
    kept ones move to the front (by the function `move`) and their probabilities are recomputed.
    Also returns the id of each row's last kept candidate, without meaning where `on` is false.
    """
    alive = best.logits > -jnp.inf
    keep = keep & alive
    keep = jnp.where(jnp.any(keep, axis=-1, keepdims=True), keep, alive)
    ids, logits, count = move(best, keep)
    logits = jnp.where(jnp.arange(keep.shape[-1]) < count[:, None], logits, -jnp.inf)
    log_total = jax.nn.logsumexp(logits, axis=-1)
    left = Best(ids, logits, jnp.exp(logits - log_total[:, None]), log_total)
    left = jax.tree.map(
        lambda new, old: jnp.where(on.reshape(-1, *[1] * (old.ndim - 1)), new, old), left, best
    )
    return left, at(left.ids, jnp.maximum(count - 1, 0))


def first_past(
    weights: Float[Array, "S C"], reached: Float[Array, "S C"], target: Float[Array, " S"]
) -> Int32[Array, " S"]:
    """Return the index of the first entry of each row whose cumulative weight exceeds `target`.

    `reached` are the cumulative sums of `weights`. Entries of weight 0 are never returned. If
    rounding leaves no such entry, returns the index of the last entry with weight.
    """
    has_weight = weights > 0
    past = has_weight & (reached > target[:, None])
    # Rounding may leave the target at or past the end: then take the last place with weight.
    last = weights.shape[-1] - 1 - jnp.argmax(has_weight[:, ::-1], axis=-1)
    place = jnp.where(jnp.any(past, axis=-1), jnp.argmax(past, axis=-1), last)
    return place.astype(jnp.int32)


def close_gaps(
    ids: Int32[Array, "S C"], logits: Float[Array, "S C"], keep: Bool[Array, "S C"]
) -> tuple[Int32[Array, "S C"], Float[Array, "S C"]]:
    """Move the candidates in the mask `keep` to the front of each row, in their order.

    The other candidates follow them. Returns the reordered `ids` and `logits` of the candidates.
    """
    order = jnp.argsort(~keep, axis=-1, stable=True)
    return jnp.take_along_axis(ids, order, -1), jnp.take_along_axis(logits, order, -1)


def at(values: Array, place: Int32[Array, " S"]) -> Array:
    """Return one value per row [S] of `values` [S C]: that at the index `place` of the row."""
    return jnp.take_along_axis(values, place[:, None], axis=-1)[:, 0]
