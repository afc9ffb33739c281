"""XTC, exclude top choices: sometimes drops likely tokens in favour of a less likely one."""

import jax
import jax.numpy as jnp

from jaxllama.sampling import Context, Knob, Shaper, knob
from jaxllama.shapes import Array, Float

LOWEST = -3e38  # about the most negative float32 number


class Xtc(Shaper):
    """Drop all but the least likely of the tokens that have at least `xtc_threshold`.

    Happens with probability `xtc_probability` at each step, and only if at least two tokens reach
    the threshold; one of them is always left. Runs after the filters. No two tokens can reach a
    threshold above one half, so such a threshold has no effect.
    """

    order = -20  # before a late temperature: the threshold applies to the model's own probabilities
    last = True

    xtc_probability: Knob = knob(
        off=0.0, low=0.0, high=1.0, help="drop the likeliest tokens with this probability; 0 = off"
    )
    xtc_threshold: Knob = knob(
        off=0.1,
        low=0.0,
        high=1.0,
        switch=False,
        help="count tokens from this probability on as the likeliest; usual: 0.1",
    )

    def __call__(self, logits: Float[Array, " N"], context: Context) -> Float[Array, " N"]:
        """Drop the top choices, or return the logits unchanged."""
        # Compares logits, because computing all probabilities would take two more passes.
        line = jax.nn.logsumexp(logits) + jnp.log(self.xtc_threshold)
        line = jnp.maximum(line, LOWEST)  # banned tokens, at -inf, stay below
        # Among equally likely tokens the last one counts as the least likely, as in a sorted list.
        least = jnp.min(jnp.where(logits >= line, logits, jnp.inf))
        place = jnp.arange(logits.shape[0])
        spared = jnp.max(jnp.where(logits == least, place, -1))
        happens = context.chance < self.xtc_probability
        return jnp.where(happens & (logits >= line) & (place != spared), -jnp.inf, logits)
