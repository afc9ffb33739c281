"""Epsilon cutoff: a fixed lowest probability."""

from jaxllama.sampling import Candidates, Context, Filter, Knob, knob
from jaxllama.shapes import Array, Bool


class EpsilonCutoff(Filter):
    """Keep tokens with a probability of at least `epsilon_cutoff`: p >= epsilon.

    Epsilon is a probability, as in Hugging Face, not ten-thousandths of one. The likeliest token is
    kept even below epsilon.
    """

    order = 50

    epsilon_cutoff: Knob = knob(
        off=0.0,
        low=0.0,
        high=1.0,
        help="drop tokens less likely than this; usual: 0.0003 to 0.0009; 0 = off",
    )

    def __call__(self, best: Candidates, context: Context) -> Bool[Array, " C"]:
        """Return True for tokens whose probability reaches epsilon."""
        del context
        return best.p >= self.epsilon_cutoff
