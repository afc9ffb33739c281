"""Positional repeat inhibition: weakens a token at the place it had in an earlier answer."""

import jax.numpy as jnp

from jaxllama.sampling import NO_TOKEN, Adjuster, Context, Knob, knob
from jaxllama.shapes import Array, Float
from jaxllama_samplers.phrases import places_in_phrase


class PositionalRepeat(Adjuster):
    """Weaken, at step i of the answer, token i of every earlier answer in the request.

    logit / penalty if the logit is positive, logit * penalty otherwise. basilisk divides in both
    cases, which makes tokens with negative logits likelier, although it promises less likely
    ones; here all of them become less likely. Past the end of an earlier answer it has no effect.
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
        """Weaken the tokens that earlier answers have at the index of the token drawn now."""
        earlier = self.positional_repeat_inhibit
        here = places_in_phrase(earlier) == context.generated
        penalty = jnp.ones(logits.shape, jnp.float32)
        ids = jnp.where(here, earlier, NO_TOKEN)
        penalty = penalty.at[ids].set(self.positional_repetition_penalty, mode="drop")
        return jnp.where(logits > 0, logits / penalty, logits * penalty)
