"""Quantises a matrix to 4 or 8 bits in groups of inputs that share a scale.

Called by `convert.py`. Codes are rounded to the nearest; the scale either reaches the largest
weight of its group, or minimises the squared error. Knows no file.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float

from jaxllama.kernels.packed import Packed
from jaxllama.weights.stored import MIDDLE, minima_around_middle

LIMITS = {4: (-8.0, 7.0), 8: (-127.0, 127.0)}  # of signed codes
TRIES = 12  # scales tried for each group, from REACH times the usual one to its inverse
REACH = 0.7
REFINEMENTS = 1
SLICE = 1 << 16  # weights quantised at a time: they stay in the cache of a core


def quantize(
    matrix: Float[np.ndarray, "O I"],
    bits: Literal[4, 8],
    group: int,
    *,
    minimises_error: bool = False,
) -> Packed:
    """Return `matrix`, [outputs, inputs], quantised with one scale for every `group` inputs.

    `group` must divide the number of inputs. With `minimises_error`, scales are searched for the
    least squared error; without, they are set by the largest weight of their group.
    """
    out, inward = matrix.shape
    step = max(1, SLICE // inward)
    parts = [
        quantize_rows(
            np.asarray(matrix[start : start + step], np.float32).reshape(
                -1, inward // group, group
            ),
            bits,
            minimises_error=minimises_error,
        )
        for start in range(0, out, step)
    ]
    codes = np.concatenate([codes for codes, _ in parts]).reshape(out, inward)
    scales = np.concatenate([scales for _, scales in parts])
    if bits == 8:  # noqa: PLR2004
        return Packed(codes, scales, None, bits, group)
    shifted = (codes + MIDDLE).astype(np.uint8)
    pairs = np.ascontiguousarray(shifted[:, 0::2] | shifted[:, 1::2] << 4)
    return Packed(pairs, scales, minima_around_middle(scales), bits, group)


def quantize_rows(
    groups: Float[np.ndarray, "O G W"], bits: Literal[4, 8], *, minimises_error: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return signed codes [O, G, W] and float16 scales [O, G] for `groups`, [O, G, W].

    O counts outputs, G the groups of an output, W the weights of a group, which share a scale. With
    `minimises_error`, scales are searched for the least squared error; without, they are set by the
    largest weight of their group.
    """
    usual = usual_scales(groups, bits)
    best = usual.astype(np.float16)
    if minimises_error:
        least = error_of(groups, best, bits)
        for factor in np.geomspace(REACH, 1 / REACH, TRIES, dtype=np.float32):
            tried = usual * factor
            for _ in range(REFINEMENTS):
                tried = fitted(groups, tried, bits)
            narrow = tried.astype(np.float16)
            error = error_of(groups, narrow, bits)
            is_better = error < least
            best, least = np.where(is_better, narrow, best), np.where(is_better, error, least)
    return codes_of(groups, best.astype(np.float32), bits).astype(np.int8), best


def usual_scales(groups: Float[np.ndarray, "O G W"], bits: int) -> Float[np.ndarray, "O G"]:
    """Return, for each group, the scale that gives its largest weight the code farthest from 0.

    A group is weights that share a scale. The axes of `groups` are output, group and weight in the
    group; a code has `bits` bits.
    """
    place = np.abs(groups).argmax(axis=-1)[..., None]
    largest = np.take_along_axis(groups, place, axis=-1)[..., 0]
    return largest / LIMITS[bits][0] if bits == 4 else np.abs(largest) / LIMITS[bits][1]  # noqa: PLR2004


def fitted(
    groups: Float[np.ndarray, "O G W"], scales: Float[np.ndarray, "O G"], bits: int
) -> Float[np.ndarray, "O G"]:
    """Return the scales with the least squared error for the codes that `scales` give.

    A group is weights that share a scale. The axes of `groups` are output, group and weight in the
    group; a code has `bits` bits.
    """
    codes = codes_of(groups, scales, bits)
    squares = np.einsum("ogw,ogw->og", codes, codes)
    products = np.einsum("ogw,ogw->og", groups, codes)
    return np.where(squares > 0, products / np.maximum(squares, 1), scales)


def codes_of(
    groups: Float[np.ndarray, "O G W"], scales: Float[np.ndarray, "O G"], bits: int
) -> Float[np.ndarray, "O G W"]:
    """Return every weight divided by its group's scale and rounded to a signed code, as float32.

    A group is weights that share a scale. The axes of `groups` are output, group and weight in the
    group; a code has `bits` bits.
    """
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    return np.clip(np.rint(groups * inverse[..., None]), *LIMITS[bits])


def error_of(
    groups: Float[np.ndarray, "O G W"], scales: Float[np.ndarray, "O G"], bits: int
) -> Float[np.ndarray, "O G"]:
    """Return, for each group, the squared error of its weights when quantised with `scales`.

    A group is weights that share a scale. The axes of `groups` are output, group and weight in the
    group; a code has `bits` bits.
    """
    wide = scales.astype(np.float32)
    rest = groups - codes_of(groups, wide, bits) * wide[..., None]
    return np.einsum("ogw,ogw->og", rest, rest)
