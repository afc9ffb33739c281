"""The operations worth a hand-written kernel: one signature each, several bodies.

`reference.py` and `choice.py` are the meaning of each in plain JAX; `cpu_matmul.py`,
`cpu_attention.py` and `cpu_choice.py` call the C++ library. Which body runs is chosen once, when a
program is traced: by the kind of a weight, and by `attention` and `choosing` here.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxllama.kernels import choice, cpu_attention, cpu_choice, reference
from jaxllama.kernels.reference import (
    ROW_TILE,
    Parts,
    Place,
    Turn,
    matmul,
    matmul_by_output,
    norm,
)
from jaxllama.kernels.spread import by_rows, where_it_lies
from jaxllama.kernels.storage import Layer, read_columns, stored_dtype, write_columns
from jaxllama.shapes import Array

__all__ = [
    "ROW_TILE",
    "Choosing",
    "Place",
    "Ways",
    "attention",
    "choosing",
    "matmul",
    "matmul_by_output",
    "norm",
    "read_columns",
    "stored_dtype",
    "write_columns",
]


class Ways(NamedTuple):
    """How attention is done: for one token of every slot, and for a run of one slot."""

    step: Callable[..., tuple[Array, Any]]
    prompt: Callable[..., tuple[Array, Any]]


def attention(body: str, head_dim: int) -> Ways:
    """The body of attention; head sizes that have no kernel get the plain one.

    Beside the other kernels that breaks the seed contract, so `loading.py` refuses such models.
    """
    if body == "cpu" and head_dim in cpu_attention.SIZES:
        return Ways(cpu_step, where_it_lies(cpu_prompt))
    return Ways(reference.attend_step, where_it_lies(reference.attend_prompt))


class Choosing(NamedTuple):
    """How tokens are chosen; see the functions of these names in `choice.py`."""

    set_aside: Callable[..., tuple[Array, Array]]
    survey: Callable[..., choice.Survey]
    best_candidates: Callable[..., tuple[Array, Array, Array]]
    close_ranks: Callable[..., tuple[choice.Best, Array]]
    draw: Callable[..., tuple[Array, Array]]
    logprob: Callable[..., Array]
    take_held: Callable[..., choice.Held]
    put_held: Callable[..., Array]


def choosing(body: str) -> Choosing:
    """The body of everything that goes through a whole vocabulary to choose of it."""
    if body == "cpu":
        return Choosing(*(by_rows(getattr(cpu_choice, name)) for name in Choosing._fields))
    return Choosing(*(getattr(choice, name) for name in Choosing._fields))


def cpu_step(
    parts: Parts, turn: Turn, layer: Layer, position: Array, active: Array, window: int | None
) -> tuple[Array, Any]:
    """`reference.attend_step` by the C++ library."""
    return cpu_attention.attend_step(flat(parts), turn, layer, position, active, window)


def cpu_prompt(
    parts: Parts, turn: Turn, layer: Layer, place: Place, window: int | None
) -> tuple[Array, Any]:
    """`reference.attend_prompt` by the C++ library."""
    return cpu_attention.attend_prompt(flat(parts), turn, layer, place, window)


def flat(parts: Parts) -> Array:
    """Queries, keys and values side by side; XLA undoes the split this came from."""
    return jnp.concatenate([part.reshape(part.shape[0], -1) for part in parts], axis=1)
