"""Mirostat: keeps the surprise of the tokens near a target."""

import dataclasses

import jax.numpy as jnp

from jaxllama.sampling import Candidates, Chosen, Context, Filter, Knob, knob, state
from jaxllama.shapes import Array, Bool, Float, Int

FITTED = 100  # candidates that version 1 fits its curve to
LEAST = 1e-30
MOST_KEPT = 1e9


class Mirostat(Filter):
    """Keep so many tokens that the average surprise, -log2 p, is about `mirostat_tau` bits.

    A limit starts at 2 * tau and falls by eta * (surprise - tau) after every drawn token, with the
    surprise measured among the tokens that were kept. Version 2 drops tokens whose surprise exceeds
    the limit. Version 1 fits Zipf's law to the likeliest hundred tokens and keeps as many tokens as
    the law predicts for the limit. Use it as the only filter; the likeliest token is always kept.
    """

    order = 90

    mirostat: Knob = knob(off=0, low=0, high=2, help="run mirostat in version 1 or 2; 0 = off")
    mirostat_tau: Knob = knob(
        off=5.0,
        low=0.0,
        high=100.0,
        switch=False,
        help="set the surprise that mirostat aims for, in bits per token",
    )
    mirostat_eta: Knob = knob(
        off=0.1,
        low=0.0,
        high=10.0,
        switch=False,
        help="set how fast mirostat corrects its limit: its learning rate",
    )
    limit: Knob = state(start=0.0)

    def start(self) -> "Mirostat":
        """Return a copy whose limit starts at 2 * tau."""
        return dataclasses.replace(self, limit=2 * self.mirostat_tau)

    def __call__(self, best: Candidates, context: Context) -> Bool[Array, " C"]:
        """Return True for tokens whose surprise, or rank in version 1, is within the limit."""
        del context
        surprise = (best.log_total - best.logits) / jnp.log(2.0)
        second = surprise <= self.limit
        first = best.rank < zipf_count(best, self.limit)
        if best.p.shape[0] < FITTED:
            # Too few to fit: keep all, so that the engine calls again with more candidates.
            first = first | (best.size > best.p.shape[0])
        return jnp.where(self.mirostat == 1, first, second)

    def observe(self, chosen: Chosen) -> "Mirostat":
        """Return a copy with the limit corrected by the surprise of the drawn token."""
        surprise = -jnp.log2(jnp.maximum(chosen.p, LEAST))
        limit = self.limit - self.mirostat_eta * (surprise - self.mirostat_tau)
        return dataclasses.replace(self, limit=limit)


def zipf_count(best: Candidates, limit: Float[Array, ""]) -> Int[Array, ""]:
    """Return how many of the likeliest tokens to keep, by Zipf's law fitted to the first hundred.

    `limit` is the largest surprise, in bits.
    """
    count = min(FITTED, best.p.shape[0])
    gaps = best.logits[: count - 1] - best.logits[1:count]
    rank = jnp.arange(1, count, dtype=jnp.float32)
    steps = jnp.where(rank < best.size, jnp.log((rank + 1) / rank), 0.0)
    gaps = jnp.where(rank < best.size, gaps, 0.0)
    slope = jnp.maximum(jnp.sum(steps * gaps) / jnp.maximum(jnp.sum(steps**2), LEAST), 1e-3)
    # log k = (log(epsilon) + limit * log 2 - log(1 - size^-epsilon)) / slope, epsilon = slope - 1;
    # as epsilon goes to 0, the difference of the first and last term goes to -log(log(size)).
    epsilon = jnp.where(jnp.abs(slope - 1) < 1e-4, 1e-4, slope - 1)  # noqa: PLR2004
    ratio = epsilon / -jnp.expm1(-epsilon * jnp.log(jnp.maximum(best.size, 2)))
    log_count = (jnp.log(ratio) + limit * jnp.log(2.0)) / slope
    return jnp.exp(jnp.minimum(log_count, jnp.log(MOST_KEPT))).astype(jnp.int32)
