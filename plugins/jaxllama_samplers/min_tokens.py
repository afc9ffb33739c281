"""Min tokens: an answer may not end before it has a minimum length."""

import jax.numpy as jnp

from jaxllama.sampling import Adjuster, Context, Knob, TokenSet, knob, token_set
from jaxllama.shapes import Array, Float


class MinTokens(Adjuster):
    """Ban the tokens that end the answer until `min_tokens` tokens are generated.

    logit = -inf for stop ids while generated < min_tokens. Stop strings still end the
    answer. `min_length` also bans tokens with a line break, as basilisk does, where a line is an
    answer.
    """

    order = 40  # after every bias, so that no bias lifts the ban

    min_tokens: Knob = knob(
        off=0,
        low=0,
        help="do not draw an end token before this many tokens are generated; 0 = off",
        counts=True,
    )
    min_length: Knob = knob(
        off=0,
        low=0,
        help="draw neither an end token nor a line break before this many tokens; 0 = off",
        counts=True,
    )
    newlines: TokenSet = token_set(lambda text: "\n" in text)

    def __call__(self, logits: Float[Array, " V"], context: Context) -> Float[Array, " V"]:
        """Ban end tokens while the answer is too short."""
        generated = context.generated
        lines = self.newlines & (generated < self.min_length)
        is_short = generated < jnp.maximum(self.min_tokens, self.min_length)
        ends = lines.at[context.stop_ids].set(is_short, mode="drop")
        return jnp.where(ends, -jnp.inf, logits)
