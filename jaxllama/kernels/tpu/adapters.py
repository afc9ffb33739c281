"""Low-rank adapters of the TPU body: those of the plain body; devices add up split inputs."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from jaxllama.kernels.body import AdapterRows, AdapterShape, NormWeight, Placement
from jaxllama.kernels.plain.adapters import DenseAdapters
from jaxllama.kernels.plain.adapters import adapter_group as plain_group
from jaxllama.shapes import Array, Float, Int32
from jaxllama.sharding import RULES, add_up


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SplitAdapters:
    """The adapters of a group of weights, of which every device has its own part."""

    dense: Any  # DenseAdapters
    splits_inputs: bool = dataclasses.field(metadata={"static": True})

    def delta(
        self, x: Float[Array, "L I"], *, norm: NormWeight | None, rows: AdapterRows
    ) -> Float[Array, "L O"]:
        """Return what each row's adapter adds: scale * (norm(x) · a) · b; 0 for rows without one.

        `norm` None: x is used as it is. `rows` has the adapter's number and scale for each row. The
        outputs of the group's weights, which all multiply x, lie side by side.
        """
        found: Array = self.dense.delta(x, norm=norm, rows=rows)
        return add_up(found, "model") if self.splits_inputs else found

    def written(
        self,
        number: Int32[Array, ""],
        a: Float[Array, "I W"],
        b: Sequence[Float[Array, "R _"]],
    ) -> "SplitAdapters":
        """Return adapters in which number `number` has the matrices `a` and `b`.

        A group is weights that multiply the same rows. `a` is [in, weights * rank], the A matrices
        of all weights side by side; `b` has a B matrix [rank, out] for each weight.
        """
        dense: DenseAdapters = self.dense.written(number, a, b)
        return dataclasses.replace(self, dense=dense)


def adapter_group(shape: AdapterShape, to: Placement) -> SplitAdapters:
    """Make the adapter arrays of one group of weights on their devices, filled with zeros.

    A group is weights that multiply the same rows. `shape` has the sizes of the weights and the
    number and rank of adapters; `to` is the devices.
    """
    return SplitAdapters(plain_group(shape, to), RULES[shape.axes[0]] is not None)
