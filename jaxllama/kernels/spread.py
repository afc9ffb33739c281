"""Operations on several devices: XLA cannot split a foreign call, so the split is written here.

Used by the operations of bodies; on one device nothing here changes them. Knows the mesh axes, not
what an operation does with its rows.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jaxllama.kernels.body import AttendPrompt, Projections, PromptSpan, Rotation
from jaxllama.kernels.storage import Layer
from jaxllama.shapes import Array, Float, Int
from jaxllama.sharding import add_up, own_parts

Found = TypeVar("Found")


def where_slot_lies(prompt: AttendPrompt) -> AttendPrompt:
    """Wrap prompt attention for `shard_map`: the device that has the slot gives the result.

    All devices receive this result; the other ones write only to scratch columns of their caches.
    """

    def attend(
        projections: Projections,
        rotation: Rotation,
        layer: Layer,
        span: PromptSpan,
        window: int | None,
    ) -> tuple[Array, Layer]:
        if own_parts("data") == 1:
            return prompt(projections, rotation, layer, span, window)
        slots, _, columns, _ = layer[0].shape
        slot = span.slot - lax.axis_index("data") * slots
        mine = (slot >= 0) & (slot < slots)
        # Other devices write meaningless keys and values to the scratch columns after the last one.
        scratch = columns - projections[0].shape[0]
        there = PromptSpan(
            jnp.clip(slot, 0, slots - 1),
            jnp.where(mine, span.start, scratch),
            jnp.where(mine, span.rows, 0),
        )
        out, layer = prompt(projections, rotation, layer, there, window)
        return add_up(jnp.where(mine, out, 0.0), "data"), layer

    return attend


def by_rows(choose: Callable[..., Found]) -> Callable[..., Found]:
    """Wrap `choose`, so that every device computes the rows of its own slots.

    `choose` takes arrays [S ...] with one row per slot, then ints, all positional. The wrapped
    function takes the same arguments and is called outside `shard_map`.
    """

    @wraps(choose)
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


def take_split(
    rows_of: Callable[[Int[Array, " L"]], Float[Array, "L I"]],
    tokens: Int[Array, " L"],
    own: int,
    vocab: int,
) -> Float[Array, "L I"]:
    """Return the embeddings of `tokens`, where a device may have only a part of the vocabulary.

    `rows_of` looks up ids in this device's part, which has `own` of all `vocab` tokens. If that is
    not all of them, each device looks up its own tokens, and the results are summed.
    """
    if own == vocab:
        return rows_of(tokens)
    place = tokens - lax.axis_index("model") * own
    is_own = (place >= 0) & (place < own)
    rows = rows_of(jnp.clip(place, 0, own - 1))
    return add_up(jnp.where(is_own[:, None], rows, 0.0), "model")
