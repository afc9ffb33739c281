"""Presence and frequency penalties: the answer's own tokens become less likely."""

from jaxllama.sampling import Adjuster, Context, Knob, knob
from jaxllama.shapes import Array, Float


class Frequency(Adjuster):
    """Lower the logits of tokens the answer already holds; the prompt does not count.

    logit - frequency_penalty * count - presence_penalty * (count > 0)
    """

    order = 20
    held_only = True

    presence_penalty: Knob = knob(
        off=0.0,
        low=-2.0,
        high=2.0,
        help="subtract this from the logit of every token that occurs in the answer",
    )
    frequency_penalty: Knob = knob(
        off=0.0,
        low=-2.0,
        high=2.0,
        help="subtract this from a token's logit once per occurrence in the answer",
    )

    def __call__(self, logits: Float[Array, " V"], context: Context) -> Float[Array, " V"]:
        """The logits, lower where the answer holds a token."""
        count = context.generated_counts(logits.shape[0])
        return logits - self.frequency_penalty * count - self.presence_penalty * (count > 0)
