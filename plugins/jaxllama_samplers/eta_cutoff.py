"""Eta cutoff: a lowest probability that decreases where the model is uncertain."""

import jax.numpy as jnp

from jaxllama.sampling import Candidates, Context, Filter, Knob, knob
from jaxllama.shapes import Array, Bool


class EtaCutoff(Filter):
    """Keep tokens with p >= min(eta, sqrt(eta) * exp(-entropy)).

    eta is a probability, as in Hugging Face, not ten-thousandths of one. The likeliest token is
    kept even below the limit.
    """

    order = 60

    eta_cutoff: Knob = knob(
        off=0.0,
        low=0.0,
        high=1.0,
        help="drop tokens less likely than this, or less where the entropy is high; 0 = off",
    )

    def __call__(self, best: Candidates, context: Context) -> Bool[Array, " C"]:
        """Return True for tokens with p >= min(eta, sqrt(eta) * exp(-entropy))."""
        del context
        sinking = jnp.sqrt(self.eta_cutoff) * jnp.exp(-best.entropy)
        return best.p >= jnp.minimum(self.eta_cutoff, sinking)
