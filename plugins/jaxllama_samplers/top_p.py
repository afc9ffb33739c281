"""Top-p, nucleus sampling: keeps the likeliest tokens that together have the probability p."""

import jax.numpy as jnp

from jaxllama.sampling import Candidates, Context, Filter, Knob, knob
from jaxllama.shapes import Array, Bool


class TopP(Filter):
    """Keep a token if all likelier ones have less than `top_p` together: sum(p above) < top_p.

    The token at which the sum reaches `top_p` is kept, so the kept tokens have at least `top_p`.
    With `top_p_strict` that token is dropped, as ExLlama does: the kept tokens have at most
    `top_p`, or the likeliest token is the only one.
    """

    order = 20
    common = True
    suits_beams = True

    top_p: Knob = knob(
        off=1.0,
        low=0.0,
        high=1.0,
        help="keep the likeliest tokens that together have this probability; 1 = all",
    )

    top_p_strict: Knob = knob(
        off=False,
        switch=False,
        help="drop the token at which the sum of probabilities passes top_p",
    )

    def __call__(self, best: Candidates, context: Context) -> Bool[Array, " C"]:
        """Return True for the likeliest tokens, up to the one at which their sum reaches `top_p`.

        With `top_p_strict`, that token is left out.
        """
        del context
        through = jnp.cumsum(best.p)
        above = jnp.pad(through[:-1], (1, 0))
        return jnp.where(self.top_p_strict, through <= self.top_p, above < self.top_p)
