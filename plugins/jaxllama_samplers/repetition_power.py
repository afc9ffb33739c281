"""Repetition power: each earlier occurrence of a token multiplies its logit once."""

import jax.numpy as jnp

from jaxllama.sampling import Adjuster, Context, Knob, knob
from jaxllama.shapes import Array, Float


class RepetitionPower(Adjuster):
    """Multiply the logit of a token that occurred n times by repetition_power to the n.

    logit * repetition_power^n, counting the prompt and the answer. This is the repetition penalty
    that rllama intended (its code reached only token 0). A power below 1 lowers positive logits
    and, as in rllama, raises negative ones.
    """

    order = 11
    held_only = True

    repetition_power: Knob = knob(
        off=1.0,
        low=0.01,
        high=100.0,
        help="multiply a token's logit by this per earlier occurrence; below 1 weakens; 1 = off",
    )

    def __call__(self, logits: Float[Array, " V"], context: Context) -> Float[Array, " V"]:
        """Multiply the logit of a token that occurred n times by `repetition_power` to the n."""
        # Bounded, because a token may occur thousands of times and no logit may become infinite.
        power = jnp.clip(self.repetition_power ** context.counts(logits.shape[0]), 1e-6, 1e6)
        return logits * power
