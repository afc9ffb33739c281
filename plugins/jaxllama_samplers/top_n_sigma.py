"""Top-n-sigma: a lowest logit, n standard deviations below the best one."""

import jax.numpy as jnp

from jaxllama.sampling import Adjuster, Context, Knob, knob
from jaxllama.shapes import Array, Float


class TopNSigma(Adjuster):
    """Ban tokens whose logit is more than n standard deviations below the best.

    logit = -inf where logit < max - top_n_sigma * deviation. The deviation is computed over
    all logits that are not banned. The temperature would scale both sides alike, so this sampler
    can run before it, on the whole vocabulary and before any filter.
    """

    order = 50  # last, so that bans and biases count in the deviation
    keeps_greedy = True

    top_n_sigma: Knob = knob(
        off=0.0,
        low=0.0,
        high=100.0,
        help="drop tokens this many standard deviations below the best logit; usual: 1; 0 = off",
    )

    def __call__(self, logits: Float[Array, " V"], context: Context) -> Float[Array, " V"]:
        """Set logits more than `top_n_sigma` standard deviations below the largest one to -inf."""
        del context
        alive = logits > -jnp.inf
        below = jnp.where(alive, logits - jnp.max(logits), 0.0)
        count = jnp.maximum(jnp.sum(alive), 1)
        mean = jnp.sum(below) / count
        variance = jnp.sum(jnp.where(alive, (below - mean) ** 2, 0.0)) / count
        return jnp.where(below >= -self.top_n_sigma * jnp.sqrt(variance), logits, -jnp.inf)
