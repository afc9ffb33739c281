"""How the cache holds numbers, and that the plain attention and the kernels write the same."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllama.kernels import storage
from jaxllama.kernels.body import PromptSpan
from jaxllama.kernels.cpu import attention as cpu_attention
from jaxllama.kernels.cpu import library
from jaxllama.kernels.plain import attention as reference
from jaxllama.kernels.storage import read_columns, write_columns

SLOTS, HEADS, COLUMNS, SIZE = 3, 2, 128, 32
QUERIES = 2 * HEADS
STORED = ("uint16", "float16", "float32", "int8")


def empty_layer(dtype):
    scales = [jnp.zeros((SLOTS, HEADS, COLUMNS), jnp.float32)] * 2 if dtype == "int8" else []
    return (*[jnp.zeros((SLOTS, HEADS, COLUMNS, SIZE), dtype)] * 2, *scales)


def parts_of(rows, seed=0):
    rng = np.random.default_rng(seed)
    sizes = (QUERIES, HEADS, HEADS)
    numbers = (rng.standard_normal((rows, heads, SIZE), dtype=np.float32) for heads in sizes)
    return tuple(map(jnp.asarray, numbers))


def turn_of(position):
    angles = np.asarray(position)[:, None] * 100.0 ** -(np.arange(0, SIZE, 2)[None] / SIZE)
    return jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)


def flat(parts):
    return jnp.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)


@pytest.mark.parametrize("dtype", STORED)
def test_numbers_come_back_to_within_half_a_step(dtype):
    x = np.random.default_rng(0).standard_normal((5, HEADS, SIZE), dtype=np.float32)
    side = storage.sides(empty_layer(dtype))[0]
    back = storage.meant(storage.stored(jnp.asarray(x), side))
    step = {"int8": np.abs(x).max(-1, keepdims=True) / 127, "uint16": np.abs(x) / 128}
    step = step.get(dtype, np.abs(x) / (1024 if dtype == "float16" else 2**23))
    assert np.all(np.abs(np.asarray(back) - x) <= step * 0.5001)


def test_int8_column_of_zeros_and_one_with_nan_mean_zeros_and_nan():
    side = storage.sides(empty_layer("int8"))[0]
    x = jnp.zeros((2, HEADS, SIZE)).at[1, 0, 3].set(jnp.nan)
    back = np.asarray(storage.meant(storage.stored(x, side)))
    assert not back[0].any()
    assert np.isnan(back[1, 0]).all()
    assert not back[1, 1].any()


def test_sides_of_a_layer_make_the_layer():
    for dtype in STORED:
        layer = empty_layer(dtype)
        assert all(map(operator.is_, storage.layer_of(*storage.sides(layer)), layer))


@pytest.mark.parametrize("dtype", STORED)
def test_columns_are_read_and_written_with_their_scales(dtype):
    rng = np.random.default_rng(1)
    layer = [jnp.asarray(rng.integers(-100, 100, x.shape), x.dtype) for x in empty_layer(dtype)]
    for part in layer:
        run = read_columns(part, jnp.int32(1), jnp.int32(20), 30)
        moved = write_columns(part, run, jnp.int32(2), jnp.int32(70))
        expected = np.array(part)
        expected[2, :, 70:100] = expected[1, :, 20:50]
        assert np.array_equal(moved, expected)


@pytest.mark.skipif(not library.available(), reason=library.why_not())
@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("way", ["step", "prompt"])
def test_both_bodies_store_the_same_and_read_it_alike(dtype, way):
    rows = SLOTS if way == "step" else 9
    position = (
        np.array([4, 0, 100], np.int32) if way == "step" else np.arange(5, 14, dtype=np.int32)
    )
    parts, turn, layer = parts_of(rows), turn_of(position), empty_layer(dtype)
    if way == "step":
        rest = (jnp.asarray(position), jnp.array([True, False, True]), None)
        bodies = (reference.attend_step, cpu_attention.attend_step)
    else:
        rest = (PromptSpan(*map(jnp.int32, (1, 5, rows))), None)
        bodies = (reference.attend_prompt, cpu_attention.attend_prompt)
    plain, stored = jax.jit(lambda: bodies[0](parts, turn, layer, *rest))()
    fast, kept = jax.jit(lambda: bodies[1](flat(parts), turn, layer, *rest))()
    seen = rest[1] if way == "step" else np.ones(rows, bool)
    assert np.abs(plain - fast)[seen].max() < 0.02  # bfloat16 and int8 round the query as well
    for one, other in zip(stored, kept, strict=True):
        sides = [np.asarray(x)[:, :, : COLUMNS - 1].astype(np.float64) for x in (one, other)]
        # The last bit of a rotated number, and so its rounding, is the compiler's choice.
        slack = 1 if dtype in ("int8", "uint16") and one.ndim == 4 else 1e-3
        assert np.abs(sides[0] - sides[1]).max() <= slack
