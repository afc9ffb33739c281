"""Adjusters, in order, over whole rows of logits or over the tokens that a row contains.

Called by the bank inside the decode program, before a token is chosen. Knows no filters, shapers or
temperature.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllama.engine.choosing.rows import Rows, context, is_asked, is_warm, some, where_rows
from jaxllama.engine.choosing.token_sets import Sets, informed
from jaxllama.kernels.body import Choosing
from jaxllama.sampling import NO_TOKEN, Adjuster, Sampler
from jaxllama.scopes import scoped
from jaxllama.shapes import Array, Bool, Float

SamplerNames = Sequence[str]


class Adjusting(NamedTuple):
    """The knobs of all adjusters for every row, and masks of the rows in which they act."""

    kinds: Mapping[str, type[Adjuster]]  # in order
    sets: Mapping[str, Sets]  # the token sets of each adjuster
    bank: Mapping[str, Sampler]  # leaves [S]
    rows: Rows
    on: dict[str, Bool[Array, " S"]]  # rows in which each acts

    def some(self, names: SamplerNames) -> Bool[Array, " S"]:
        """Return a mask of the rows in which at least one of these adjusters (samplers) acts."""
        return some((self.on[name] for name in names), self.rows)


class AdjustedLogits(NamedTuple):
    """Rows of logits, and whether they were free of NaN and +inf before adjusters changed them."""

    logits: Float[Array, "S V"]
    sound: Bool[Array, " S"]


@scoped
def adjust(
    ops: Choosing,
    kinds: Mapping[str, type[Adjuster]],
    sets: Mapping[str, Sets],
    bank: Mapping[str, Sampler],
    rows: Rows,
    logits: Float[Array, "S V"],
) -> AdjustedLogits:
    """Apply all adjusters, the samplers that change single logits, to the logits of all rows.

    Returns the new logits, and for each row whether no NaN or +inf was found in the old ones.
    `kinds`, `sets` and `bank` map the name of each adjuster to its class, its token sets and its
    knobs for all rows. `rows` has the tokens and settings of the rows; `ops` are the kernels'
    operations on logits.
    """
    on = {name: rows.active & acts(kind, bank[name], rows) for name, kind in kinds.items()}
    adjusting = Adjusting(kinds, sets, bank, rows, on)
    whole = [name for name, kind in kinds.items() if not kind.held_only]
    all_sound = jnp.ones_like(rows.active)

    def moved() -> AdjustedLogits:
        sound = jax.lax.cond(
            jnp.any(adjusting.some(whole)),
            lambda: ops.survey(logits, rows.active).sound,
            lambda: all_sound,
        )
        now = AdjustedLogits(logits, sound)
        for names in runs(kinds):

            def move(old: AdjustedLogits, names: SamplerNames = names) -> AdjustedLogits:
                if kinds[names[0]].held_only:
                    return move_held(ops, adjusting, names, old)
                return move_whole(adjusting, names[0], old)

            now = jax.lax.cond(jnp.any(adjusting.some(names)), move, lambda old: old, now)
        return now

    return jax.lax.cond(
        jnp.any(adjusting.some(list(kinds))), moved, lambda: AdjustedLogits(logits, all_sound)
    )


def acts(kind: type[Adjuster], sampler: Sampler, rows: Rows) -> Bool[Array, " S"]:
    """Return a mask of the rows in which an adjuster of class `kind` acts.

    `sampler` holds its knobs for all rows. An adjuster that never changes the likeliest token skips
    rows at temperature 0.
    """
    return is_asked(sampler, rows) & (is_warm(rows) | (not kind.keeps_greedy))


def runs(kinds: Mapping[str, type[Adjuster]]) -> list[SamplerNames]:
    """Group the adjusters that can be applied together; return the names in each group, in order.

    An adjuster is a sampler that changes single logits. Adjacent ones that read only the logits of
    tokens in the row form one group; every other one is a group of its own. `kinds` are their
    classes by name.
    """
    found: list[SamplerNames] = []
    for held_only, run in groupby(kinds, key=lambda name: kinds[name].held_only):
        names = list(run)
        found += [names] if held_only else [[name] for name in names]
    return found


def move_whole(adjusting: Adjusting, name: str, old: AdjustedLogits) -> AdjustedLogits:
    """Apply the adjuster `name`, which reads all logits, in the rows in which it acts.

    Returns `old` with new logits. An adjuster is a sampler that changes single logits; `adjusting`
    holds all of them and their rows.
    """
    moved = ask(adjusting, name, old.logits, adjusting.rows)
    return old._replace(logits=where_rows(adjusting.on[name], moved, old.logits))


def move_held(
    ops: Choosing, adjusting: Adjusting, names: SamplerNames, old: AdjustedLogits
) -> AdjustedLogits:
    """Apply adjusters (samplers) that read only the logits of the tokens that a row contains.

    Returns `old` with new logits. `names` are these adjusters, `adjusting` holds their knobs and
    rows, and `ops` are the kernels' operations. The adjusters get one logit for each position of
    the row, not for each token of the vocabulary. The id of a token is then the first position at
    which it occurs in the row.
    """
    rows = adjusting.rows
    count = jnp.where(adjusting.some(names), rows.length, 0)
    held = ops.take_held(old.logits, rows.tokens, count)
    nothing = jnp.full_like(rows.stop_ids, NO_TOKEN)
    own = rows._replace(tokens=held.first, stop_ids=nothing, allowed=None)
    logits = held.logits
    for name in names:

        def move(old: Array, name: str = name) -> Array:
            return where_rows(adjusting.on[name], ask(adjusting, name, old, own), old)

        logits = jax.lax.cond(jnp.any(adjusting.on[name]), move, lambda old: old, logits)
    moved = ops.put_held(old.logits, rows.tokens, held.first, logits)
    return AdjustedLogits(moved, old.sound & held.sound)


def ask(
    adjusting: Adjusting, name: str, logits: Float[Array, "S N"], rows: Rows
) -> Float[Array, "S N"]:
    """Call the adjuster (a sampler) `name` for every row of `logits`; return the new logits.

    `adjusting` holds the adjuster's knobs and token sets. The N logits of a row are those of the
    vocabulary or of the tokens in the row; `rows` has the facts about each row that the adjuster
    may use.
    """

    def one(sampler: Sampler, logits: Float[Array, " N"], row: Rows) -> Float[Array, " N"]:
        assert isinstance(sampler, Adjuster)
        return informed(sampler, adjusting.sets[name])(logits, context(row, name))

    with jax.named_scope(name):
        return jax.vmap(one)(adjusting.bank[name], logits, rows)
