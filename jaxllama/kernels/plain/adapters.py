"""Low-rank adapters of the plain body: all adapters in one matmul, masked by row.

A row is multiplied by the matrices of every adapter, and the products of other adapters than its
own are dropped: the shapes, and so the bits of a row, do not depend on the adapters of its batch.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxllama.kernels.adapter_arrays import with_adapter, zeros_on
from jaxllama.kernels.body import AdapterRows, AdapterShape, NormWeight, Placement
from jaxllama.kernels.plain.matmul import matmul
from jaxllama.kernels.plain.matmul import norm as normed
from jaxllama.shapes import Array, Float, Int32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DenseAdapters:
    """The A and B matrices of N adapters of rank R for a group of G weights."""

    a: Any  # [I, N, G, R]
    b: tuple[Any, ...]  # [N, R, O] of each weight

    def delta(
        self, x: Float[Array, "L I"], *, norm: NormWeight | None, rows: AdapterRows
    ) -> Float[Array, "L O"]:
        """Return scale * (norm(x) · A) · B by each row's LoRA adapter; 0 for rows without one.

        `norm` None: x is used as it is. `rows` has the adapter's number and scale for each row. The
        results for all weights that the adapters change lie side by side; all multiply the same x.
        """
        inward, count, parts, rank = self.a.shape
        x = x if norm is None else normed(x, *norm)
        ranks = matmul(x, self.a.reshape(inward, -1)).reshape(-1, count, parts, rank)
        own = rows.number[:, None] == jnp.arange(count)
        ranks = jnp.where(own[:, :, None, None], ranks * rows.scale[:, None, None, None], 0.0)
        found = [
            matmul(ranks[:, :, part].reshape(-1, count * rank), b.reshape(count * rank, -1))
            for part, b in enumerate(self.b)
        ]
        return jnp.concatenate(found, axis=1)

    def written(
        self,
        number: Int32[Array, ""],
        a: Float[Array, "I W"],
        b: Sequence[Float[Array, "R _"]],
    ) -> "DenseAdapters":
        """Return the arrays with adapter `number` replaced by its matrices.

        `a` is [in, weights * rank], `b` has [rank, out] for each weight of the group, the weights
        that multiply the same rows.
        """
        inward, _, parts, rank = self.a.shape
        own = a.reshape(inward, parts, rank).astype(self.a.dtype)
        return DenseAdapters(self.a.at[:, number].set(own), with_adapter(self.b, number, b))


def adapter_group(shape: AdapterShape, to: Placement) -> DenseAdapters:
    """Make the LoRA adapter arrays of one group of weights on their devices, filled with zeros.

    A group is weights that multiply the same rows. `shape` has the sizes of the weights and the
    number and rank of adapters; `to` is the devices.
    """
    inner, outer = shape.axes
    a = (shape.inward, shape.adapters, len(shape.outward), shape.rank)
    count, rank = shape.adapters, shape.rank
    zeros = partial(zeros_on, to.mesh, dtype=to.dtype)
    return DenseAdapters(
        zeros(a, (inner, None, None, None)),
        tuple(zeros((count, rank, each), (None, None, outer)) for each in shape.outward),
    )
