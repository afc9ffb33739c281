"""Low-rank adapters of the C++ body: each row is multiplied by the matrices of its own adapter.

On a mesh each device has the part of the matrices that its weights have.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllama.kernels.adapter_arrays import with_adapter, zeros_on
from jaxllama.kernels.body import AdapterRows, AdapterShape, NormWeight, Placement
from jaxllama.kernels.cpu import library
from jaxllama.kernels.cpu.matmul import or_empty
from jaxllama.shapes import Array, Float, Int32
from jaxllama.sharding import RULES, add_up

MOST_PARTS = 3  # weights of one group that the kernel takes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HalfAdapters:
    """The A and B matrices of N adapters of rank R for a group of G weights, in float16."""

    a: Any  # [N, I, G * R]
    b: tuple[Any, ...]  # [N, R, O] of each weight
    splits_inputs: bool = dataclasses.field(metadata={"static": True})

    def delta(
        self, x: Float[Array, "L I"], *, norm: NormWeight | None, rows: AdapterRows
    ) -> Float[Array, "L O"]:
        """Return scale * (norm(x) · a) · b with the LoRA matrices a, b of each row's adapter, or 0.

        The result is 0 in rows without adapter. `norm` None: x is used as it is. `rows` has the
        adapter's number and scale for each row. The outputs of the group's weights, which all
        multiply x, lie side by side.
        """
        width = sum(each.shape[2] for each in self.b)
        weight, eps = (None, 0.0) if norm is None else norm
        absent = (jnp.zeros(0, jnp.float16),) * (MOST_PARTS - len(self.b))
        library.loaded()
        call = jax.ffi.ffi_call(
            "jaxllama_adapt", jax.ShapeDtypeStruct((x.shape[0], width), jnp.float32)
        )
        found: Array = call(
            *(x, rows.number, rows.scale, or_empty(weight), self.a, *self.b, *absent),
            eps=np.float32(eps),
        )
        return add_up(found, "model") if self.splits_inputs else found

    def written(
        self,
        number: Int32[Array, ""],
        a: Float[Array, "I W"],
        b: Sequence[Float[Array, "R _"]],
    ) -> "HalfAdapters":
        """Return the adapter arrays in which `a` and `b` are the LoRA matrices of adapter `number`.

        `a` is [in, weights * rank], `b` has [rank, out] for each weight of the group, the weights
        that multiply the same rows.
        """
        first = self.a.at[number].set(a.astype(self.a.dtype))
        return dataclasses.replace(self, a=first, b=with_adapter(self.b, number, b))


def adapter_group(shape: AdapterShape, to: Placement) -> HalfAdapters:
    """Make the adapter arrays of one group of weights on their devices, filled with zeros.

    A group is weights that multiply the same rows. `shape` has the sizes of the weights and the
    number and rank of adapters; `to` is the devices.
    """
    inner, outer = shape.axes
    zeros = partial(zeros_on, to.mesh, dtype=np.float16)
    count, rank = shape.adapters, shape.rank
    return HalfAdapters(
        zeros((count, shape.inward, len(shape.outward) * rank), (None, inner, None)),
        tuple(zeros((count, rank, each), (None, None, outer)) for each in shape.outward),
        splits_inputs=RULES[inner] is not None,
    )
