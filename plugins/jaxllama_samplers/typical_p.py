"""Typical-p, locally typical sampling: keeps tokens whose surprise is near the entropy."""

import jax.numpy as jnp

from jaxllama.sampling import Candidates, Context, Filter, Knob, knob
from jaxllama.shapes import Array, Bool


class TypicalP(Filter):
    """Keep the most typical tokens that together have the probability `typical_p`.

    A token is more typical if its surprise, -log p, is closer to the entropy. The token at which
    the sum reaches `typical_p` is kept; with `typical_p_strict` it is dropped, as ExLlama does. The
    likeliest token may be dropped.
    """

    order = 40
    suits_beams = True
    keeps_greedy = False

    typical_p: Knob = knob(
        off=1.0,
        low=0.0,
        high=1.0,
        help="keep the most typical tokens that together have this probability; 1 = all",
    )
    typical_p_strict: Knob = knob(
        off=False,
        switch=False,
        help="drop the token at which the sum of probabilities passes typical_p",
    )

    def __call__(self, best: Candidates, context: Context) -> Bool[Array, " C"]:
        """Return True for the most typical tokens, until their probabilities sum to typical_p."""
        del context
        surprise = best.log_total - best.logits
        order = jnp.argsort(jnp.abs(surprise - best.entropy), stable=True)
        through = jnp.cumsum(best.p[order])
        above = jnp.pad(through[:-1], (1, 0))
        strict = (through <= self.typical_p).at[0].set(True)
        keep = jnp.where(self.typical_p_strict, strict, above < self.typical_p)
        return keep[jnp.argsort(order)]
