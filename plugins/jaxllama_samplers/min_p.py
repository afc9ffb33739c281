"""Min-p: a lowest probability proportional to the top probability."""

from jaxllama.sampling import Candidates, Context, Filter, Knob, knob
from jaxllama.shapes import Array, Bool


class MinP(Filter):
    """Keep tokens at least `min_p` times as likely as the likeliest: p >= min_p * max(p)."""

    order = 30
    common = True
    suits_beams = True

    min_p: Knob = knob(
        off=0.0,
        low=0.0,
        high=1.0,
        help="drop tokens less likely than this times the top probability; 0 = off",
    )

    def __call__(self, best: Candidates, context: Context) -> Bool[Array, " C"]:
        """Return True for tokens that reach min_p times the top probability."""
        del context
        return best.p >= self.min_p * best.p[0]
