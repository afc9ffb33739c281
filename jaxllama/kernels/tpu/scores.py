"""What both attention kernels do with scores: products, masks, the cap and the running softmax."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxllama.shapes import Array, Bool

HIDDEN = -1e30  # score of a key that may not be seen; finite, so that -inf - -inf cannot arise
LANES = 128


class KeyMask(NamedTuple):
    """The columns of a block that a row attends to: up to its position, inside its window."""

    start: Array  # first column of the block
    position: Array  # of the row, or of every row along an axis of size 1
    window: int | None

    def of(self, shape: tuple[int, ...], axis: int) -> Bool[Array, "..."]:
        """Return a mask of `shape`, True for scores that count; columns lie along `axis`."""
        column = self.start + lax.broadcasted_iota(jnp.int32, shape, axis)
        seen = column <= self.position
        return seen if self.window is None else seen & (column > self.position - self.window)


class RunningSoftmax(NamedTuple):
    """The softmax of scores that come block by block, in VMEM; columns lie along the last axis."""

    top: Any  # largest score so far, the same in all lanes
    total: Any  # sum of the weights so far, the same in all lanes
    mixed: Any  # weighted sum of the values so far

    @staticmethod
    def scratch(rows: tuple[int, ...], width: int) -> list[Any]:
        """Return the VMEM buffers that a kernel has to reserve for the softmax of some rows.

        `rows` are the sizes of the axes of rows, `width` is the length of a value vector.
        """
        return [pltpu.VMEM((*rows, each), jnp.float32) for each in (LANES, LANES, width)]

    def begin(self) -> None:
        """Reset the softmax to its state before the first block."""
        self.top[...] = jnp.full(self.top.shape, HIDDEN, jnp.float32)
        self.total[...] = jnp.zeros(self.total.shape, jnp.float32)
        self.mixed[...] = jnp.zeros(self.mixed.shape, jnp.float32)

    def weigh(self, scores: Array, seen: Bool[Array, "..."], cap: float | None) -> Array:
        """Add the scores of a block to the softmax; return the weights of its values.

        `seen` masks the columns that count, `cap` limits scores (None: no limit). A block of which
        no column counts changes nothing.
        """
        scores = scores if cap is None else cap * jnp.tanh(scores / cap)
        scores = jnp.where(seen, scores, HIDDEN)
        old = self.top[...][..., :1]
        higher = jnp.maximum(old, jnp.max(scores, axis=-1, keepdims=True))
        weights = jnp.where(seen, jnp.exp(scores - higher), 0.0)
        fade = jnp.exp(old - higher)
        total = self.total[...][..., :1] * fade + jnp.sum(weights, axis=-1, keepdims=True)
        self.top[...] = jnp.broadcast_to(higher, self.top.shape)
        self.total[...] = jnp.broadcast_to(total, self.total.shape)
        self.mixed[...] = self.mixed[...] * fade
        return weights

    def add(self, mixed: Array) -> None:
        """Add `mixed`, the weighted sum of a block's values, to the sum of all blocks.

        The weights are those that `weigh` returned for the block.
        """
        self.mixed[...] = self.mixed[...] + mixed

    @property
    def mean(self) -> Array:
        """The result of attention: the weighted mean of the values of all blocks."""
        return self.mixed[...] / jnp.maximum(self.total[...][..., :1], 1e-30)


def keys_of(pairs: Array, width: int) -> Array:
    """Return the keys of a block that stores keys and values side by side, [... 2H].

    `width` is the length of a query: H, or 2H for narrow heads, whose queries are padded with zeros
    where the values are. With 2H the whole block is returned.
    """
    return pairs if pairs.shape[-1] == width else pairs[..., :width]


def values_of(pairs: Array, width: int) -> Array:
    """Return the values of a block that stores keys and values side by side, [... 2H].

    `width` is the length of a query: H, or 2H for narrow heads. With 2H the whole block is
    returned, and the second half of its weighted mean is that of the values.
    """
    return pairs if pairs.shape[-1] == width else pairs[..., -width:]


def product(equation: str, left: Array, right: Array) -> Array:
    """Return the einsum `equation` of two arrays with float32 sums.

    Float32 factors are not rounded to bfloat16.
    """
    is_exact = left.dtype == jnp.float32
    return jnp.einsum(
        equation,
        left,
        right,
        precision=lax.Precision.HIGHEST if is_exact else lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )


def attention_cost(queries: Any, layer: Sequence[Any]) -> pl.CostEstimate:
    """Estimate the cost of an attention call for XLA's scheduler.

    The estimate assumes that every row of `queries` attends to all columns of the cache `layer`.
    """
    columns = layer[0].shape[2]
    scores = queries.size // queries.shape[-1] * columns
    arrays = (queries, queries, *layer)
    return pl.CostEstimate(
        flops=4 * scores * queries.shape[-1],
        transcendentals=scores,
        bytes_accessed=sum(math.prod(each.shape) * each.dtype.itemsize for each in arrays),
    )
