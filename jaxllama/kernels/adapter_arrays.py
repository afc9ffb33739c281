"""Arrays of low-rank adapters: made and written the same way by every body."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxllama.shapes import Array, Float, Int32
from jaxllama.sharding import place, shard_shape


def zeros_on(mesh: Mesh, sizes: tuple[int, ...], axes: tuple[str | None, ...], dtype: Any) -> Array:
    """Return an array of zeros on the devices of a mesh.

    `sizes` is its shape; `axes` names the logical axis of each dimension, which decides how it is
    split over the devices (None: it is not split).
    """
    return place(np.zeros(sizes, dtype), shard_shape(mesh, sizes, axes))


def with_adapter(
    every: Sequence[Array], number: Int32[Array, ""], own: Sequence[Float[Array, "R _"]]
) -> tuple[Array, ...]:
    """Return the arrays [adapters, rank, out] of each weight, with adapter `number` replaced.

    `every` has one such array per weight; `own` has the new adapter's matrix for each weight.
    """
    pairs = zip(every, own, strict=True)
    return tuple(all_.at[number].set(one.astype(all_.dtype)) for all_, one in pairs)
