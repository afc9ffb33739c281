"""Shaping: shapers and the temperature, in order, over rows of logits of any width.

Called by the bank over the whole vocabulary and by the survivors over what the filters leave,
inside the decode program. Knows no filters and draws nothing.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllama.engine.choosing.logprobs import Heap
from jaxllama.engine.choosing.rows import Rows, context, some, switched_on, where_rows
from jaxllama.kernels.body import Choosing
from jaxllama.sampling import Sampler, Shaper
from jaxllama.shapes import Array, Bool, Float, Int32

Kinds = Mapping[str, type[Shaper]]  # in order
On = dict[str, Bool[Array, " S"]]  # rows in which each shaper acts


class Shaping(NamedTuple):
    """The shapers of every row, and where they act."""

    shapers: dict[str, Sampler]  # leaves [S]
    rows: Rows
    early: On  # before the filters
    late: On  # after the filters

    def within(self, wanted: Bool[Array, " S"]) -> "Shaping":
        """The same, in some of the rows."""
        early = {name: on & wanted for name, on in self.early.items()}
        return self._replace(
            early=early, late={name: on & wanted for name, on in self.late.items()}
        )


def plan(
    kinds: Kinds, shapers: Mapping[str, Sampler], rows: Rows, wanted: Bool[Array, " S"]
) -> Shaping:
    """Where each acts: with the temperature, or after the filters in any case."""
    on = {name: wanted & switched_on(shapers[name]) for name in kinds}
    late = {
        name: on[name] if kind.last else on[name] & rows.temperature_last
        for name, kind in kinds.items()
    }
    early = {name: on[name] & ~late[name] for name in kinds}
    return Shaping(dict(shapers), rows, early, late)


def shape(
    kinds: Kinds, shaping: Shaping, on: On, logits: Float[Array, "S C"], heat: Float[Array, " S"]
) -> tuple[Float[Array, "S C"], dict[str, Float[Array, "S C"]]]:
    """The logits after the shapers that are on, with the temperature `heat` among them.

    Also what each shaper that comes last and observes was shown.
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
    """The logits after one shaper, in the rows that are on; it never empties a row."""

    def one(logits: Float[Array, " C"], sampler: Sampler, row: Rows) -> Float[Array, " C"]:
        assert isinstance(sampler, Shaper)
        shaped = sampler(logits, context(row, name))
        # A maximum, because XLA takes eight times as long on CPU for whether any is above.
        return jnp.where(jnp.max(shaped) > -jnp.inf, shaped, logits)

    def changed(old: Array) -> Array:
        return where_rows(on, jax.vmap(one)(old, shaping.shapers[name], shaping.rows), old)

    return jax.lax.cond(jnp.any(on), changed, lambda old: old, logits)


def shape_early(ops: Choosing, kinds: Kinds, shaping: Shaping, heap: Heap) -> Heap:
    """The heap after what acts before the filters; its temperature is used up in those rows."""
    on = heap.wanted & some(shaping.early.values(), shaping.rows)

    def shaped() -> Heap:
        mine, even = shaping.within(on), jnp.ones_like(heap.heat)
        relative = heap.logits - heap.best[:, None]
        logits, _ = shape(kinds, mine, mine.early, relative, jnp.where(on, heap.heat, even))
        logits = where_rows(on, logits, heap.logits)
        best = where_rows(on, ops.survey(logits, on).best, heap.best)
        return Heap(logits, best, jnp.where(on, even, heap.heat), heap.wanted)

    return jax.lax.cond(jnp.any(on), shaped, lambda: heap)


def shape_all(
    ops: Choosing, kinds: Kinds, shaping: Shaping, heap: Heap
) -> tuple[Heap, dict[str, Float[Array, "S V"]]]:
    """The heap after every shaper, where no filter comes between; and what was shown."""
    mine, even = shaping.within(heap.wanted), jnp.ones_like(heap.heat)
    last = shaping.rows.temperature_last
    relative = heap.logits - heap.best[:, None]
    heat = jnp.where(last, even, heap.heat)
    logits = jax.lax.cond(
        jnp.any(some(mine.early.values(), mine.rows)),
        lambda: shape(kinds, mine, mine.early, relative, heat)[0],
        lambda: relative / heat[:, None],
    )
    logits, shown = shape(kinds, mine, mine.late, logits, jnp.where(last, heap.heat, even))
    return Heap(logits, ops.survey(logits, heap.wanted).best, even, heap.wanted), shown


def remembers(kind: type[Shaper]) -> bool:
    """Whether it is told what it was shown of the token that was drawn."""
    return kind.last and kind.observe is not Sampler.observe


def shown_at(
    shown: Mapping[str, Float[Array, "S C"]], on: On, place: Int32[Array, " S"]
) -> dict[str, Float[Array, " S"]]:
    """The log-probability that the entry at `place` had when it was shown, in rows that are on."""

    def at(logits: Float[Array, "S C"]) -> Float[Array, " S"]:
        total = jax.nn.logsumexp(logits, axis=-1)
        return jnp.take_along_axis(logits, place[:, None], axis=-1)[:, 0] - total

    def nothing(logits: Float[Array, "S C"]) -> Float[Array, " S"]:
        return jnp.zeros(logits.shape[0], logits.dtype)

    return {
        name: jax.lax.cond(jnp.any(on[name]), at, nothing, logits) for name, logits in shown.items()
    }
