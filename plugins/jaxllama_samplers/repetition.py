"""Repetition penalty: tokens that occurred become less likely."""

import jax.numpy as jnp

from jaxllama.sampling import Adjuster, Context, Knob, knob
from jaxllama.shapes import Array, Float


class Repetition(Adjuster):
    """Weaken the logits of tokens that occur in the prompt or the answer.

    logit / repetition_penalty where it is positive, logit * repetition_penalty where it is not:
    a penalty above 1 lowers both. How often a token occurred does not matter.
    """

    order = 10

    repetition_penalty: Knob = knob(
        off=1.0,
        low=0.01,
        high=100.0,
        help="above 1 makes tokens that already occurred less likely, below 1 more; 1 = neither",
    )
    repetition_window: Knob = knob(
        off=0,
        low=0,
        switch=False,
        help="how many of the newest tokens the repetition penalty looks at; 0 = all",
    )

    def __call__(self, logits: Float[Array, " V"], context: Context) -> Float[Array, " V"]:
        """The logits, weaker where a token occurred."""
        weaker = jnp.where(
            logits > 0, logits / self.repetition_penalty, logits * self.repetition_penalty
        )
        occurred = context.counts(logits.shape[0], self.repetition_window) > 0
        return jnp.where(occurred, weaker, logits)
