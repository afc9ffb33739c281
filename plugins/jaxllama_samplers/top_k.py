"""Top-k: only the k likeliest tokens may be drawn."""

from jaxllama.sampling import Candidates, Context, Filter, Knob, knob
from jaxllama.shapes import Array, Bool


class TopK(Filter):
    """Keep the `top_k` likeliest tokens: rank < top_k."""

    order = 10
    common = True
    suits_beams = True

    top_k: Knob = knob(off=0, low=0, help="keep only this many of the likeliest tokens; 0 = all")

    def __call__(self, best: Candidates, context: Context) -> Bool[Array, " C"]:
        """Return True for the first `top_k` candidates."""
        del context
        return best.rank < self.top_k
