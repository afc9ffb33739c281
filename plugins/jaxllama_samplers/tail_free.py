"""Tail-free sampling: drops the tail, in which the sorted probabilities have little curvature."""

import jax.numpy as jnp

from jaxllama.sampling import Candidates, Context, Filter, Knob, knob
from jaxllama.shapes import Array, Bool, Float


class TailFree(Filter):
    """Keep the first tokens whose curvature adds up to at most a share `tfs_z` of the total.

    The curvature is |second difference| of the probabilities, likeliest first. As in llama.cpp, the
    token at which the sum passes the limit is dropped; the likeliest is always kept. Two tokens
    have no curvature and are both kept.
    """

    order = 15

    tfs_z: Knob = knob(
        off=1.0,
        low=0.0,
        high=1.0,
        help="keep this share of the curvature of the sorted probabilities; 1 = all tokens",
    )

    def __call__(self, best: Candidates, context: Context) -> Bool[Array, " C"]:
        """Return True for the likeliest tokens, whose curvature adds up to the share `tfs_z`.

        Return True for all candidates if less probable tokens, beyond the list, could change that.
        """
        del context
        bends = curvature(best.p, best.size)
        through = jnp.cumsum(bends)
        # The curvature beyond the candidates is at most twice the last known probability.
        unknown = jnp.where(best.size > best.p.shape[0], 2 * best.p[-2:].max(), 0.0)
        keep = through <= self.tfs_z * through[-1]
        is_sure = jnp.all(keep == (through <= self.tfs_z * (through[-1] + unknown)))
        return keep | ~is_sure | (best.size <= 2)  # noqa: PLR2004


def curvature(p: Float[Array, " C"], size: Array) -> Float[Array, " C"]:
    """Return |p[i] - 2 p[i+1] + p[i+2]| for each candidate i, most probable first.

    `size` is the number of tokens that are left in the row; 0 where one of the three probabilities
    lies beyond `size` or beyond the list.
    """
    following = jnp.pad(p, (0, 2))
    bends = jnp.abs(p - 2 * following[1:-1] + following[2:])
    place = jnp.arange(p.shape[0])
    return jnp.where(place + 2 < jnp.minimum(size, p.shape[0]), bends, 0.0)
