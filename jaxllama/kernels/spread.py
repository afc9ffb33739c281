"""Kernels on several devices: XLA cannot split a foreign call, so who does what is said here.

Called by `kernels/__init__.py`, which wraps the bodies of operations in these; on one device they
change nothing. Knows the mesh axes, not what an operation does with its rows.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jaxllama.kernels.reference import Parts, Place, Turn
from jaxllama.kernels.storage import Layer
from jaxllama.shapes import Array
from jaxllama.sharding import add_up, own_parts

Found = TypeVar("Found")
Prompt = Callable[[Parts, Turn, Layer, Place, int | None], tuple[Array, Any]]


def where_it_lies(prompt: Prompt) -> Prompt:
    """Attention of a prompt inside `shard_map`: the device with its slot attends, all get it."""

    def attend(
        parts: Parts, turn: Turn, layer: Layer, place: Place, window: int | None
    ) -> tuple[Array, Any]:
        if own_parts("data") == 1:
            return prompt(parts, turn, layer, place, window)
        slots, _, columns, _ = layer[0].shape
        slot = place.slot - lax.axis_index("data") * slots
        mine = (slot >= 0) & (slot < slots)
        # Elsewhere nothing is real: it goes to scratch, behind the last column.
        scratch = columns - parts[0].shape[0]
        there = Place(
            jnp.clip(slot, 0, slots - 1),
            jnp.where(mine, place.start, scratch),
            jnp.where(mine, place.rows, 0),
        )
        out, layer = prompt(parts, turn, layer, there, window)
        return add_up(jnp.where(mine, out, 0.0), "data"), layer

    return attend


def by_rows(choose: Callable[..., Found]) -> Callable[..., Found]:
    """An operation on rows [S ...], outside `shard_map`: every device does its own slots."""

    def run(*given: Any) -> Found:
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or mesh.size == 1:
            return choose(*given)
        arrays = [each for each in given if not isinstance(each, int)]
        numbers = given[len(arrays) :]
        split = arrays[0].shape[0] % mesh.shape["data"] == 0
        where = PartitionSpec("data" if split else None)
        spread: Callable[..., Found] = jax.shard_map(
            lambda *own: choose(*own, *numbers), in_specs=where, out_specs=where, check_vma=False
        )
        return spread(*arrays)

    return run
