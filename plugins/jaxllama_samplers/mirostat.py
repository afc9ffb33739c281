"""Mirostat: keep the surprise of the answer near a target."""

import dataclasses

import jax.numpy as jnp

from jaxllama.sampling import Candidates, Chosen, Context, Filter, Knob, knob, state
from jaxllama.shapes import Array, Bool, Float, Int

FITTED = 100  # candidates that version 1 fits its curve to
LEAST = 1e-30
MOST_KEPT = 1e9


class Mirostat(Filter):
    """Cut so that each token surprises by about `mirostat_tau` bits.

    A limit starts at 2 * tau, and falls by eta * (surprise - tau) with the surprise of every drawn
    token, among those it was drawn from. Version 2 drops tokens that surprise by more than the
    limit. Version 1 fits Zipf's law to the likeliest hundred, and keeps as many as it says will
    surprise by the limit. Meant to be the only filter; the likeliest token is always kept.
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
        """The limit it begins with."""
        return dataclasses.replace(self, limit=2 * self.mirostat_tau)

    def __call__(self, best: Candidates, context: Context) -> Bool[Array, " C"]:
        """True up to the limit."""
        del context
        surprise = (best.log_total - best.logits) / jnp.log(2.0)
        second = surprise <= self.limit
        first = best.rank < zipf_count(best, self.limit)
        if best.p.shape[0] < FITTED:
            first = first | (best.size > best.p.shape[0])  # too few to fit to: ask for more
        return jnp.where(self.mirostat == 1, first, second)

    def observe(self, chosen: Chosen) -> "Mirostat":
        """The limit, corrected by how surprising the token was."""
        surprise = -jnp.log2(jnp.maximum(chosen.p, LEAST))
        limit = self.limit - self.mirostat_eta * (surprise - self.mirostat_tau)
        return dataclasses.replace(self, limit=limit)


def zipf_count(best: Candidates, limit: Float[Array, ""]) -> Int[Array, ""]:
    """How many of the likeliest to keep, by Zipf's law fitted to the first hundred."""
    count = min(FITTED, best.p.shape[0])
    gaps = best.logits[: count - 1] - best.logits[1:count]
    rank = jnp.arange(1, count, dtype=jnp.float32)
    steps = jnp.where(rank < best.size, jnp.log((rank + 1) / rank), 0.0)
    gaps = jnp.where(rank < best.size, gaps, 0.0)
    slope = jnp.maximum(jnp.sum(steps * gaps) / jnp.maximum(jnp.sum(steps**2), LEAST), 1e-3)
    # log k = (log(epsilon) + limit * log 2 - log(1 - size^-epsilon)) / slope, epsilon = slope - 1;
    # as epsilon passes 0 the difference of the first and the last goes to -log(log(size)).
    epsilon = jnp.where(jnp.abs(slope - 1) < 1e-4, 1e-4, slope - 1)  # noqa: PLR2004
    ratio = epsilon / -jnp.expm1(-epsilon * jnp.log(jnp.maximum(best.size, 2)))
    log_count = (jnp.log(ratio) + limit * jnp.log(2.0)) / slope
    return jnp.exp(jnp.minimum(log_count, jnp.log(MOST_KEPT))).astype(jnp.int32)
