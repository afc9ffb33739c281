"""Dynamic temperature: higher where the model is uncertain, lower where it is certain."""

import jax
import jax.numpy as jnp

from jaxllama.sampling import Context, Knob, Shaper, knob
from jaxllama.shapes import Array, Float

COLDEST = 1e-3


class DynamicTemperature(Shaper):
    """Replace the temperature by one that follows the entropy.

    low + (high - low) * (entropy / largest entropy)^dynatemp_exponent, where low and high are the
    temperature -+ dynatemp_range, and low is at least 0. The entropy is computed at temperature 1
    over the tokens that are left; the largest entropy is the one of as many equally likely tokens.
    """

    order = -10  # before the temperature, which this cancels in advance
    keeps_some = True

    dynatemp_range: Knob = knob(
        off=0.0,
        low=0.0,
        high=100.0,
        help="let the temperature vary with the entropy by this much up and down; 0 = off",
    )
    dynatemp_exponent: Knob = knob(
        off=1.0,
        low=0.01,
        high=100.0,
        switch=False,
        help="above 1, raise the temperature only at high entropy; below 1, earlier",
    )

    def __call__(self, logits: Float[Array, " N"], context: Context) -> Float[Array, " N"]:
        """Scale the logits so that dividing them by `temperature` later gives the dynamic one."""
        p = jax.nn.softmax(logits)
        entropy = jnp.sum(jax.scipy.special.entr(p))
        largest = jnp.log(jnp.maximum(jnp.sum(logits > -jnp.inf), 2))
        share = jnp.clip(entropy / largest, 0.0, 1.0) ** self.dynatemp_exponent
        low = jnp.maximum(context.temperature - self.dynatemp_range, 0.0)
        high = context.temperature + self.dynatemp_range
        heat = jnp.maximum(low + (high - low) * share, COLDEST)
        below = (logits - jnp.max(logits)) * (context.temperature / heat)
        return jnp.where(logits > -jnp.inf, below, -jnp.inf)
