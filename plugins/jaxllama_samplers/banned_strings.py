"""Banned strings: texts that an answer may not contain, banned at their last token."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllama.sampling import NO_TOKEN, Adjuster, Context, Knob, knob
from jaxllama.shapes import Array, Bool, Float, Int
from jaxllama_samplers.phrases import places_in_phrase


class PhraseSearch(NamedTuple):
    """Compares the tokens before each phrase token with the newest tokens of the row, backwards."""

    reached: Int[Array, ""]  # tokens compared so far
    place: Int[Array, " W"]  # of each token within its phrase
    earlier: Int[Array, " W"]  # the phrases, shifted right by `reached` + 1
    ending: Int[Array, " T"]  # the row's tokens, newest first
    alive: Bool[Array, " W"]  # last tokens of phrases that match so far


class BannedStrings(Adjuster):
    """Ban the token that would complete a banned text.

    logit = -inf for the last token of a phrase while the row ends with all tokens before it; tokens
    of the prompt count. Guaranteed: the answer never contains a banned text in the tokens that the
    tokenizer itself uses for the text, alone or after a space. Not guaranteed: the same text in
    other tokens - in another case, split elsewhere, or as part of longer tokens. Give such
    spellings too, as texts or as lists of token ids. If all tokens would be banned, none is.
    """

    order = 44

    banned_strings: Knob = knob(
        off=NO_TOKEN,
        width=512,
        phrases=True,
        help="do not draw the last token of these texts after the others, as they are spelled here",
    )

    def __call__(self, logits: Float[Array, " V"], context: Context) -> Float[Array, " V"]:
        """Set the logits of tokens that would complete a banned phrase to -inf.

        If that would ban every token, return the logits unchanged.
        """
        phrases = self.banned_strings
        is_last = (phrases != NO_TOKEN) & (jnp.roll(phrases, -1) == NO_TOKEN)
        begin = PhraseSearch(
            reached=jnp.int32(0),
            place=places_in_phrase(phrases),
            earlier=shift_right(phrases),
            ending=jnp.roll(context.tokens[::-1], context.length),
            alive=is_last & (places_in_phrase(phrases) <= context.length),
        )
        completes = jax.lax.while_loop(has_more, compare_next, begin).alive
        left = logits.at[jnp.where(completes, phrases, NO_TOKEN)].set(-jnp.inf, mode="drop")
        return jnp.where(jnp.any(left > -jnp.inf), left, logits)


def has_more(search: PhraseSearch) -> Bool[Array, ""]:
    """Say whether some phrase still has tokens to compare."""
    return jnp.any(search.alive & (search.place > search.reached))


def compare_next(search: PhraseSearch) -> PhraseSearch:
    """Compare one more token of every phrase with the row, backwards; return the new state.

    A phrase that differs from the end of the row in this token drops out.
    """
    agrees = search.earlier == search.ending[search.reached]
    return search._replace(
        reached=search.reached + 1,
        earlier=shift_right(search.earlier),
        alive=search.alive & (agrees | (search.place <= search.reached)),
    )


def shift_right(phrases: Int[Array, " W"]) -> Int[Array, " W"]:
    """Shift tokens one place to the right; NO_TOKEN comes first."""
    return jnp.concatenate([jnp.full(1, NO_TOKEN, phrases.dtype), phrases[:-1]])
