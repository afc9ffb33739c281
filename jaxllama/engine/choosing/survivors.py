"""Draws among the best candidates: filters in order, late shapers, then one random number decides.

Called by the sampler bank inside the decode program, for rows with a filter switched on. Knows
nothing of adjusters and log-probability requests.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxllama.engine.choosing.logprobs import Draws, list_padded
from jaxllama.engine.choosing.rows import Rows, context, some, switched_on, where_rows
from jaxllama.engine.choosing.shaping import Shaping, Shown, remembers, shape, shown_at
from jaxllama.kernels.body import Best, Choosing
from jaxllama.kernels.plain import choice
from jaxllama.sampling import Candidates, Filter, Sampler, Shaper
from jaxllama.scopes import scoped
from jaxllama.shapes import Array, Bool, Float, Int32

# Takes the index of a filter, its rows and the survivors so far; returns the survivors after it.
Act = Callable[[Int32[Array, ""], Bool[Array, " S"], Any], Any]

MOST_TOGETHER = 256  # a wider batch that is still not enough is drawn from the whole vocabulary
WIDEN = 16  # how many times more candidates a row gets when all it had survived


class CandidateSamplers(NamedTuple):
    """The installed samplers that act among candidates, in order."""

    filters: Mapping[str, type[Filter]]
    shapers: Mapping[str, type[Shaper]]


class CandidateRows(NamedTuple):
    """The input of one draw among candidates, row by row."""

    filters: dict[str, Sampler]  # leaves [S]
    shaping: Shaping
    rows: Rows
    logits: Float[Array, "S V"]
    best: Float[Array, " S"]
    early: Float[Array, " S"]  # temperature before the filters
    late: Float[Array, " S"]  # temperature after the filters
    chances: Float[Array, " S"]  # decides the draw
    active: Bool[Array, " S"]  # rows whose result is used


@scoped
def draw_survivors(
    ops: Choosing,
    kinds: CandidateSamplers,
    given: CandidateRows,
    *,
    width: int,
    listed: int,
    together: bool = False,
) -> Draws:
    """Draw a token for each row among its `width` likeliest ones; all filters must keep it.

    If a filter keeps even the last of these candidates, it might keep further tokens. Such a row is
    drawn again from more candidates, up to the whole vocabulary, so the result never depends on
    `width`. Such rows are drawn one after the other, or with `together` in one batch. `kinds` are
    the samplers' classes (filters and shapers), `given` is their input, `ops` are the kernels'
    operations. `listed` is the number of likeliest tokens to list for each row.
    """
    best, is_open = narrow(ops, kinds.filters, given, width)
    draws = pick(ops, kinds.shapers, best, given, listed)
    vocab = given.logits.shape[-1]
    if width == vocab:
        return draws
    wider = min(width * WIDEN, vocab)
    if together:
        if width > MOST_TOGETHER:
            wider = vocab
        again = given._replace(active=given.active & is_open)

        def draw_again() -> Draws:
            drawn = draw_survivors(ops, kinds, again, width=wider, listed=listed, together=True)
            return where_rows(is_open, drawn, draws)

        return jax.lax.cond(jnp.any(again.active), draw_again, lambda: draws)

    def settle(row: tuple[CandidateRows, Draws, Array]) -> Draws:
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
        jnp.any(is_open), lambda: jax.lax.map(settle, (given, draws, is_open)), lambda: draws
    )


def narrow(
    ops: Choosing, kinds: Mapping[str, type[Filter]], given: CandidateRows, width: int
) -> tuple[Best, Bool[Array, " S"]]:
    """Apply the filters in order to the `width` likeliest tokens of each row, the candidates.

    Returns the candidates that remain, and a mask of the rows in which a filter kept even the last
    candidate, so that it might keep further tokens. `kinds` has the filters' classes by name,
    `given` their knobs and the logits; `ops` are the kernels' operations.
    """
    ids, logits, log_total = ops.best_candidates(
        given.logits, given.best, given.early, given.active, width
    )
    best = Best(ids, logits, jnp.exp(logits - log_total[:, None]), log_total)
    last = ids[:, -1]
    on = {name: given.active & switched_on(given.filters[name]) for name in kinds}

    def apply(
        which: Array, rows_on: Array, left: tuple[Best, Array, Array]
    ) -> tuple[Best, Array, Array]:
        best, is_open, fresh = left
        filters = [partial(kept_by, each, kind, given) for each, kind in kinds.items()]
        keep = jax.lax.switch(which, filters, best, fresh)
        best, last_left = ops.close_ranks(keep, rows_on, best)
        # Every filter counts, not only the final outcome: a later one was shown shares of the
        # candidates at hand, and those are right only if no kept token is missing among them.
        return best, is_open | (rows_on & (last_left == last)), fresh & ~rows_on

    is_open = jnp.zeros_like(given.active)
    fresh = jnp.full_like(given.active, width < given.logits.shape[-1])
    best, is_open, _ = apply_in_order(on, apply, (best, is_open, fresh))
    return best, is_open


def kept_by(
    name: str, kind: type[Filter], given: CandidateRows, best: Best, fresh: Bool[Array, " S"]
) -> Bool[Array, "S C"]:
    """Call one filter for every row; return a mask of the remaining candidates that it keeps.

    `name` and `kind` are the filter's name and class, `given` holds its knobs, `best` the remaining
    candidates. `fresh` marks the rows in which no other filter has been applied yet.
    """

    def one(sampler: Sampler, best: Candidates, row: Rows) -> Bool[Array, " C"]:
        assert isinstance(sampler, Filter)
        return sampler(best, context(row, name))

    with jax.named_scope(name):
        candidates = Candidates(*best, *totals_for(name, kind, given, best, fresh))
        keep = jax.vmap(one)(given.filters[name], candidates, given.rows)
        return keep.at[:, 0].set(True) if kind.keeps_greedy else keep


def totals_for(
    name: str, kind: type[Filter], given: CandidateRows, best: Best, fresh: Bool[Array, " S"]
) -> tuple[Float[Array, " S"], Int32[Array, " S"]]:
    """Return entropy and number of the remaining candidates, in rows where a filter needs them.

    In rows where it does not, the entropy is 0 and the number may be too large. `name` and `kind`
    are the filter's name and class, `given` holds its knobs, `best` the remaining candidates. In
    rows of the mask `fresh` no other filter has been applied yet, so all tokens of the vocabulary
    count.
    """
    if kind.needs_totals is Filter.needs_totals:
        return spread(best, given, fresh)

    def one(sampler: Sampler) -> Bool[Array, ""]:
        assert isinstance(sampler, Filter)
        return sampler.needs_totals()

    needs = jax.vmap(one)(given.filters[name])
    left = jnp.sum(best.logits > -jnp.inf, axis=-1)
    most = jnp.where(fresh, jnp.full_like(left, given.logits.shape[-1]), left)
    bound = (jnp.zeros_like(given.best), most)

    def exact() -> tuple[Array, Array]:
        found = spread(best, given, fresh)
        return jnp.where(needs, found[0], bound[0]), jnp.where(needs, found[1], bound[1])

    return jax.lax.cond(jnp.any(needs & given.active), exact, lambda: bound)


def spread(
    best: Best, given: CandidateRows, fresh: Bool[Array, " S"]
) -> tuple[Float[Array, " S"], Int32[Array, " S"]]:
    """Return entropy (nats) and number of the remaining candidates of each row.

    `best` holds these candidates, `given` the logits of all tokens. In rows of the mask `fresh`, to
    which no filter has been applied yet, all tokens of the vocabulary count. XLA removes the
    computation of a result that is not used.
    """
    every = (given.logits - given.best[:, None]) / given.early[:, None]
    of_all = entropy(every, jax.nn.logsumexp(every, axis=-1))
    of_best = entropy(best.logits, best.log_total)
    left, all_ = (jnp.sum(each > -jnp.inf, axis=-1) for each in (best.logits, every))
    return jnp.where(fresh, of_all, of_best), jnp.where(fresh, all_, left)


def entropy(logits: Float[Array, "S C"], log_total: Float[Array, " S"]) -> Float[Array, " S"]:
    """Return the entropy of every row in nats; `log_total` is the log-sum-exp of its logits."""
    surprise = jnp.where(logits > -jnp.inf, log_total[:, None] - logits, 0.0)
    return jnp.sum(jnp.exp(-surprise) * surprise, axis=-1)


def pick(
    ops: Choosing, kinds: Mapping[str, type[Shaper]], best: Best, given: CandidateRows, listed: int
) -> Draws:
    """Draw one token per row among the candidates that the filters left in `best`.

    First applies the temperature and the shapers that come after the filters; a shaper is a sampler
    that changes all logits of a row. `kinds` has the shapers' classes by name, `given` their knobs;
    `ops` are the kernels' operations. Also lists the `listed` likeliest tokens of each row.
    """
    # Relative to the best survivor again: a filter may have dropped the likeliest.
    relative = best.logits - best.logits[:, :1]
    mine = given.shaping.within(given.active)

    def plain() -> tuple[Array, Array, dict[str, Shown]]:
        logits = relative / given.late[:, None]
        nothing = Shown(logits, jnp.zeros_like(given.late))
        return best.ids, logits, {name: nothing for name in kinds if remembers(kinds[name])}

    def shaped() -> tuple[Array, Array, dict[str, Shown]]:
        logits, shown = shape(kinds, mine, mine.late, relative, given.late, totals_of)
        order = jnp.argsort(-logits, axis=-1, stable=True)

        def ordered(leaf: Array) -> Array:
            return jnp.take_along_axis(leaf, order, axis=-1)

        moved = {name: each._replace(logits=ordered(each.logits)) for name, each in shown.items()}
        return ordered(best.ids), ordered(logits), moved

    ids, logits, shown = jax.lax.cond(jnp.any(some(mine.late.values(), given.rows)), shaped, plain)
    likeliest, even = logits[:, 0], jnp.ones_like(given.late)
    place, log_total = ops.draw(logits, likeliest, even, given.chances, given.active)
    logprobs = logits - likeliest[:, None] - log_total[:, None]
    return Draws(
        choice.at(ids, place),
        choice.at(logprobs, place),
        list_padded(ids, logprobs, listed),
        shown_at(shown, mine.late, place),
    )


def totals_of(logits: Float[Array, "S C"], rows: Bool[Array, " S"]) -> Float[Array, " S"]:
    """Return the log-sum-exp of every row of candidates; `rows` is ignored."""
    del rows
    return jax.nn.logsumexp(logits, axis=-1)


def apply_in_order(on: Mapping[str, Bool[Array, " S"]], act: Act, begin: Any) -> Any:
    """Call `act` for each filter that is on in some row, in order, and return the last result.

    `on` has the mask of rows for each filter by its name. `act` gets the filter's index in `on`,
    its mask and the last result (at first `begin`), and returns the next one. The code around the
    filters is compiled once; a filter that is on in no row costs nothing.
    """
    if not on:
        return begin
    rows = jnp.stack(list(on.values()))
    used = jnp.any(rows, axis=1)
    order = jnp.argsort(~used, stable=True).astype(jnp.int32)

    def turn(index: Array | int, so_far: Any) -> Any:
        return act(order[index], rows[order[index]], so_far)

    return jax.lax.fori_loop(0, jnp.sum(used), turn, begin)
