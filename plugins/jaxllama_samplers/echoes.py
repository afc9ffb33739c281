"""Echoes: earlier occurrences of the end of a row; used by the samplers against repetition."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllama.sampling import NO_TOKEN, Context, Knob
from jaxllama.shapes import Array, Bool, Int


class EchoSearch(NamedTuple):
    """Compares the tokens before every place with the newest tokens of the row, backwards."""

    reached: Int[Array, ""]  # tokens compared so far
    most: Int[Array, ""]  # tokens to compare at most
    ending: Int[Array, " T"]  # the row's tokens, newest first
    earlier: Int[Array, " T"]  # the row's tokens, shifted right by `reached`
    alive: Bool[Array, " T"]  # places that match so far
    lengths: Int[Array, " T"]  # matching tokens up to each place


def echoes(
    context: Context,
    most: Knob,
    newest: Knob = 0,
    breaks: Bool[Array, " T"] | None = None,
) -> tuple[Int[Array, " T"], Int[Array, " T"]]:
    """Return, per index of the row, the length of a match with the row's end, and the next token.

    The length at index i is the largest n, at most `most`, for which tokens[i-n+1 .. i] equal the
    newest n tokens of the row and none of them is marked in `breaks` (None: no marks). Only the
    `newest` tokens are searched (0: all). An index without a next token has length 0 and NO_TOKEN.
    The search makes one pass over the tokens for each length that still occurs: exact, and fast for
    text without repetitions.
    """
    tokens = context.tokens
    start = jnp.where(newest > 0, jnp.maximum(context.length - newest, 0), 0)
    place = jnp.arange(tokens.shape[0])
    followed = (place >= start) & (place < context.length - 1)
    counted = (place >= start) & (place < context.length)
    if breaks is not None:
        counted = counted & ~breaks
    usable = jnp.where(counted, tokens, NO_TOKEN)
    begin = EchoSearch(
        reached=jnp.int32(0),
        most=jnp.int32(most),
        ending=jnp.roll(usable[::-1], context.length),
        earlier=usable,
        alive=followed,
        lengths=jnp.zeros(tokens.shape, jnp.int32),
    )
    lengths = jax.lax.while_loop(has_more, compare_next, begin).lengths
    return lengths, jnp.where(followed, jnp.roll(tokens, -1), NO_TOKEN)


def has_more(search: EchoSearch) -> Bool[Array, ""]:
    """Say whether the match at some index of the row may be one token longer."""
    return (search.reached < search.most) & jnp.any(search.alive)


def compare_next(search: EchoSearch) -> EchoSearch:
    """Compare one more token before every index with the row's end; return the new state.

    The comparison runs backwards, from the newest token of the row on.
    """
    token = search.ending[search.reached]
    alive = search.alive & (search.earlier == token) & (token != NO_TOKEN)
    edge = jnp.full(1, NO_TOKEN, search.earlier.dtype)
    return search._replace(
        reached=search.reached + 1,
        earlier=jnp.concatenate([edge, search.earlier[:-1]]),
        alive=alive,
        lengths=search.lengths + alive,
    )
