"""Adaptive-p: prefer tokens near a target probability, and keep the average there."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxllama.sampling import Chosen, Context, Knob, Shaper, knob, state
from jaxllama.shapes import Array, Float

WIDTH = 0.3  # these are constants of the method: its authors found them, no request sets them
PEAK = 5.0
SHARPNESS = 10.0


class AdaptiveP(Shaper):
    """Replace the logits by how close each probability is to a target.

    5 - 10 * d^2 / (1 + d) for d = |p - target now| / 0.3. The target now is 2 * adaptive_target
    minus the running average of the probabilities that chosen tokens had, so that the average
    stays near adaptive_target. Runs last. Unlikely tokens are many and each keeps some weight:
    use it behind min_p or another filter.
    """

    order = 90
    last = True

    adaptive_target: Knob = knob(
        off=-1.0,
        low=-1.0,
        high=1.0,
        help="prefer tokens that have about this probability; below 0 = off",
    )
    adaptive_decay: Knob = knob(
        off=0.9,
        low=0.0,
        high=0.99,
        switch=False,
        help="weigh earlier tokens by this in the running average; higher forgets slower",
    )
    total: Knob = state(start=0.0)
    weight: Knob = state(start=0.0)

    def start(self) -> "AdaptiveP":
        """As if every token so far had hit the target."""
        weight = 1 / (1 - self.adaptive_decay)
        return dataclasses.replace(self, total=self.adaptive_target * weight, weight=weight)

    def __call__(self, logits: Float[Array, " N"], context: Context) -> Float[Array, " N"]:
        """The logits by closeness to the target."""
        del context
        aim = jnp.clip(2 * self.adaptive_target - self.total / self.weight, 0.0, 1.0)
        distance = jnp.abs(jax.nn.softmax(logits) - aim) / WIDTH
        close = PEAK - SHARPNESS * distance**2 / (1 + distance)
        moved = jnp.where(logits > -jnp.inf, close, -jnp.inf)
        return jnp.where(self.adaptive_target < 0, logits, moved)

    def observe(self, chosen: Chosen) -> "AdaptiveP":
        """The average, with the probability the token had before this."""
        return dataclasses.replace(
            self,
            total=chosen.shown + self.adaptive_decay * self.total,
            weight=1 + self.adaptive_decay * self.weight,
        )
