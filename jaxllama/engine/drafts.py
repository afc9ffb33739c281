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
from jaxllama.shapes import Array, Float, Int32

SHORTEST, LONGEST = 2, 8  # tokens of a match that are compared, at least and at most
SURE = 6  # tokens of a match that goes before the drafts of a draft model
MEMORY = 12.0  # earlier drafted tokens that count as much as all before them in `Trust`
HOPEFUL = 0.6  # the share of accepted tokens that a new row starts with
HOPEFUL_OF_MODEL = 0.75  # the same with a draft model
HIGHEST = 0.99  # trust that checks can reach
MARGIN = 1.1
DOUBT = 0.75  # each further token of a match multiplies the doubt in a draft by this


class Drafts(NamedTuple):
    """The tokens drafted for every row."""

    tokens: Int32[Array, "S N"]
    length: Int32[Array, " S"]  # the number of tokens that are worth a check


@scoped
def find_drafts(
    tokens: Int32[Array, "S T"], known: Int32[Array, " S"], most: int
) -> tuple[Int32[Array, "S N"], Int32[Array, " S"]]:
    """Draft the next `most` tokens of each row by looking up its last tokens earlier in the row.

    `tokens` are the rows, of which the first `known` entries are tokens. The longest earlier match
    is taken, of equally long ones the latest; the draft is what followed it. Also returns how many
    tokens match, 0 if fewer than SHORTEST. A match that reaches into the last tokens repeats: after
    "a b a b" follows "a b a b".
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

    `trust` is each row's share of accepted drafted tokens so far. `match` is the length in tokens
    of the match that the draft was found by (SHORTEST with a draft model; less: no draft). The
    chance of the n-th token is trust ** n, and must be at least `least`. If the match is longer
    than SHORTEST, 1 - trust is first multiplied by DOUBT for each further token. So a row whose
    drafts are never accepted drafts only after a long match. A row with a trust of 1 drafts `most`
    tokens after any match.
    """
    doubt = (1.0 - trust) * DOUBT ** (match - SHORTEST).astype(jnp.float32)
    chance = (1.0 - doubt)[:, None] ** jnp.arange(1, most + 1)
    count = jnp.where(trust < 1.0, jnp.sum(chance >= least, axis=1), most)
    return jnp.where(match >= SHORTEST, count, 0).astype(jnp.int32)


def updated_trust(
    trust: Float[Array, " S"], count: Int32[Array, " S"], accepted: Int32[Array, " S"]
) -> Float[Array, " S"]:
    """Return each row's running share of accepted drafted tokens after one more check.

    `trust` is the share before; `count` tokens were drafted and `accepted` of them drawn. Rows with
    trust 1 always draft and keep it.
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
    """Return the chance from which a drafted token is worth its time, in a step with `rows` rows.

    `row_cost` is the time of one more row, relative to a step with one row. `draft_cost` is the
    time of a step of the draft model with one row, relative to one of the model; 0: drafts are
    looked up. `drafting` is the number of rows that share a step of the draft model. A draft pays
    if it adds more to the tokens of a step than to its time; MARGIN covers other costs of a step
    with drafts.
    """
    share = draft_cost * (1.0 + row_cost * (drafting - 1.0)) / drafting
    least: Array = MARGIN * (row_cost + share) * rows / (1.0 + row_cost * (rows - 1.0))
    return least
