"""Log-probabilities of a step: of one token, and of the likeliest few.

Called by the bank inside the decode program; computed only when some row requests them.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllama.kernels.body import Choosing
from jaxllama.sampling import NO_TOKEN
from jaxllama.scopes import scoped
from jaxllama.shapes import Array, Bool, Float, Int32


class WeightedLogits(NamedTuple):
    """Rows of logits, with what a draw needs beside them; see `Choosing` in `kernels/body.py`."""

    logits: Float[Array, "S V"]
    best: Float[Array, " S"]
    heat: Float[Array, " S"]
    active: Bool[Array, " S"]


class Listed(NamedTuple):
    """The likeliest tokens of every row, best first; NO_TOKEN and -inf where there are no more."""

    ids: Int32[Array, "S M"]
    logprobs: Float[Array, "S M"]


class Draws(NamedTuple):
    """The drawn token of every row, its log-probability, and the likeliest tokens as sampled."""

    token: Int32[Array, " S"]
    logprob: Float[Array, " S"]
    listed: Listed
    shown: dict[str, Float[Array, " S"]]  # log-probability in the input of observing shapers


def list_padded(ids: Int32[Array, "S C"], logprobs: Float[Array, "S C"], size: int) -> Listed:
    """Cut or pad lists of candidates, sorted best first, to `size` entries per row.

    `ids` and `logprobs` are the candidates' token ids and log-probabilities.
    """
    ids, logprobs = ids[:, :size], logprobs[:, :size]
    ids = jnp.where(logprobs > -jnp.inf, ids, NO_TOKEN)
    spare = ((0, 0), (0, size - ids.shape[-1]))
    return Listed(
        jnp.pad(ids, spare, constant_values=NO_TOKEN),
        jnp.pad(logprobs, spare, constant_values=-jnp.inf),
    )


@scoped
def list_likeliest(ops: Choosing, weighted: WeightedLogits, size: int) -> Listed:
    """List the `size` likeliest tokens of each row with their log-probabilities.

    `weighted` holds the logits and temperature of each row; `ops` finds the largest logits.
    """
    count = max(1, min(size, weighted.logits.shape[-1]))
    ids, relative, log_total = ops.best_candidates(*weighted, count)
    return list_padded(ids, relative - log_total[:, None], size)


def list_if(active: Bool[Array, " S"], make: Callable[[], Listed], size: int) -> Listed:
    """Return the lists of tokens that `make` returns; rows outside `active` get only padding.

    `active` is a mask of rows. `make` runs on the device only if some row is active. `size` is the
    length of a list.
    """
    rows = active.shape[0]
    nothing = Listed(
        jnp.full((rows, size), NO_TOKEN, jnp.int32), jnp.full((rows, size), -jnp.inf, jnp.float32)
    )

    def listed() -> Listed:
        made = make()
        return Listed(
            jnp.where(active[:, None], made.ids, nothing.ids),
            jnp.where(active[:, None], made.logprobs, nothing.logprobs),
        )

    return jax.lax.cond(jnp.any(active), listed, lambda: nothing)


@scoped
def logprob_if(
    ops: Choosing,
    active: Bool[Array, " S"],
    logits: Float[Array, "S V"],
    token: Int32[Array, " S"],
) -> Float[Array, " S"]:
    """Return the log-probability of each row's token; 0 in rows outside the mask `active`.

    The kernels' operations `ops` compute it from `logits`, and only if some row is active.
    """

    def logprob() -> Array:
        return jnp.where(active, ops.logprob(logits, token, active), 0.0)

    return jax.lax.cond(jnp.any(active), logprob, lambda: jnp.zeros(active.shape, jnp.float32))
