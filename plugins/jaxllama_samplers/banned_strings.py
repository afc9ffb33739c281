"""Banned strings: texts whose last token may not follow the others."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllama.sampling import NO_TOKEN, Adjuster, Context, Knob, knob
from jaxllama.shapes import Array, Bool, Float, Int
from jaxllama_samplers.phrases import places_in_phrase


class Search(NamedTuple):
    """How far the tokens before each place have been held against the row's newest."""

    reached: Int[Array, ""]
    place: Int[Array, " W"]  # within its phrase
    earlier: Int[Array, " W"]  # the phrases, moved right by `reached` + 1
    ending: Int[Array, " T"]  # the row's tokens, newest first
    alive: Bool[Array, " W"]


class BannedStrings(Adjuster):
    """Ban the token that would complete a banned text.

    logit = -inf for the last token of a phrase while the row ends with all its others; the prompt's
    tokens count. What this guarantees: a banned text never ends up in the answer in the tokens
    that the tokenizer itself writes it with, by itself or after a space. What it does not: the
    same text in other tokens - in another case, cut elsewhere, or as a part of longer tokens. Give
    such spellings too, as texts or as lists of token ids. Where all tokens would be banned, none
    is.
    """

    order = 44

    banned_strings: Knob = knob(
        off=NO_TOKEN,
        width=512,
        phrases=True,
        help="do not draw the last token of these texts after the others, as they are spelled here",
    )

    def __call__(self, logits: Float[Array, " V"], context: Context) -> Float[Array, " V"]:
        """The logits, with the ends of phrases banned where they would complete one."""
        phrases = self.banned_strings
        is_last = (phrases != NO_TOKEN) & (jnp.roll(phrases, -1) == NO_TOKEN)
        begin = Search(
            reached=jnp.int32(0),
            place=places_in_phrase(phrases),
            earlier=moved(phrases),
            ending=jnp.roll(context.tokens[::-1], context.length),
            alive=is_last & (places_in_phrase(phrases) <= context.length),
        )
        completes = jax.lax.while_loop(goes_on, further, begin).alive
        left = logits.at[jnp.where(completes, phrases, NO_TOKEN)].set(-jnp.inf, mode="drop")
        return jnp.where(jnp.any(left > -jnp.inf), left, logits)


def goes_on(search: Search) -> Bool[Array, ""]:
    """Whether some phrase still has tokens to compare."""
    return jnp.any(search.alive & (search.place > search.reached))


def further(search: Search) -> Search:
    """The search, one token further back."""
    agrees = search.earlier == search.ending[search.reached]
    return search._replace(
        reached=search.reached + 1,
        earlier=moved(search.earlier),
        alive=search.alive & (agrees | (search.place <= search.reached)),
    )


def moved(phrases: Int[Array, " W"]) -> Int[Array, " W"]:
    """One place to the right."""
    return jnp.concatenate([jnp.full(1, NO_TOKEN, phrases.dtype), phrases[:-1]])
