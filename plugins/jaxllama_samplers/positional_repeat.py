"""Positional repeat inhibition: an answer does not go step by step as earlier ones did."""

import jax.numpy as jnp

from jaxllama.sampling import NO_TOKEN, Adjuster, Context, Knob, knob
from jaxllama.shapes import Array, Float
from jaxllama_samplers.phrases import places_in_phrase


class PositionalRepeat(Adjuster):
    """Weaken, at step i of the answer, token i of every earlier answer it is given.

    logit / penalty where it is positive, logit * penalty where it is not. basilisk divides in both
    cases, which makes tokens with negative logits likelier; what it promises is that they become
    less likely, and so they do here. Past the end of an earlier answer it has no effect.
    """

    order = 15

    positional_repetition_penalty: Knob = knob(
        off=1.0,
        low=0.01,
        high=100.0,
        help="weaken the token that an earlier answer has at the same place by this; 1 = off",
    )
    positional_repeat_inhibit: Knob = knob(
        off=NO_TOKEN,
        width=2048,
        phrases=True,
        switch=False,
        help="give earlier answers that this one should not repeat token by token",
    )

    def __call__(self, logits: Float[Array, " V"], context: Context) -> Float[Array, " V"]:
        """The logits, weaker for tokens that were at this place before."""
        earlier = self.positional_repeat_inhibit
        here = places_in_phrase(earlier) == context.generated
        penalty = jnp.ones(logits.shape, jnp.float32)
        ids = jnp.where(here, earlier, NO_TOKEN)
        penalty = penalty.at[ids].set(self.positional_repetition_penalty, mode="drop")
        return jnp.where(logits > 0, logits / penalty, logits * penalty)
