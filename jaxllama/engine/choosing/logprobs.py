"""Log-probabilities of a step: of one token, and of the likeliest few.

Called by the bank inside the decode program; computed only when some row requests them.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllama.kernels.body import Choosing
from jaxllama.sampling import NO_TOKEN
from jaxllama.shapes import Array, Bool, Float, Int32


class WeightedLogits(NamedTuple):
    """Rows of logits with their weights in a draw; see `Choosing` in `kernels/body.py`."""

    logits: Float[Array, "S V"]
    best: Float[Array, " S"]
    heat: Float[Array, " S"]
    active: Bool[Array, " S"]


class Listed(NamedTuple):
    """The likeliest tokens of every row, best first; NO_TOKEN and -inf where there are no more."""

    ids: Int32[Array, "S M"]
    logprobs: Float[Array, "S M"]


def list_padded(ids: Int32[Array, "S C"], logprobs: Float[Array, "S C"], size: int) -> Listed:
    """Cut or pad lists to `size` entries."""
    ids, logprobs = ids[:, :size], logprobs[:, :size]
    ids = jnp.where(logprobs > -jnp.inf, ids, NO_TOKEN)
    spare = ((0, 0), (0, size - ids.shape[-1]))
    return Listed(
        jnp.pad(ids, spare, constant_values=NO_TOKEN),
        jnp.pad(logprobs, spare, constant_values=-jnp.inf),
    )


def list_likeliest(ops: Choosing, weighted: WeightedLogits, size: int) -> Listed:
    """List the `size` likeliest tokens of the vocabulary with their log-probabilities."""
    count = max(1, min(size, weighted.logits.shape[-1]))
    ids, relative, log_total = ops.best_candidates(*weighted, count)
    return list_padded(ids, relative - log_total[:, None], size)


def list_if(wanted: Bool[Array, " S"], make: Callable[[], Listed], size: int) -> Listed:
    """Call `make` if some row is wanted; blank the lists of all other rows."""
    rows = wanted.shape[0]
    nothing = Listed(
        jnp.full((rows, size), NO_TOKEN, jnp.int32), jnp.full((rows, size), -jnp.inf, jnp.float32)
    )

    def listed() -> Listed:
        made = make()
        return Listed(
            jnp.where(wanted[:, None], made.ids, nothing.ids),
            jnp.where(wanted[:, None], made.logprobs, nothing.logprobs),
        )

    return jax.lax.cond(jnp.any(wanted), listed, lambda: nothing)


def logprob_if(
    ops: Choosing,
    wanted: Bool[Array, " S"],
    logits: Float[Array, "S V"],
    token: Int32[Array, " S"],
) -> Float[Array, " S"]:
    """Return the log-probability of each row's token; 0 in rows that are not wanted."""

    def logprob() -> Array:
        return jnp.where(wanted, ops.logprob(logits, token, wanted), 0.0)

    return jax.lax.cond(jnp.any(wanted), logprob, lambda: jnp.zeros(wanted.shape, jnp.float32))
