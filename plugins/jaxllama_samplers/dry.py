"""DRY, don't repeat yourself: a penalty that grows with the length of a repetition."""

import jax.numpy as jnp

from jaxllama.sampling import NO_TOKEN, Adjuster, Context, Knob, TokenSet, knob, token_set
from jaxllama.shapes import Array, Float
from jaxllama_samplers.echoes import echoes

BREAKERS = frozenset('\n:"*')
STEEPEST = 80.0  # largest exponent of e; a larger one would overflow float32


class Dry(Adjuster):
    """Lower the logits of tokens that would make a repeated sequence longer.

    Where the newest n tokens occurred before and n >= dry_allowed_length, the token that followed
    there loses dry_multiplier * dry_base^(n - dry_allowed_length); the longest such n counts.
    A repetition contains no breaker token. A breaker is one of `dry_breakers` or, if none are
    given, any token with a line break, a colon, a quote or an asterisk, as in llama.cpp.
    """

    order = 25

    dry_multiplier: Knob = knob(
        off=0.0,
        low=0.0,
        high=100.0,
        help="lower the logits of tokens that would lengthen a repetition; usual: 0.8; 0 = off",
    )
    dry_base: Knob = knob(
        off=1.75,
        low=1.0,
        high=10.0,
        switch=False,
        help="multiply the DRY penalty by this for each further token of the repetition",
    )
    dry_allowed_length: Knob = knob(
        off=2,
        low=1,
        switch=False,
        help="let repetitions of up to this many tokens pass without a DRY penalty",
    )
    dry_range: Knob = knob(
        off=0,
        low=0,
        switch=False,
        help="look for repetitions in this many of the newest tokens; 0 = all",
    )

    dry_breakers: Knob = knob(
        off=NO_TOKEN,
        width=1024,
        tokens=True,
        switch=False,
        help='end repetitions for DRY at these token ids; by default those with \\n : " or *',
    )
    breakers: TokenSet = token_set(lambda text: not BREAKERS.isdisjoint(text))

    def __call__(self, logits: Float[Array, " V"], context: Context) -> Float[Array, " V"]:
        """Lower the logits of tokens that would prolong a repetition."""
        most = jnp.where(self.dry_multiplier > 0, context.tokens.shape[0], 0)
        own = jnp.zeros(logits.shape, jnp.bool_).at[self.dry_breakers].set(True, mode="drop")
        breakers = jnp.where(jnp.all(self.dry_breakers == NO_TOKEN), self.breakers, own)
        breaks = breakers.at[context.tokens].get(mode="fill", fill_value=False)
        lengths, following = echoes(context, most, self.dry_range, breaks)
        beyond = (lengths - self.dry_allowed_length).astype(jnp.float32)
        growth = jnp.exp(jnp.minimum(beyond * jnp.log(self.dry_base), STEEPEST))
        ids = jnp.where(beyond >= 0, following, NO_TOKEN)
        penalty = jnp.zeros(logits.shape, jnp.float32)
        return logits - self.dry_multiplier * penalty.at[ids].max(growth, mode="drop")
