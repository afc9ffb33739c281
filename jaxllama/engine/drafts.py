"""Drafts: the tokens that may follow a row, looked up in the row's own tokens on the device.

Used by `steps.py` inside the decode program. A draft continues the row as it went on after the
latest earlier place where its last tokens occur; `draft_model.py` computes other drafts. The model
then checks the draft in one pass: a wrong draft costs time and changes no token. Also decides how
many tokens are worth it. Knows tokens, neither logits nor samplers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllama.scopes import scoped
from jaxllama.shapes import Array, Bool, Float, Int32

SHORTEST, LONGEST = 2, 8  # tokens of a match that are compared, at least and at most
SURE = 6  # tokens of a match that goes before the drafts of a draft model
MEMORY = 12.0  # earlier drafted tokens that count as much as all before them in `Trust`
HOPEFUL = 0.6  # the share of accepted tokens that a new row starts with
HOPEFUL_OF_MODEL = 0.75  # the same with a draft model
HIGHEST = 0.99  # trust that checks can reach
MARGIN = 1.1
# Times relative to a step with one row (two cores, AVX-512): of a step with any drafts, and of
# each place for a draft in a slot, used or not.
START, PLACE = 0.05, 0.004
DRAFTED = 1.3  # time of a drafted row relative to another one: it is drawn in a turn of its own
DOUBT = 0.75  # each further token of a match multiplies the doubt in a draft by this


class Drafts(NamedTuple):
    """The tokens drafted for every row."""

    tokens: Int32[Array, "S N"]
    length: Int32[Array, " S"]  # the number of tokens that are worth a check


@scoped
def find_drafts(
    tokens: Int32[Array, "S T"], known: Int32[Array, " S"], most: int
) -> tuple[Int32[Array, "S N"], Int32[Array, " S"]]:
    """Draft `most` tokens per row: those that followed its last tokens earlier in the row.

    Of each row of `tokens`, only the first `known` entries are used. The longest earlier match is
    taken, of equally long ones the latest. If fewer than `most` tokens follow the match, they are
    repeated. Also returns the length of each match in tokens: 0, without a usable draft, if it is
    below SHORTEST.
    """

    def of_row(
        tokens: Int32[Array, " T"], known: Int32[Array, ""]
    ) -> tuple[Int32[Array, " N"], Int32[Array, ""]]:
        width = tokens.shape[0]
        place = jnp.arange(width, dtype=jnp.int32)
        padded = jnp.concatenate([jnp.full(LONGEST, -1, jnp.int32), tokens])
        same, length = place < known - 1, jnp.zeros(width, jnp.int32)
        for back in range(LONGEST):
            wanted = tokens[jnp.maximum(known - 1 - back, 0)]
            earlier = jax.lax.slice_in_dim(padded, LONGEST - back, LONGEST - back + width)
            same &= earlier == wanted
            length += same
        best = jnp.max(jnp.where(length >= SHORTEST, length * width + place, 0))
        first = best % width + 1
        period = jnp.maximum(known - first, 1)
        found = tokens[jnp.minimum(first + jnp.arange(most) % period, width - 1)]
        return found, best // width

    found: tuple[Array, Array] = jax.vmap(of_row)(tokens, known)
    return found


def worth_checking(
    trust: Float[Array, " S"], match: Int32[Array, " S"], least: Float[Array, ""], most: int
) -> Int32[Array, " S"]:
    """Return how many drafted tokens of each row are likely enough to be drawn, at most `most`.

    `trust` is each row's share of accepted drafted tokens so far. `match` is the length of the
    match from which the draft was copied (SHORTEST with a draft model; less: no draft). The n-th
    token counts if its chance, trust ** n, is at least `least`. Each token of the match beyond
    SHORTEST first multiplies 1 - trust by DOUBT, so after a long match even a row with little trust
    drafts. A row with a trust of 1 drafts `most` tokens after any match.
    """
    likely = jnp.sum(chances(trust, match, most) >= least, axis=1)
    count = jnp.where(trust < 1.0, likely, most)
    return jnp.where(match >= SHORTEST, count, 0).astype(jnp.int32)


def chances(trust: Float[Array, " S"], match: Int32[Array, " S"], most: int) -> Float[Array, "S N"]:
    """Return the chances that the first `most` drafted tokens of each row are accepted.

    `worth_checking` explains `trust` and `match`.
    """
    doubt = (1.0 - trust) * DOUBT ** (match - SHORTEST).astype(jnp.float32)
    found: Array = (1.0 - doubt)[:, None] ** jnp.arange(1, most + 1)
    return found


def pay_together(
    chance: Float[Array, "S N"], count: Int32[Array, " S"], rows: Float[Array, ""], row_cost: float
) -> Bool[Array, ""]:
    """Say whether a step with drafts gives more tokens per second than one without.

    `chance` are the chances that the drafted tokens of each row are accepted, of which the first
    `count` would be checked. The step has `rows` rows without drafts. `row_cost` is the time of one
    more row, relative to a step with one row.
    """
    slots, most = chance.shape
    is_checked = jnp.arange(most) < count[:, None]
    gain = jnp.sum(jnp.where(is_checked, chance, 0.0))
    added = START + PLACE * slots * most + DRAFTED * row_cost * jnp.sum(count)
    pays: Array = gain * step_time(row_cost, rows) >= MARGIN * rows * added
    return pays


def step_time(row_cost: float, rows: Float[Array, ""] | float) -> Float[Array, ""] | float:
    """Return the time of a step with `rows` rows, relative to a step with one row.

    `row_cost` is the time of one more row on the same scale.
    """
    return 1.0 + row_cost * (rows - 1.0)


def updated_trust(
    trust: Float[Array, " S"], count: Int32[Array, " S"], accepted: Int32[Array, " S"]
) -> Float[Array, " S"]:
    """Return each row's running share of accepted drafted tokens after one more check.

    `trust` is the share before; `count` tokens were drafted and `accepted` of them drawn. A trust
    of 1 never changes: such a row always drafts.
    """
    checked = jnp.minimum(count, accepted + 1)  # what follows a wrong token was not checked
    moved = jnp.minimum((MEMORY * trust + accepted) / (MEMORY + checked), HIGHEST)
    return jnp.where(trust < 1.0, moved, trust)


def least_chance(
    row_cost: float,
    rows: Float[Array, ""],
    draft_cost: float = 0.0,
    drafting: Float[Array, ""] | float = 1.0,
) -> Float[Array, ""]:
    """Return the chance of acceptance above which it saves time to check a drafted token.

    The step has `rows` rows. `row_cost` is the time of one more row, relative to a step with one
    row; a drafted token costs DRAFTED times as much. `draft_cost` is the time of a step of the
    draft model relative to a step of the model, each with one row; 0 if drafts are looked up in the
    row's tokens. `drafting` is the number of rows that share a step of the draft model. MARGIN
    covers other costs of drafts.
    """
    share = draft_cost * step_time(row_cost, drafting) / drafting
    least: Array = MARGIN * (DRAFTED * row_cost + share) * rows / step_time(row_cost, rows)
    return least
