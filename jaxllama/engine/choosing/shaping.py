"""Shapers and the temperature, in order, over rows of logits of any width.

Called inside the decode program: by the bank over the whole vocabulary, by `survivors.py` over the
candidates that the filters keep. Knows no filters and draws nothing.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllama.engine.choosing.logprobs import WeightedLogits
from jaxllama.engine.choosing.rows import Rows, context, some, switched_on, where_rows
from jaxllama.kernels.body import Choosing
from jaxllama.sampling import Sampler, Shaper
from jaxllama.scopes import scoped
from jaxllama.shapes import Array, Bool, Float, Int32

ShaperKinds = Mapping[str, type[Shaper]]  # in order
RowsOn = dict[str, Bool[Array, " S"]]  # rows in which each shaper acts


class Shaping(NamedTuple):
    """The shapers of every row, and the rows in which they act before or after the filters."""

    shapers: dict[str, Sampler]  # leaves [S]
    rows: Rows
    early: RowsOn  # before the filters
    late: RowsOn  # after the filters

    def within(self, active: Bool[Array, " S"]) -> "Shaping":
        """Limit the shapers to some rows."""
        early = {name: on & active for name, on in self.early.items()}
        return self._replace(
            early=early, late={name: on & active for name, on in self.late.items()}
        )


def plan(
    kinds: ShaperKinds, shapers: Mapping[str, Sampler], rows: Rows, active: Bool[Array, " S"]
) -> Shaping:
    """Decide for each row whether a shaper acts before the filters or after them."""
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
) -> tuple[Float[Array, "S C"], dict[str, Float[Array, "S C"]]]:
    """Apply the shapers that are on, and the temperature `heat` at its place among them.

    Also return the input of each late shaper that observes.
    """
    shown: dict[str, Float[Array, "S C"]] = {}
    is_heated = False
    for name, kind in kinds.items():
        if kind.order >= 0 and not is_heated:
            logits, is_heated = logits / heat[:, None], True
        if remembers(kind):
            shown[name] = logits
        logits = shape_one(name, shaping, on[name], logits)
    return (logits if is_heated else logits / heat[:, None]), shown


def shape_one(
    name: str, shaping: Shaping, on: Bool[Array, " S"], logits: Float[Array, "S C"]
) -> Float[Array, "S C"]:
    """Apply one shaper in the rows that are on; a row it would empty stays as it was."""

    def one(logits: Float[Array, " C"], sampler: Sampler, row: Rows) -> Float[Array, " C"]:
        assert isinstance(sampler, Shaper)
        shaped = sampler(logits, context(row, name))
        # A maximum, because XLA takes eight times as long on CPU for whether any is above.
        return jnp.where(jnp.max(shaped) > -jnp.inf, shaped, logits)

    def changed(old: Array) -> Array:
        with jax.named_scope(name):
            return where_rows(on, jax.vmap(one)(old, shaping.shapers[name], shaping.rows), old)

    return jax.lax.cond(jnp.any(on), changed, lambda old: old, logits)


@scoped
def shape_early(
    ops: Choosing, kinds: ShaperKinds, shaping: Shaping, weighted: WeightedLogits
) -> WeightedLogits:
    """Apply the shapers that act before the filters; `heat` becomes 1 in their rows."""
    on = weighted.active & some(shaping.early.values(), shaping.rows)

    def shaped() -> WeightedLogits:
        mine, even = shaping.within(on), jnp.ones_like(weighted.heat)
        relative = weighted.logits - weighted.best[:, None]
        logits, _ = shape(kinds, mine, mine.early, relative, jnp.where(on, weighted.heat, even))
        logits = where_rows(on, logits, weighted.logits)
        best = where_rows(on, ops.survey(logits, on).best, weighted.best)
        return WeightedLogits(logits, best, jnp.where(on, even, weighted.heat), weighted.active)

    return jax.lax.cond(jnp.any(on), shaped, lambda: weighted)


@scoped
def shape_all(
    ops: Choosing, kinds: ShaperKinds, shaping: Shaping, weighted: WeightedLogits
) -> tuple[WeightedLogits, dict[str, Float[Array, "S V"]]]:
    """Apply all shapers to rows without filters; also return the inputs of observing shapers."""
    mine, even = shaping.within(weighted.active), jnp.ones_like(weighted.heat)
    last = shaping.rows.temperature_last
    relative = weighted.logits - weighted.best[:, None]
    heat = jnp.where(last, even, weighted.heat)
    logits = jax.lax.cond(
        jnp.any(some(mine.early.values(), mine.rows)),
        lambda: shape(kinds, mine, mine.early, relative, heat)[0],
        lambda: relative / heat[:, None],
    )
    logits, shown = shape(kinds, mine, mine.late, logits, jnp.where(last, weighted.heat, even))
    return WeightedLogits(
        logits, ops.survey(logits, weighted.active).best, even, weighted.active
    ), shown


def remembers(kind: type[Shaper]) -> bool:
    """Say whether a shaper observes draws and so needs the log-probability of its input."""
    return kind.last and kind.observe is not Sampler.observe


def shown_at(
    shown: Mapping[str, Float[Array, "S C"]], on: RowsOn, place: Int32[Array, " S"]
) -> dict[str, Float[Array, " S"]]:
    """Return the log-probability of the entry at `place` in each shaper's input."""

    def at(logits: Float[Array, "S C"]) -> Float[Array, " S"]:
        total = jax.nn.logsumexp(logits, axis=-1)
        return jnp.take_along_axis(logits, place[:, None], axis=-1)[:, 0] - total

    def nothing(logits: Float[Array, "S C"]) -> Float[Array, " S"]:
        return jnp.zeros(logits.shape[0], logits.dtype)

    return {
        name: jax.lax.cond(jnp.any(on[name]), at, nothing, logits) for name, logits in shown.items()
    }
