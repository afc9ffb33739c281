"""Smoothing, or quadratic sampling: logit gaps shrink near the best token and grow far from it."""

import jax.numpy as jnp

from jaxllama.sampling import Context, Knob, Shaper, knob
from jaxllama.shapes import Array, Float


class Smoothing(Shaper):
    """Square every logit's distance from the best: top - factor * distance^2.

    With smoothing_curve c: factor * ((3 - c) / 2 * distance^2 + (c - 1) / 2 * distance^3), so 1 is
    quadratic and 3 is cubic. The temperature is applied before.
    """

    order = 10
    keeps_some = True

    smoothing_factor: Knob = knob(
        off=0.0,
        low=0.0,
        high=100.0,
        help="bend the logits by the square of their distance from the best one; 0 = off",
    )
    smoothing_curve: Knob = knob(
        off=1.0,
        low=1.0,
        high=3.0,
        switch=False,
        help="bend the logits from quadratic (1) to cubic (3); higher drops unlikely tokens faster",
    )

    def __call__(self, logits: Float[Array, " N"], context: Context) -> Float[Array, " N"]:
        """Replace each logit by -factor times a power of its distance from the largest logit.

        Banned tokens stay at -inf.
        """
        del context
        alive = logits > -jnp.inf
        distance = jnp.where(alive, jnp.max(logits) - logits, 0.0)
        square, cube = (3 - self.smoothing_curve) / 2, (self.smoothing_curve - 1) / 2
        far = (square + cube * distance) * distance**2
        return jnp.where(alive, -self.smoothing_factor * far, -jnp.inf)
