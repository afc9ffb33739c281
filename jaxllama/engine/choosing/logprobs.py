"""Log-probabilities of a step: of one token, and of the likeliest few.

Used by the bank and its survivors, inside the decode program; computed only when some row asks.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllama.kernels.body import Choosing
from jaxllama.sampling import NO_TOKEN
from jaxllama.shapes import Array, Bool, Float, Int32


class Heap(NamedTuple):
    """Rows of logits to choose from; the letters are those of `kernels/choice.py`."""

    logits: Float[Array, "S V"]
    best: Float[Array, " S"]
    heat: Float[Array, " S"]
    wanted: Bool[Array, " S"]


class Listed(NamedTuple):
    """The likeliest tokens of every row, best first; NO_TOKEN and -inf where there are no more."""

    ids: Int32[Array, "S M"]
    logprobs: Float[Array, "S M"]


def list_padded(ids: Int32[Array, "S C"], logprobs: Float[Array, "S C"], size: int) -> Listed:
    """The first `size` entries of longer or shorter lists."""
    ids, logprobs = ids[:, :size], logprobs[:, :size]
    ids = jnp.where(logprobs > -jnp.inf, ids, NO_TOKEN)
    spare = ((0, 0), (0, size - ids.shape[-1]))
    return Listed(
        jnp.pad(ids, spare, constant_values=NO_TOKEN),
        jnp.pad(logprobs, spare, constant_values=-jnp.inf),
    )


def list_likeliest(ops: Choosing, heap: Heap, size: int) -> Listed:
    """The likeliest of the whole vocabulary, and their log-probabilities."""
    count = max(1, min(size, heap.logits.shape[-1]))
    ids, relative, log_total = ops.best_candidates(*heap, count)
    return list_padded(ids, relative - log_total[:, None], size)


def list_if(wanted: Bool[Array, " S"], make: Callable[[], Listed], size: int) -> Listed:
    """What `make` lists if some row wants it, kept from the rows that do not."""
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
    """The log-probability of each row's token, 0 in rows that do not want it."""

    def logprob() -> Array:
        return jnp.where(wanted, ops.logprob(logits, token, wanted), 0.0)

    return jax.lax.cond(jnp.any(wanted), logprob, lambda: jnp.zeros(wanted.shape, jnp.float32))
