"""Adaptive-p: prefer tokens near a target probability, and keep the average there."""

import dataclasses

import jax.numpy as jnp

from jaxllama.sampling import Chosen, Context, Knob, Shaper, knob, state
from jaxllama.shapes import Array, Float

WIDTH = 0.3  # these constants belong to the method as published; requests cannot set them
PEAK = 5.0
SHARPNESS = 10.0


class AdaptiveP(Shaper):
    """Replace each logit by a score of how close the token's probability is to a target.

    score = 5 - 10 * d^2 / (1 + d) for d = |p - aim| / 0.3. The aim is 2 * adaptive_target minus the
    running average of the probabilities of the chosen tokens, so that the average stays near
    adaptive_target. Runs last. Each of the many unlikely tokens keeps some weight, so combine it
    with min_p or another filter, which runs first.
    """

    order = 90
    last = True
    keeps_some = True

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
        """Return a copy whose running average starts at the target."""
        weight = 1 / (1 - self.adaptive_decay)
        return dataclasses.replace(self, total=self.adaptive_target * weight, weight=weight)

    def __call__(self, logits: Float[Array, " N"], context: Context) -> Float[Array, " N"]:
        """Score tokens by how near their probability is to the target; banned ones stay at -inf."""
        aim = jnp.clip(2 * self.adaptive_target - self.total / self.weight, 0.0, 1.0)
        distance = jnp.abs(jnp.exp(logits - context.log_total(logits)) - aim) / WIDTH
        close = PEAK - SHARPNESS * distance**2 / (1 + distance)
        moved = jnp.where(logits > -jnp.inf, close, -jnp.inf)
        return jnp.where(self.adaptive_target < 0, logits, moved)

    def observe(self, chosen: Chosen) -> "AdaptiveP":
        """Return a copy whose average includes the probability of the chosen token.

        It is the probability that the token had before this shaper.
        """
        return dataclasses.replace(
            self,
            total=chosen.shown + self.adaptive_decay * self.total,
            weight=1 + self.adaptive_decay * self.weight,
        )
