"""The rows of a call: which of them are used, and which low-rank adapter each has.

Passed from `llama.py` down to every matmul. An adapter adds scale * (x · a) · b to x · weight. The
weights of a group read the same rows, so the group has one array of all `a`.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp

from jaxllama.kernels.body import ActiveRows, AdapterGroup, AdapterRows, NormWeight
from jaxllama.shapes import Array, Float, Int, Int32

AdapterBlocks = dict[int, dict[str, AdapterGroup]]  # by block, then by group of weights


class Adapters(NamedTuple):
    """The arrays of all adapters, and the adapter of every row of a call."""

    blocks: AdapterBlocks
    rows: AdapterRows


class SlotAdapter(NamedTuple):
    """The arrays of all adapters, and the adapter of the one slot of a call."""

    blocks: AdapterBlocks
    number: Int32[Array, ""]
    scale: Float[Array, ""]

    def of_rows(self, count: int) -> Adapters:
        """Return the adapters of `count` rows, each of which uses the slot's adapter."""
        number, scale = (jnp.full(count, each) for each in (self.number, self.scale))
        return Adapters(self.blocks, AdapterRows(number, scale))


class MatmulRows(NamedTuple):
    """Which rows of a matmul are used, and the adapters that change the weights for them."""

    active: ActiveRows = None  # rows whose result is used; None: all of them
    group: AdapterGroup | None = None
    adapters: AdapterRows | None = None

    def delta(self, x: Float[Array, "L I"], norm: NormWeight | None) -> Array | None:
        """Return what the rows' adapters add to norm(x) · weight; None if no row has an adapter.

        `norm` None: x is used as it is.
        """
        if self.group is None or self.adapters is None:
            return None
        return self.group.delta(x, norm=norm, rows=self.adapters)


class BlockRows(NamedTuple):
    """Which rows of a call are used, and their adapters, for all matmuls of one block."""

    active: ActiveRows = None
    groups: Mapping[str, AdapterGroup] = {}  # by the name of a group of weights
    adapters: AdapterRows | None = None

    def of(self, group: str) -> MatmulRows:
        """Return the used rows and their adapters for a matmul with the weights of `group`.

        A group is the weights of a block that multiply the same rows, such as "qkv".
        """
        return MatmulRows(self.active, self.groups.get(group), self.adapters)


class RowInfo(NamedTuple):
    """Which rows of a call are used, their positions, and their adapters."""

    position: Int[Array, " L"]
    active: ActiveRows  # None: all of them
    axis: str  # logical axis that the rows lie on: slots, or tokens of a prompt ("rows")
    adapters: Adapters | None  # None: no row has one

    def of_block(self, index: int) -> BlockRows:
        """Return the used rows and their adapters for the block number `index` of the model.

        Rows that are not used get no adapter.
        """
        if self.adapters is None:
            return BlockRows(self.active)
        number, scale = self.adapters.rows
        if self.active is not None:
            number = jnp.where(self.active, number, -1)
        return BlockRows(self.active, self.adapters.blocks[index], AdapterRows(number, scale))


ALL_ROWS = MatmulRows()


def of_rows(adapter: SlotAdapter | None, count: int) -> Adapters | None:
    """Return the adapters of `count` rows that all use `adapter`; None for None."""
    return None if adapter is None else adapter.of_rows(count)
