"""Drawing from the whole vocabulary: one number per row decides.

Called by the sampler bank, inside the decode program, for rows in which no filter is switched on.
"""

from typing import NamedTuple

from jaxllama.engine.logprobs import Listed, list_if, list_likeliest
from jaxllama.kernels import choice
from jaxllama.shapes import Array, Bool, Float, Int32


class Draws(NamedTuple):
    """What was drawn for every row, with its log-probability and the likeliest as sampled."""

    token: Int32[Array, " S"]
    logprob: Float[Array, " S"]
    listed: Listed


def draw_from_all(
    logits: Float[Array, "S V"],
    best: Float[Array, " S"],
    heat: Float[Array, " S"],
    chances: Float[Array, " S"],
    wants_list: Bool[Array, " S"],
    size: int,
) -> Draws:
    """One token per row at temperature `heat`; lists of `size` for the rows that want them."""
    token, log_total = choice.draw(logits, best, heat, chances)
    logprob = (choice.at(logits, token) - best) / heat - log_total
    listed = list_if(wants_list, lambda: list_likeliest(logits, best, heat, log_total, size), size)
    return Draws(token, logprob, listed)
