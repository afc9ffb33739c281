"""Echoes: earlier places of a row that read like its end; shared by samplers against repetition."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllama.sampling import NO_TOKEN, Context, Knob
from jaxllama.shapes import Array, Bool, Int


class Search(NamedTuple):
    """How far the search has come: `reached` of at most `most` tokens."""

    reached: Int[Array, ""]
    most: Int[Array, ""]
    ending: Int[Array, " T"]  # the row's tokens, newest first
    earlier: Int[Array, " T"]  # the row's tokens, moved right by `reached`
    alive: Bool[Array, " T"]  # places that match so far
    lengths: Int[Array, " T"]


def echoes(
    context: Context,
    most: Knob,
    newest: Knob = 0,
    breaks: Bool[Array, " T"] | None = None,
) -> tuple[Int[Array, " T"], Int[Array, " T"]]:
    """How far every place reads like the end of the row, and the token that followed there.

    At place i: the largest n, at most `most`, for which tokens[i-n+1 .. i] are the newest n tokens
    and none of them `breaks` sequences. Only the `newest` tokens count (0: all). A place without a
    follower has length 0 and NO_TOKEN. One pass over the tokens for each length that still occurs:
    exact, and short for text that does not repeat itself.
    """
    tokens = context.tokens
    start = jnp.where(newest > 0, jnp.maximum(context.length - newest, 0), 0)
    place = jnp.arange(tokens.shape[0])
    followed = (place >= start) & (place < context.length - 1)
    counted = (place >= start) & (place < context.length)
    if breaks is not None:
        counted = counted & ~breaks
    usable = jnp.where(counted, tokens, NO_TOKEN)
    begin = Search(
        reached=jnp.int32(0),
        most=jnp.int32(most),
        ending=jnp.roll(usable[::-1], context.length),
        earlier=usable,
        alive=followed,
        lengths=jnp.zeros(tokens.shape, jnp.int32),
    )
    lengths = jax.lax.while_loop(goes_on, longer, begin).lengths
    return lengths, jnp.where(followed, jnp.roll(tokens, -1), NO_TOKEN)


def goes_on(search: Search) -> Bool[Array, ""]:
    """Whether some place may match one token more."""
    return (search.reached < search.most) & jnp.any(search.alive)


def longer(search: Search) -> Search:
    """The search, one token further back."""
    token = search.ending[search.reached]
    alive = search.alive & (search.earlier == token) & (token != NO_TOKEN)
    edge = jnp.full(1, NO_TOKEN, search.earlier.dtype)
    return search._replace(
        reached=search.reached + 1,
        earlier=jnp.concatenate([edge, search.earlier[:-1]]),
        alive=alive,
        lengths=search.lengths + alive,
    )
