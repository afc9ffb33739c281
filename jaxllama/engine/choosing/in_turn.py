"""In turn: work of several kinds, in order, where only those that some row asked for cost anything.

Used by whatever runs the samplers, inside the decode program. What is common to all kinds is
written, and compiled, once; a sampler that no row switched on is not even looked at.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from jaxllama.shapes import Array, Bool, Int32

T = TypeVar("T")
Act = Callable[[Int32[Array, ""], Bool[Array, " S"], T], T]  # which kind, its rows, so far


def in_turn(on: Mapping[str, Bool[Array, " S"]], act: Act[T], begin: T) -> T:
    """`begin` after each kind that is on in some row has acted on it, in order."""
    if not on:
        return begin
    rows = jnp.stack(list(on.values()))
    asked = jnp.any(rows, axis=1)
    order = jnp.argsort(~asked, stable=True).astype(jnp.int32)

    def turn(index: Array, so_far: T) -> T:
        return act(order[index], rows[order[index]], so_far)

    return jax.lax.fori_loop(0, jnp.sum(asked), turn, begin)


def one_of(which: Int32[Array, ""], kinds: Mapping[str, Callable[..., T]], *so_far: Any) -> T:
    """What the kind at place `which` makes of it."""
    return jax.lax.switch(which, list(kinds.values()), *so_far)
