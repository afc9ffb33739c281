"""No repeated n-gram: a sequence of n tokens may not occur again."""

import jax.numpy as jnp

from jaxllama.sampling import NO_TOKEN, Adjuster, Context, Knob, knob
from jaxllama.shapes import Array, Float
from jaxllama_samplers.echoes import echoes


class NoRepeatNgram(Adjuster):
    """Ban every token that would complete an n-gram that the row already contains.

    logit = -inf where the newest n - 1 tokens and this one occur in the prompt or the answer.
    If that would ban every token, none is banned.
    """

    order = 45

    no_repeat_ngram_size: Knob = knob(
        off=0, low=0, help="do not repeat any sequence of this many tokens; 0 = off"
    )

    def __call__(self, logits: Float[Array, " V"], context: Context) -> Float[Array, " V"]:
        """Set the logits of tokens that would complete an n-gram of the row again to -inf."""
        length = self.no_repeat_ngram_size - 1
        lengths, following = echoes(context, length)
        ids = jnp.where((lengths >= length) & (length >= 0), following, NO_TOKEN)
        # For n = 1 the first token counts too; `echoes` lists only tokens that follow another.
        ids = ids.at[-1].set(jnp.where(length == 0, context.tokens[0], NO_TOKEN))
        banned = logits.at[ids].set(-jnp.inf, mode="drop")
        return jnp.where(jnp.any(banned > -jnp.inf), banned, logits)
