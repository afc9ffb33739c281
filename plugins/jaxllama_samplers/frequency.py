"""Presence and frequency penalties: tokens of the answer become less likely."""

import jax.numpy as jnp

from jaxllama.sampling import NO_TOKEN, Adjuster, Context, Knob, knob
from jaxllama.shapes import Array, Float


class Frequency(Adjuster):
    """Lower the logits of tokens that the answer already contains.

    logit - frequency_penalty * count - presence_penalty * (count > 0)

    The prompt does not count, as in OpenAI's API, unless `prompt_penalty_window` is set. A token at
    place i of a prompt of n tokens then adds i / n to the count, as in LLaMbA's Quick sampler.
    """

    order = 20
    held_only = True

    presence_penalty: Knob = knob(
        off=0.0,
        low=-2.0,
        high=2.0,
        help="subtract this from the logit of every token that occurs in the answer",
    )
    frequency_penalty: Knob = knob(
        off=0.0,
        low=-2.0,
        high=2.0,
        help="subtract this from a token's logit once per occurrence in the answer",
    )
    prompt_penalty_window: Knob = knob(
        off=0,
        low=0,
        switch=False,
        help="count this many of the prompt's newest tokens, too, early ones less; 0 = off",
    )

    def __call__(self, logits: Float[Array, " V"], context: Context) -> Float[Array, " V"]:
        """Subtract the frequency and presence penalties from the logits of tokens that occurred."""
        place = jnp.arange(context.tokens.shape[0])
        in_answer = (place >= context.prompt) & (place < context.length)
        in_prompt = (place >= context.prompt - self.prompt_penalty_window) & (
            place < context.prompt
        )
        weight = jnp.where(in_prompt, place / context.prompt, in_answer)
        ids = jnp.where(in_prompt | in_answer, context.tokens, NO_TOKEN)
        count = jnp.zeros(logits.shape, jnp.float32).at[ids].add(weight, mode="drop")
        occurs = jnp.zeros(logits.shape, jnp.bool_).at[ids].set(True, mode="drop")
        return logits - self.frequency_penalty * count - self.presence_penalty * occurs
