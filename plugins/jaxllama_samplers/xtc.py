"""XTC, exclude top choices: now and then likely tokens are passed over for a less likely one."""

import jax
import jax.numpy as jnp

from jaxllama.sampling import Context, Knob, Shaper, knob
from jaxllama.shapes import Array, Float

LOWEST = -3e38  # about the least number of float32


class Xtc(Shaper):
    """Drop all but the least likely of the tokens that have at least `xtc_threshold`.

    Happens with a chance of `xtc_probability` at each token, and only where at least two tokens
    reach the threshold: one of them is always left. Runs after the filters. Above one half no two
    tokens can reach a threshold, so nothing happens.
    """

    order = -20  # before a late temperature: the threshold means the model's own probabilities
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
        """The logits, without the top choices or as they were."""
        # In logits, because dividing out every token's share would be two passes more.
        line = jax.nn.logsumexp(logits) + jnp.log(self.xtc_threshold)
        line = jnp.maximum(line, LOWEST)  # what is banned reaches no line
        # Of equally likely ones the last counts as the least likely, as a sorted list has it.
        least = jnp.min(jnp.where(logits >= line, logits, jnp.inf))
        place = jnp.arange(logits.shape[0])
        spared = jnp.max(jnp.where(logits == least, place, -1))
        happens = context.chance < self.xtc_probability
        return jnp.where(happens & (logits >= line) & (place != spared), -jnp.inf, logits)
