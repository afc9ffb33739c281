"""Logit bias: a number added to the logits of chosen tokens."""

from jaxllama.sampling import Adjuster, Context, Knob, knob
from jaxllama.shapes import Array, Float


class LogitBias(Adjuster):
    """Add each token's bias to its logit: logit + bias.

    A bias of -100 usually keeps a token from being drawn and +100 usually makes it certain.
    Neither is guaranteed, because the bias is only added.
    """

    order = 30
    suits_beams = True

    logit_bias: Knob = knob(
        off=0.0,
        low=-100.0,
        high=100.0,
        width=1024,
        by_token=True,
        help="add these numbers to the logits of these tokens",
    )

    def __call__(self, logits: Float[Array, " V"], context: Context) -> Float[Array, " V"]:
        """Add the biases to the logits."""
        del context
        # Unused places contain an id beyond every vocabulary: "drop" skips them.
        return logits.at[self.logit_bias.ids].add(self.logit_bias.values, mode="drop")
