"""Top-p, nucleus sampling: the likeliest tokens that together hold a share p."""

import jax.numpy as jnp

from jaxllama.sampling import Candidates, Context, Filter, Knob, knob
from jaxllama.shapes import Array, Bool


class TopP(Filter):
    """Keep a token while the likelier ones hold less than `top_p` together: sum(p above) < top_p.

    The token that crosses the line is kept, so the nucleus always holds at least `top_p`.
    """

    order = 20

    top_p: Knob = knob(
        off=1.0,
        low=0.0,
        high=1.0,
        help="draw among the likeliest tokens that together hold this probability; 1 = all",
    )

    def __call__(self, best: Candidates, context: Context) -> Bool[Array, " C"]:
        """True up to and including the token that crosses the line."""
        del context
        above = jnp.pad(jnp.cumsum(best.p)[:-1], (1, 0))
        return above < self.top_p
