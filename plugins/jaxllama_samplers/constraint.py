"""Constraint: bans tokens that a JSON schema, a regex or a grammar forbids."""

import jax.numpy as jnp

from jaxllama.sampling import Adjuster, Context
from jaxllama.shapes import Array, Float


class Constraint(Adjuster):
    """Ban tokens that would break the output format of the request.

    logit = -inf for tokens outside the set that the engine sends for this step.
    """

    order = 100  # after all other adjusters: no later one can lift the ban
    constrains = True

    def __call__(self, logits: Float[Array, " V"], context: Context) -> Float[Array, " V"]:
        """Keep the logits of allowed tokens; set the others to -inf."""
        return jnp.where(context.lets_through(logits.shape[-1]), logits, -jnp.inf)
