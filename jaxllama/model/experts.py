"""A mixture of experts: a router chooses a few of many feed-forwards for each token.

Used by the blocks of `llama.py` in place of one feed-forward. Experts that some row uses are
computed one after the other, others are skipped: the result of a row is the sum over its own
experts in their order, so other rows change no bit of it.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxllama.config import Experts, ModelConfig
from jaxllama.model.linear import Ends, Linear
from jaxllama.model.module import Module, Parameter
from jaxllama.model.rows import BlockRows
from jaxllama.shapes import Array, Bool, Float


class ExpertsLayer(Module):
    """x + the weighted sum of down(silu(gate(norm(x))) * up(norm(x))) over the chosen experts."""

    def __init__(self, config: ModelConfig, experts: Experts) -> None:
        width, count = config.width, experts.count
        self.experts, self.activation = experts, config.activation
        self.router = Linear(width, count, ("width", "experts"), bias=False)
        inward, outward = (count, width, experts.width), (count, experts.width, width)
        self.gate = ExpertMatrices(inward, ("experts", "width", "ffn"))
        self.up = ExpertMatrices(inward, ("experts", "width", "ffn"))
        self.down = ExpertMatrices(outward, ("experts", "ffn", "width"))

    def __call__(self, x: Float[Array, "L D"], ends: Ends, rows: BlockRows) -> Float[Array, "L D"]:
        """Add to every row the weighted sum of the experts that the router chooses for it.

        `x` are the hidden states. `ends` has the norms of the input and of the result. `rows` has
        the mask of the rows to compute.
        """
        normed = x if ends.before is None else ends.before(x)
        shares = chosen_shares(self.router(normed), self.experts)
        if rows.active is not None:
            shares = jnp.where(rows.active[:, None], shares, 0.0)

        def add_expert(index: Array, total: Array) -> Array:
            share = lax.dynamic_index_in_dim(shares, index, axis=1)
            used = share > 0

            def add() -> Array:
                result = self.apply(index, normed, used[:, 0])
                return total + jnp.where(used, share * result, 0.0)

            return lax.cond(jnp.any(used), add, lambda: total)

        result = lax.fori_loop(0, self.experts.count, add_expert, jnp.zeros_like(x))
        return ends.add_result(result, x)

    def apply(
        self, index: Array, x: Float[Array, "L D"], used: Bool[Array, " L"]
    ) -> Float[Array, "L D"]:
        """Return the output of expert `index` for every row, without the expert's share.

        `x` are the normed hidden states. Only rows in the mask `used` are valid in the result. The
        caller multiplies by the share, which is the expert's weight in the sum.
        """
        gate, up, down = (each.weight.value for each in (self.gate, self.up, self.down))
        inner = gate.gated(index, x, up, self.activation, used)
        result: Array = down.matmul(index, inner, used)
        return result


class ExpertMatrices(Module):
    """One kind of matrix (gate, up or down) of all experts of a layer."""

    def __init__(self, sizes: tuple[int, int, int], axes: tuple[str, str, str]) -> None:
        self.weight = Parameter(*sizes, axes=axes)


def chosen_shares(scores: Float[Array, "L E"], experts: Experts) -> Float[Array, "L E"]:
    """Return the weight of every expert for each row: its probability, or 0 if it is not chosen.

    `scores` are the router's outputs; `experts` says how many are chosen and how they are weighted.
    """
    best, chosen = lax.top_k(jax.nn.softmax(scores, axis=-1), experts.used)
    if experts.normed:
        best = best / jnp.sum(best, axis=-1, keepdims=True)
    places = jax.nn.one_hot(chosen, experts.count, dtype=best.dtype)
    return jnp.einsum("lk,lke->le", best, places)
