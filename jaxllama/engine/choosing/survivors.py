"""Drawing among the best candidates: filters in order, then one number decides.

Called by the sampler bank, inside the decode program, for rows that have a filter switched on; runs
the shapers that come last, too. Knows nothing of adjusters or log-probability requests.
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllama.engine.choosing.draws import Draws
from jaxllama.engine.choosing.in_turn import in_turn, one_of
from jaxllama.engine.choosing.logprobs import list_padded
from jaxllama.engine.choosing.rows import Rows, context, some, switched_on
from jaxllama.engine.choosing.shaping import Shaping, remembers, shape, shown_at
from jaxllama.kernels.body import Best, Choosing
from jaxllama.kernels.plain import choice
from jaxllama.sampling import Candidates, Filter, Sampler, Shaper
from jaxllama.shapes import Array, Bool, Float, Int32

WIDEN = 16  # how many times more candidates a row gets when all it had survived


class Kinds(NamedTuple):
    """The installed samplers that act among candidates, in order."""

    filters: Mapping[str, type[Filter]]
    shapers: Mapping[str, type[Shaper]]


class Ask(NamedTuple):
    """Everything one draw among candidates depends on, row by row."""

    filters: dict[str, Sampler]  # leaves [S]
    shaping: Shaping
    rows: Rows
    logits: Float[Array, "S V"]
    best: Float[Array, " S"]
    early: Float[Array, " S"]  # temperature before the filters
    late: Float[Array, " S"]  # temperature after the filters
    chances: Float[Array, " S"]  # decides the draw
    wanted: Bool[Array, " S"]  # rows whose answer is used


def draw_survivors(ops: Choosing, kinds: Kinds, ask: Ask, *, width: int, listed: int) -> Draws:
    """Draw one token per row from the `width` best candidates that all filters leave.

    A row whose last candidate was kept by a filter might have kept more: it alone is done again
    over more candidates, up to the whole vocabulary, so that the answer never depends on `width`.
    """
    best, is_open = narrow(ops, kinds.filters, ask, width)
    draws = pick(ops, kinds.shapers, best, ask, listed)
    vocab = ask.logits.shape[-1]
    if width == vocab:
        return draws
    wider = min(width * WIDEN, vocab)

    def settle(row: tuple[Ask, Draws, Array]) -> Draws:
        mine, drawn, again = row
        alone = jax.tree.map(lambda leaf: leaf[None], mine)
        return jax.lax.cond(
            again,
            lambda: jax.tree.map(
                lambda leaf: leaf[0],
                draw_survivors(ops, kinds, alone, width=wider, listed=listed),
            ),
            lambda: drawn,
        )

    return jax.lax.cond(
        jnp.any(is_open), lambda: jax.lax.map(settle, (ask, draws, is_open)), lambda: draws
    )


def narrow(
    ops: Choosing, kinds: Mapping[str, type[Filter]], ask: Ask, width: int
) -> tuple[Best, Bool[Array, " S"]]:
    """What the filters leave of the best, and which rows might have kept more than `width`."""
    ids, logits, log_total = ops.best_candidates(ask.logits, ask.best, ask.early, ask.wanted, width)
    best = Best(ids, logits, jnp.exp(logits - log_total[:, None]), log_total)
    last = ids[:, -1]
    on = {name: ask.wanted & switched_on(ask.filters[name]) for name in kinds}

    def asked(
        name: Array, rows_on: Array, left: tuple[Best, Array, Array]
    ) -> tuple[Best, Array, Array]:
        best, is_open, fresh = left
        keep = one_of(
            name,
            {each: partial(kept_by, each, kind, ask) for each, kind in kinds.items()},
            best,
            fresh,
        )
        best, last_left = ops.close_ranks(keep, rows_on, best)
        # Every filter counts, not only the final outcome: a later one was shown shares of the
        # candidates at hand, and those are right only if no kept token is missing among them.
        return best, is_open | (rows_on & (last_left == last)), fresh & ~rows_on

    is_open = jnp.zeros_like(ask.wanted)
    fresh = jnp.full_like(ask.wanted, width < ask.logits.shape[-1])
    best, is_open, _ = in_turn(on, asked, (best, is_open, fresh))
    return best, is_open


def kept_by(
    name: str, kind: type[Filter], ask: Ask, best: Best, fresh: Bool[Array, " S"]
) -> Bool[Array, "S C"]:
    """What one filter keeps of the survivors so far, in every row.

    `fresh`: rows in which no filter has looked at them yet.
    """

    def one(sampler: Sampler, best: Candidates, row: Rows) -> Bool[Array, " C"]:
        assert isinstance(sampler, Filter)
        return sampler(best, context(row, name))

    given = Candidates(*best, *spread(best, ask, fresh))
    keep = jax.vmap(one)(ask.filters[name], given, ask.rows)
    return keep.at[:, 0].set(True) if kind.keeps_greedy else keep


def spread(
    best: Best, ask: Ask, fresh: Bool[Array, " S"]
) -> tuple[Float[Array, " S"], Int32[Array, " S"]]:
    """Entropy and number of the survivors; where rows are fresh, of the whole vocabulary.

    Costs nothing for a filter that looks at neither: the compiler drops it.
    """
    every = (ask.logits - ask.best[:, None]) / ask.early[:, None]
    of_all = entropy(every, jax.nn.logsumexp(every, axis=-1))
    of_best = entropy(best.logits, best.log_total)
    left, all_ = (jnp.sum(each > -jnp.inf, axis=-1) for each in (best.logits, every))
    return jnp.where(fresh, of_all, of_best), jnp.where(fresh, all_, left)


def entropy(logits: Float[Array, "S C"], log_total: Float[Array, " S"]) -> Float[Array, " S"]:
    """Of every row, in natural units."""
    surprise = jnp.where(logits > -jnp.inf, log_total[:, None] - logits, 0.0)
    return jnp.sum(jnp.exp(-surprise) * surprise, axis=-1)


def pick(
    ops: Choosing, kinds: Mapping[str, type[Shaper]], best: Best, ask: Ask, listed: int
) -> Draws:
    """Apply the late temperature and shapers and draw; list the first survivors as sampled."""
    # Relative to the best survivor again: a filter may have dropped the likeliest.
    relative = best.logits - best.logits[:, :1]
    mine = ask.shaping.within(ask.wanted)

    def plain() -> tuple[Array, Array, dict[str, Array]]:
        logits = relative / ask.late[:, None]
        return best.ids, logits, {name: logits for name in kinds if remembers(kinds[name])}

    def shaped() -> tuple[Array, Array, dict[str, Array]]:
        logits, shown = shape(kinds, mine, mine.late, relative, ask.late)
        order = jnp.argsort(-logits, axis=-1, stable=True)
        every = (best.ids, logits, shown)
        return jax.tree.map(lambda leaf: jnp.take_along_axis(leaf, order, axis=-1), every)

    ids, logits, shown = jax.lax.cond(jnp.any(some(mine.late.values(), ask.rows)), shaped, plain)
    likeliest, even = logits[:, 0], jnp.ones_like(ask.late)
    place, log_total = ops.draw(logits, likeliest, even, ask.chances, ask.wanted)
    logprobs = logits - likeliest[:, None] - log_total[:, None]
    return Draws(
        choice.at(ids, place),
        choice.at(logprobs, place),
        list_padded(ids, logprobs, listed),
        shown_at(shown, mine.late, place),
    )
