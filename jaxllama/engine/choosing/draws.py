"""Drawing from the whole vocabulary: one number per row decides.

Called by the sampler bank, inside the decode program, for rows in which no filter is switched on.
"""

from typing import NamedTuple

from jaxllama.engine.choosing.logprobs import Heap, Listed, list_if, list_likeliest
from jaxllama.kernels.body import Choosing
from jaxllama.kernels.plain.choice import at
from jaxllama.shapes import Array, Bool, Float, Int32


class Draws(NamedTuple):
    """What was drawn for every row, with its log-probability and the likeliest as sampled."""

    token: Int32[Array, " S"]
    logprob: Float[Array, " S"]
    listed: Listed
    shown: dict[str, Float[Array, " S"]]  # log-probability, as shapers that observe were shown it


def draw_from_all(
    ops: Choosing,
    heap: Heap,
    chances: Float[Array, " S"],
    wants_list: Bool[Array, " S"],
    size: int,
) -> Draws:
    """One token per row at the heap's temperature; lists of `size` for the rows that want them."""
    token, log_total = ops.draw(heap.logits, heap.best, heap.heat, chances, heap.wanted)
    logprob = (at(heap.logits, token) - heap.best) / heap.heat - log_total
    of_those = heap._replace(wanted=wants_list)
    listed = list_if(wants_list, lambda: list_likeliest(ops, of_those, size), size)
    return Draws(token, logprob, listed, {})
