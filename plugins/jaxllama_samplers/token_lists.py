"""Token lists: banned tokens, and the only allowed tokens."""

import jax.numpy as jnp

from jaxllama.sampling import NO_TOKEN, Adjuster, Context, Knob, knob
from jaxllama.shapes import Array, Float


class TokenLists(Adjuster):
    """Ban the tokens in `banned_tokens`, and all tokens outside `allowed_tokens` if it is given.

    logit = -inf for banned tokens. If that would ban every token, both lists are ignored.
    """

    order = 42

    banned_tokens: Knob = knob(
        off=NO_TOKEN, width=1024, tokens=True, help="never draw these token ids"
    )
    allowed_tokens: Knob = knob(
        off=NO_TOKEN, width=1024, tokens=True, help="draw only these token ids"
    )

    def __call__(self, logits: Float[Array, " V"], context: Context) -> Float[Array, " V"]:
        """Set the logits of banned tokens to -inf."""
        del context
        listed = jnp.zeros(logits.shape, jnp.bool_).at[self.allowed_tokens].set(True, mode="drop")
        anything = jnp.all(self.allowed_tokens == NO_TOKEN)
        left = jnp.where(listed | anything, logits, -jnp.inf)
        left = left.at[self.banned_tokens].set(-jnp.inf, mode="drop")
        return jnp.where(jnp.any(left > -jnp.inf), left, logits)
