"""XTC, exclude top choices: sometimes drops likely tokens in favour of a less likely one."""

import jax
import jax.numpy as jnp

from jaxllama.sampling import Context, Knob, Shaper, knob
from jaxllama.shapes import Array, Bool, Float, Int32

BLOCK = 256  # logits
LOWEST = -3e38  # about the most negative float32 number


class Xtc(Shaper):
    """Drop all but the least likely of the tokens that have at least `xtc_threshold`.

    Happens with probability `xtc_probability` at each step, and only if at least two tokens reach
    the threshold; one of them is always left. Runs after the filters. No two tokens can reach a
    threshold above one half, so such a threshold has no effect.
    """

    order = -20  # before a late temperature: the threshold applies to the model's own probabilities
    last = True
    keeps_some = True

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
        """Set the logits of tokens at or above the threshold, but the smallest of these, to -inf.

        With probability 1 - `xtc_probability`, return the logits unchanged.
        """
        # Compares logits, because computing all probabilities would take another pass.
        line = context.log_total(logits) + jnp.log(self.xtc_threshold)
        line = jnp.maximum(line, LOWEST)  # banned tokens, at -inf, stay below
        place = jnp.arange(logits.shape[0])
        happens = context.chance < self.xtc_probability
        dropped = happens & (logits >= line) & (place != least_likely(logits, line))
        return jnp.where(dropped, -jnp.inf, logits)


def least_likely(logits: Float[Array, " N"], line: Float[Array, ""]) -> Int32[Array, ""]:
    """Return the index of the smallest of the logits that are at least `line`.

    Of equal ones it is the last. Reads all logits once: the smallest of each block first, then one
    block again.
    """
    filled = jnp.pad(logits, (0, -logits.shape[0] % BLOCK), constant_values=-jnp.inf)
    reached = jnp.where(filled >= line, filled, jnp.inf)
    of_block = jnp.min(reached.reshape(-1, BLOCK), axis=1)
    least = jnp.min(of_block)
    start = last_of(of_block == least) * BLOCK
    return start + last_of(jax.lax.dynamic_slice(filled, (start,), (BLOCK,)) == least)


def last_of(marks: Bool[Array, " N"]) -> Int32[Array, ""]:
    """Return the index of the last True; 0 if there is none."""
    return jnp.max(jnp.where(marks, jnp.arange(marks.shape[0], dtype=jnp.int32), 0))
