"""Forced tokens: those that rows get because their constraints allow no others, inside a step.

Used by `steps.py` inside the decode program; `guides.py` fills the array that they arrive in. A
step computes several of them for a row, in the places of drafts. Knows no logits, no constraint.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxllama.engine.state import DecodeState
from jaxllama.sampling import NO_TOKEN
from jaxllama.scopes import scoped
from jaxllama.shapes import Array, Bool, Int32, UInt32


class ForcedTokens(NamedTuple):
    """The tokens that come next in each row because its constraint allows no others.

    A row has tokens in one of the arrays; NO_TOKEN fills the rest.
    """

    given: Int32[Array, "S N"]  # go into the row without being drawn
    drawn: Int32[Array, "S N"]  # drawn one after the other, for samplers and log-probabilities


class StepInput(NamedTuple):
    """The tokens that a step computes in every row, besides drafts, and where they begin."""

    pending: Int32[Array, " S"]
    column: Int32[Array, " S"]  # of the pending token
    given: Int32[Array, "S N"]  # those after it ...
    length: Int32[Array, " S"]  # ... and how many there are


def nothing_forced(slots: int, most: int) -> Int32[np.ndarray, "2 S N"] | None:
    """Return an empty array of forced tokens, with room for `most` of them in each slot.

    A forced token is the only one that a row's constraint allows. Index 0 of the first axis is for
    tokens that are not drawn by the samplers, index 1 for drawn ones. All entries are NO_TOKEN.
    Returns None if `most` is 0.
    """
    return np.full((len(ForcedTokens._fields), slots, most), NO_TOKEN, np.int32) if most else None


@scoped
def masks_at(
    place: Int32[Array, ""], allowed: UInt32[Array, "S W"], drawn: Int32[Array, "S N"]
) -> UInt32[Array, "S W"]:
    """Return each row's mask of allowed tokens for the token at index `place` of a step.

    `drawn` has, by index in the step, the forced tokens of each row, padded with NO_TOKEN. A forced
    token is the only one that the row's constraint allows, so the mask allows it alone. Without one
    at this index, the mask is that in `allowed`, which has a bit per token of the vocabulary.
    """
    token = drawn[:, jnp.minimum(place, drawn.shape[1] - 1)][:, None]
    is_forced = (token != NO_TOKEN) & (place < drawn.shape[1])
    bit = jnp.uint32(1) << (token % 32).astype(jnp.uint32)
    alone = jnp.where(jnp.arange(allowed.shape[1]) == token // 32, bit, jnp.uint32(0))
    masks: Array = jnp.where(is_forced, alone, allowed)
    return masks


def input_of(
    state: DecodeState, active: Bool[Array, " S"], given: Int32[Array, "S N"]
) -> StepInput:
    """Return the tokens that a step computes in any case: pending ones and forced ones.

    The pending token of a row is its newest one, which is not in the cache yet. `given` has the
    tokens that come after it without being drawn, because the constraint of the row allows no
    others; only those of rows in the mask `active` count. A guidance row, which decodes the
    negative prompt of a request, gets the forced tokens of the row that it guides.
    """
    own = given[state.speaker]
    is_there = active[:, None] & (own != NO_TOKEN)
    length = jnp.sum(is_there, axis=1, dtype=jnp.int32)
    return StepInput(state.pending, state.length, jnp.where(is_there, own, 0), length)


def after_given(state: DecodeState, fed: StepInput) -> DecodeState:
    """Return the state after the forced tokens in `fed` were appended to their rows.

    A forced token is the only one that a row's constraint allows. The last one of a row
    becomes its pending token: the newest one, which is not in the cache yet. Rows without forced
    tokens stay as they are.
    """
    slots, most = fed.given.shape
    index = jnp.arange(most)
    is_there = index < fed.length[:, None]
    place = jnp.where(is_there, fed.column[:, None] + 1 + index, state.tokens.shape[1])
    tokens = state.tokens.at[jnp.arange(slots)[:, None], place].set(fed.given, mode="drop")
    last = fed.given[jnp.arange(slots), jnp.maximum(fed.length - 1, 0)]
    return dataclasses.replace(
        state,
        tokens=tokens,
        length=state.length + fed.length,
        pending=jnp.where(fed.length > 0, last, state.pending),
        budget=state.budget - fed.length,
    )
