"""Constraint: a schema, a regex or a grammar says which tokens may come next."""

import jax.numpy as jnp

from jaxllama.sampling import Adjuster, Context
from jaxllama.shapes import Array, Float


class Constraint(Adjuster):
    """Ban what would break the format the request asked for.

    logit = -inf for tokens outside the set that the engine sends for this step.
    """

    order = 100  # after everything else: what is banned stays banned
    constrains = True

    def __call__(self, logits: Float[Array, " V"], context: Context) -> Float[Array, " V"]:
        """The logits of allowed tokens; -inf for the others."""
        return jnp.where(context.lets_through(logits.shape[-1]), logits, -jnp.inf)
