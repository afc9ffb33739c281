"""Shapers and the temperature, in order, over rows of logits of any width.

Called inside the decode program: by the bank over the whole vocabulary, by `survivors.py` over the
candidates that the filters keep. Knows no filters and draws nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from jaxllama.engine.choosing.logprobs import Draws, WeightedLogits
from jaxllama.engine.choosing.rows import Rows, context, some, switched_on, where_rows
from jaxllama.kernels.body import Choosing
from jaxllama.kernels.plain.choice import at
from jaxllama.sampling import Sampler, Shaper
from jaxllama.scopes import scoped
from jaxllama.shapes import Array, Bool, Float, Int32

ShaperKinds = Mapping[str, type[Shaper]]  # in order
RowsOn = dict[str, Bool[Array, " S"]]  # rows in which each shaper acts
# Returns the log-sum-exp of logits [S C] in the given rows [S].
TotalsOf = Callable[[Array, Array], Array]

T = TypeVar("T")


class Shown(NamedTuple):
    """The logits that a shaper was called with, kept because it observes the drawn token."""

    logits: Float[Array, "S C"]
    totals: Float[Array, " S"]  # log-sum-exp, in the rows in which it acts


class Shaping(NamedTuple):
    """The knobs of all shapers for every row, and masks of the rows in which they act.

    A shaper acts before or after the filters.
    """

    shapers: dict[str, Sampler]  # leaves [S]
    rows: Rows
    early: RowsOn  # before the filters
    late: RowsOn  # after the filters

    def within(self, active: Bool[Array, " S"]) -> "Shaping":
        """Return a copy in which shapers (samplers) act only in the rows of the mask `active`."""
        early = {name: on & active for name, on in self.early.items()}
        return self._replace(
            early=early, late={name: on & active for name, on in self.late.items()}
        )


def plan(
    kinds: ShaperKinds, shapers: Mapping[str, Sampler], rows: Rows, active: Bool[Array, " S"]
) -> Shaping:
    """Decide for each row which shapers act before the filters, and which after them.

    A shaper is a sampler that changes all logits of a row; a filter is a sampler that drops tokens.
    In rows outside the mask `active` no shaper acts. `kinds` has each shaper's class by its name,
    `shapers` its knobs.
    """
    on = {name: active & switched_on(shapers[name]) for name in kinds}
    late = {
        name: on[name] if kind.last else on[name] & rows.temperature_last
        for name, kind in kinds.items()
    }
    early = {name: on[name] & ~late[name] for name in kinds}
    return Shaping(dict(shapers), rows, early, late)


def shape(
    kinds: ShaperKinds,
    shaping: Shaping,
    on: RowsOn,
    logits: Float[Array, "S C"],
    heat: Float[Array, " S"],
    totals_of: TotalsOf,
) -> tuple[Float[Array, "S C"], dict[str, Shown]]:
    """Apply the shapers to the rows of logits, in order, and divide by the temperature `heat`.

    A shaper is a sampler that changes all logits of a row. `kinds` has each shaper's class by its
    name, `shaping` its knobs, `on` the mask of rows in which it acts. `totals_of(logits, rows)`
    returns the log-sum-exp of rows. The temperature is applied just before the first shaper of
    attribute `order` 0 or more. Also returns, by name, the logits before each shaper that observes
    drawn tokens.
    """
    shown: dict[str, Shown] = {}
    is_heated = False
    for name, kind in kinds.items():
        if kind.order >= 0 and not is_heated:
            logits, is_heated = heated(logits, heat), True
        given = logits
        logits, totals = shape_one((name, kind), shaping, on[name], given, totals_of)
        if remembers(kind):
            shown[name] = Shown(given, totals)
    return (logits if is_heated else heated(logits, heat)), shown


def heated(logits: Float[Array, "S C"], heat: Float[Array, " S"]) -> Float[Array, "S C"]:
    """Divide each row of logits by its temperature `heat`; do nothing if all are 1."""
    return in_place_if(jnp.any(heat != 1), lambda old: old / heat[:, None], logits)


def shape_one(
    which: tuple[str, type[Shaper]],
    shaping: Shaping,
    on: Bool[Array, " S"],
    logits: Float[Array, "S C"],
    totals_of: TotalsOf,
) -> tuple[Float[Array, "S C"], Float[Array, " S"]]:
    """Apply one shaper, `which` (name and class), in the rows where `on` is true.

    A shaper is a sampler that changes all logits of a row; `shaping` holds its knobs, and
    `totals_of(logits, rows)` returns the log-sum-exp of rows. A row stays unchanged if the shaper
    would drop all its tokens. Returns the new logits, and the log-sum-exp of `logits` in these
    rows.
    """
    name, kind = which

    def one(
        logits: Float[Array, " C"], sampler: Sampler, row: Rows, total: Float[Array, ""]
    ) -> Float[Array, " C"]:
        assert isinstance(sampler, Shaper)
        shaped = sampler(logits, context(row, name, total))
        if kind.keeps_some:
            return shaped
        # A maximum, because XLA takes eight times as long on CPU for whether any is above.
        return jnp.where(jnp.max(shaped) > -jnp.inf, shaped, logits)

    def changed(state: tuple[Array, Array]) -> tuple[Array, Array]:
        old, _ = state
        totals = totals_of(old, on)
        with jax.named_scope(name):
            moved = jax.vmap(one)(old, shaping.shapers[name], shaping.rows, totals)
            return where_rows(on, moved, old), totals

    state = (logits, jnp.zeros(logits.shape[0], logits.dtype))
    if remembers(kind):  # its input is read later: nothing to do in place
        return jax.lax.cond(jnp.any(on), changed, lambda old: old, state)
    return in_place_if(jnp.any(on), changed, state)


def in_place_if(condition: Bool[Array, ""], change: Callable[[T], T], old: T) -> T:
    """Return `change(old)` if the condition holds, else `old`.

    The change is the body of a loop that runs once or never, so arrays are changed in place; XLA
    would copy the arrays of a conditional.
    """
    found: T = jax.lax.fori_loop(0, condition.astype(jnp.int32), lambda _, each: change(each), old)
    return found


@scoped
def shape_early(
    ops: Choosing, kinds: ShaperKinds, shaping: Shaping, weighted: WeightedLogits
) -> WeightedLogits:
    """Apply the shapers that act before the filters; apply the temperature in the same rows.

    A shaper is a sampler that changes all logits of a row. Returns `weighted` with new logits in
    these rows; they are divided by the temperature, so the temperature `heat` of these rows is 1 in
    the result. `kinds` has the shapers' classes by name, `shaping` their knobs and rows; `ops` are
    the kernels' operations.
    """
    on = weighted.active & some(shaping.early.values(), shaping.rows)

    def shaped() -> WeightedLogits:
        mine, even = shaping.within(on), jnp.ones_like(weighted.heat)
        relative = weighted.logits - weighted.best[:, None]
        heat = jnp.where(on, weighted.heat, even)
        logits, _ = shape(kinds, mine, mine.early, relative, heat, partial(log_totals, ops))
        logits = where_rows(on, logits, weighted.logits)
        best = where_rows(on, ops.survey(logits, on).best, weighted.best)
        return WeightedLogits(logits, best, jnp.where(on, even, weighted.heat), weighted.active)

    return jax.lax.cond(jnp.any(on), shaped, lambda: weighted)


@scoped
def shape_and_draw(
    ops: Choosing,
    kinds: ShaperKinds,
    shaping: Shaping,
    weighted: WeightedLogits,
    draw: Callable[[WeightedLogits], Draws],
) -> Draws:
    """Apply all shapers and the temperature to rows without filters; return what `draw` draws.

    A shaper is a sampler that changes all logits of a row. `kinds` has the shapers' classes by
    name, `shaping` their knobs and rows, `weighted` the logits and temperatures; `ops` are the
    kernels' operations.
    """
    mine, even = shaping.within(weighted.active), jnp.ones_like(weighted.heat)
    last = shaping.rows.temperature_last
    heat, later = jnp.where(last, even, weighted.heat), jnp.where(last, weighted.heat, even)
    totals_of = partial(log_totals, ops)

    def relative() -> Array:
        return weighted.logits - weighted.best[:, None]

    logits = jax.lax.cond(
        jnp.any(some(mine.early.values(), mine.rows)),
        lambda: shape(kinds, mine, mine.early, relative(), heat, totals_of)[0],
        lambda: relative() / heat[:, None],
    )

    def draw_now(logits: Float[Array, "S V"]) -> Draws:
        return draw(WeightedLogits(logits, jnp.max(logits, axis=-1), even, weighted.active))

    return LateShaping(mine, later, totals_of, draw_now).draw_after(list(kinds.items()), logits)


class LateShaping(NamedTuple):
    """The shapers that come after the filters, and the draw after them, in rows without filters."""

    shaping: Shaping
    heat: Float[Array, " S"]  # temperature among these shapers
    totals_of: TotalsOf
    draw: Callable[[Array], Draws]

    def draw_after(
        self,
        kinds: Sequence[tuple[str, type[Shaper]]],
        logits: Float[Array, "S V"],
        *,
        is_heated: bool = False,
    ) -> Draws:
        """Apply the temperature and the remaining shapers in order, then draw a token per row.

        A shaper is a sampler that changes all logits of a row. `kinds` has name and class of the
        remaining shapers; `logits` is the result of the shapers before them. The temperature is
        applied before the first shaper of order 0 or more, unless `is_heated` says that it was
        applied already.
        """
        for place, (name, kind) in enumerate(kinds):
            if kind.order >= 0 and not is_heated:
                logits, is_heated = heated(logits, self.heat), True
            if remembers(kind):
                rest = partial(self.draw_after, kinds[place + 1 :], is_heated=is_heated)
                return self._draw_watched((name, kind), logits, rest)
            on = self.shaping.late[name]
            logits, _ = shape_one((name, kind), self.shaping, on, logits, self.totals_of)
        return self.draw(logits if is_heated else heated(logits, self.heat))

    def _draw_watched(
        self,
        which: tuple[str, type[Shaper]],
        logits: Float[Array, "S V"],
        draw_rest: Callable[[Array], Draws],
    ) -> Draws:
        """Apply the shaper `which` (name and class), then draw a token with `draw_rest`.

        A shaper is a sampler that changes all logits of a row; `draw_rest(logits)` applies the next
        shapers and draws. The shaper `which` observes drawn tokens. So `shown[name]` of the result
        has the log-probability that the drawn token had before this shaper, 0 in rows where it does
        not act.
        """
        name, on = which[0], self.shaping.late[which[0]]

        def with_it() -> Draws:
            moved, totals = shape_one(which, self.shaping, on, logits, self.totals_of)
            drawn = draw_rest(moved)
            shown = jnp.where(on, at(logits, drawn.token) - totals, 0.0)
            return drawn._replace(shown={**drawn.shown, name: shown})

        def without() -> Draws:
            drawn = draw_rest(logits)
            return drawn._replace(shown={**drawn.shown, name: jnp.zeros_like(self.heat)})

        return jax.lax.cond(jnp.any(on), with_it, without)


def remembers(kind: type[Shaper]) -> bool:
    """Say whether shapers of this class observe drawn tokens and always act after the filters.

    A shaper is a sampler that changes all logits of a row. If both are true, the engine tells the
    shaper the probability that the drawn token had before the shaper acted.
    """
    return kind.last and kind.observe is not Sampler.observe


def log_totals(
    ops: Choosing, logits: Float[Array, "S V"], rows: Bool[Array, " S"]
) -> Float[Array, " S"]:
    """Return the log-sum-exp of each row of logits in the mask `rows`.

    `ops` are the kernels' operations. The result has no meaning in other rows.
    """
    best, even = jnp.max(logits, axis=-1), jnp.ones(logits.shape[0], logits.dtype)
    return best + ops.draw(logits, best, even, jnp.zeros_like(even), rows)[1]


def shown_at(
    shown: Mapping[str, Shown], on: RowsOn, place: Int32[Array, " S"]
) -> dict[str, Float[Array, " S"]]:
    """Return the log-probability of each row's token in each shaper's input, by shaper name.

    A shaper is a sampler that changes all logits of a row. `place` is the index of the token in its
    row of logits. `shown` has each shaper's input, `on` the mask of rows in which it acts; other
    rows get 0.
    """
    return {
        name: jnp.where(on[name], at(given.logits, place) - given.totals, 0.0)
        for name, given in shown.items()
    }
