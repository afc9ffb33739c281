"""Min tokens: an answer may not end before it has some length."""

import jax.numpy as jnp

from jaxllama.sampling import Adjuster, Context, Knob, knob
from jaxllama.shapes import Array, Float


class MinTokens(Adjuster):
    """Ban the tokens that end the answer until `min_tokens` tokens are generated.

    logit = -inf for stop ids while generated < min_tokens. Stop strings are not held back.
    """

    order = 40  # after every bias: a ban is final

    min_tokens: Knob = knob(
        off=0, low=0, help="an end token is not drawn before this many tokens are generated"
    )

    def __call__(self, logits: Float[Array, " V"], context: Context) -> Float[Array, " V"]:
        """The logits, with end tokens banned while the answer is too short."""
        banned = logits.at[context.stop_ids].set(-jnp.inf, mode="drop")
        return jnp.where(context.generated < self.min_tokens, banned, logits)
