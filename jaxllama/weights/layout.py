"""Layout steps: conversions of a stored tensor to canonical layout, named once for all formats.

Named in the tables of weight formats, applied by `Checkpoint.read`. A step works on a dense array
as stored in the file, and on a Packed matrix by permuting its rows. Knows no file format.
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
    """One conversion: its effect on the values, and on the shape before any value is read."""

    apply: Callable[[Stored, ModelConfig], Stored]
    shape: Callable[[Shape], Shape]


def transpose(stored: Stored, config: ModelConfig) -> Stored:
    """Transpose [out, in] to our [in, out]; a Packed matrix is stored by output already."""
    del config
    return stored if isinstance(stored, Packed) else np.ascontiguousarray(stored.T)


def unpair_query(stored: Stored, config: ModelConfig) -> Stored:
    """Reorder the rows of query heads: rotated neighbours become rotated halves."""
    return over_rows(stored, lambda rows: unpair_rope(rows, config.heads))


def unpair_key(stored: Stored, config: ModelConfig) -> Stored:
    """Reorder the rows of key heads: rotated neighbours become rotated halves."""
    return over_rows(stored, lambda rows: unpair_rope(rows, config.kv_heads))


def same(shape: Shape) -> Shape:
    """Return the shape after a step that only moves values."""
    return shape


def reverse(shape: Shape) -> Shape:
    """Return the shape after a transpose."""
    return shape[::-1]


STEPS: dict[str, Step] = {
    "transpose": Step(transpose, reverse),
    "unpair_query": Step(unpair_query, same),
    "unpair_key": Step(unpair_key, same),
}


def arrange(stored: Stored, steps: tuple[str, ...], config: ModelConfig) -> Stored:
    """Convert a stored tensor to canonical layout."""
    for step in steps:
        stored = STEPS[step].apply(stored, config)
    return stored


def arranged_shape(shape: Shape, steps: tuple[str, ...]) -> Shape:
    """Return the shape that `arrange` will give, without reading values."""
    for step in steps:
        shape = STEPS[step].shape(shape)
    return shape


def unpair_rope(rows: np.ndarray, heads: int) -> np.ndarray:
    """Reorder the rows of each head: rotated pairs side by side become first and second halves."""
    return rearrange(rows, "(heads pairs two) ... -> (heads two pairs) ...", heads=heads, two=2)


def over_rows(stored: Stored, move: Callable[[np.ndarray], np.ndarray]) -> Stored:
    """Apply a permutation of rows; in a Packed matrix, to codes, scales and minima alike."""
    if not isinstance(stored, Packed):
        return move(stored)
    parts: dict[str, Any] = {
        name: None if part is None else move(np.asarray(part))
        for name, part in (
            ("codes", stored.codes), ("scales", stored.scales), ("minima", stored.minima)
        )
    }  # fmt: skip
    return dataclasses.replace(stored, **parts)
