"""Ideal length: end tokens are less likely before an answer has its length, likelier after."""

import jax
import jax.numpy as jnp

from jaxllama.sampling import NO_TOKEN, Adjuster, Context, Knob, knob
from jaxllama.shapes import Array, Float

STRENGTH = 100.0
LEAST = 1e-8


class IdealLength(Adjuster):
    """Lower the logits of end tokens before `ideal_length` tokens and raise them after.

    logit - 100 * (1 - generated / ideal_length) for tokens that end the answer and have a
    probability above 1e-8 at temperature 1: LLaMbA's ideal response length.
    """

    order = 35

    ideal_length: Knob = knob(
        off=0,
        low=0,
        help="make end tokens unlikely before and likely after this many tokens; 0 = off",
    )

    def __call__(self, logits: Float[Array, " V"], context: Context) -> Float[Array, " V"]:
        """Lower the logits of end tokens while the answer is too short; raise them afterwards.

        `ideal_length` is the number of tokens at which they stay unchanged.
        """
        share = context.generated / jnp.maximum(self.ideal_length, 1)
        ends = logits.at[context.stop_ids].get(mode="fill", fill_value=-jnp.inf)
        likely = ends - jax.nn.logsumexp(logits) > jnp.log(LEAST)
        ids = jnp.where(likely, context.stop_ids, NO_TOKEN)
        return logits.at[ids].add(-STRENGTH * (1 - share), mode="drop")
