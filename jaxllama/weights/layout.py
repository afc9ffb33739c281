"""Layout steps: the ways a stored tensor becomes canonical, each named once for every format.

Named in the tables of weight formats, applied by `Checkpoint.read`. A step works on a dense array
as the file holds it, and on a Packed matrix by permuting its rows. Knows no file format.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from einops import rearrange

from jaxllama.config import ModelConfig
from jaxllama.kernels.packed import Packed

Stored = np.ndarray | Packed
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """What a step does to the values, and to the shape before any value is read."""

    apply: Callable[[Stored, ModelConfig], Stored]
    shape: Callable[[Shape], Shape]


def transpose(stored: Stored, config: ModelConfig) -> Stored:
    """[out, in] rows to our [in, out]; a Packed matrix is kept by output already."""
    del config
    return stored if isinstance(stored, Packed) else np.ascontiguousarray(stored.T)


def unpair_query(stored: Stored, config: ModelConfig) -> Stored:
    """Rows of query heads from rotated neighbours to halves."""
    return over_rows(stored, lambda rows: unpair_rope(rows, config.heads))


def unpair_key(stored: Stored, config: ModelConfig) -> Stored:
    """Rows of key heads from rotated neighbours to halves."""
    return over_rows(stored, lambda rows: unpair_rope(rows, config.kv_heads))


def same(shape: Shape) -> Shape:
    """The shape of a step that only moves values."""
    return shape


def reverse(shape: Shape) -> Shape:
    """The shape of a transposed array."""
    return shape[::-1]


STEPS: dict[str, Step] = {
    "transpose": Step(transpose, reverse),
    "unpair_query": Step(unpair_query, same),
    "unpair_key": Step(unpair_key, same),
}


def arrange(stored: Stored, steps: tuple[str, ...], config: ModelConfig) -> Stored:
    """The canonical form of a stored tensor."""
    for step in steps:
        stored = STEPS[step].apply(stored, config)
    return stored


def arranged_shape(shape: Shape, steps: tuple[str, ...]) -> Shape:
    """The shape `arrange` will give, known without reading."""
    for step in steps:
        shape = STEPS[step].shape(shape)
    return shape


def unpair_rope(rows: np.ndarray, heads: int) -> np.ndarray:
    """Within each head: rotated pairs side by side become first halves, then second halves."""
    return rearrange(rows, "(heads pairs two) ... -> (heads two pairs) ...", heads=heads, two=2)


def over_rows(stored: Stored, move: Callable[[np.ndarray], np.ndarray]) -> Stored:
    """Apply a permutation of rows; in a Packed matrix a row's scales go with its codes."""
    if not isinstance(stored, Packed):
        return move(stored)
    parts: dict[str, Any] = {
        name: None if part is None else move(np.asarray(part))
        for name, part in (
            ("codes", stored.codes), ("scales", stored.scales), ("minima", stored.minima)
        )
    }  # fmt: skip
    return dataclasses.replace(stored, **parts)
