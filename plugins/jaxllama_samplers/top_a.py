"""Top-a: a lowest probability proportional to the square of the top probability."""

from jaxllama.sampling import Candidates, Context, Filter, Knob, knob
from jaxllama.shapes import Array, Bool


class TopA(Filter):
    """Keep tokens with at least `top_a` times the square of the top probability.

    p >= top_a * max(p)^2: strict where the model is certain, lenient where it is uncertain.
    """

    order = 35

    top_a: Knob = knob(
        off=0.0,
        low=0.0,
        high=1.0,
        help="drop tokens less likely than this times the squared top probability; 0 = off",
    )

    def __call__(self, best: Candidates, context: Context) -> Bool[Array, " C"]:
        """Return True for tokens that reach top_a times the squared top probability."""
        del context
        return best.p >= self.top_a * best.p[0] ** 2
