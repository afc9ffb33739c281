"""The GPU kernels, interpreted on CPU, against their plain meaning over random shapes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllama.kernels.body import PromptSpan
from jaxllama.kernels.gpu import GPU
from jaxllama.kernels.gpu.layout import converts_float8, lacks_float8
from jaxllama.kernels.gpu.matmul import multiply_packed, tiling_of
from jaxllama.kernels.packed import FLOAT8_TYPES, Packed, dense_of
from jaxllama.kernels.plain import PLAIN
from jaxllama.kernels.storage import CacheSize, layer_arrays
from tests.support import MODEL

TOLERANCE = {"float32": 2e-6, "bfloat16": 0.02, "int8": 0.03}
SEEDS = range(4)


def random_layer(random, size, dtype):
    """A layer whose columns are all filled."""
    arrays = layer_arrays(size, dtype)
    if dtype == "int8":
        numbers = [jnp.asarray(random.integers(-127, 128, size, np.int8)) for _ in range(2)]
        scales = [jnp.asarray(0.01 + 0.02 * random.random(size[:3], np.float32)) for _ in range(2)]
        return (*numbers, *scales)
    return tuple(
        jnp.asarray(random.standard_normal(each.shape, np.float32)).astype(dtype) for each in arrays
    )


def projections(random, rows, heads, size):
    return tuple(
        jnp.asarray(random.standard_normal((rows, count, size.head_dim), np.float32))
        for count in (heads, size.kv_heads, size.kv_heads)
    )


def rotation(random, rows, head_dim):
    angles = 6 * random.random((rows, head_dim // 2), np.float32)
    return jnp.cos(angles), jnp.sin(angles)


@pytest.mark.parametrize("seed", SEEDS)
def test_attention_means_what_the_plain_one_does(seed):
    random = np.random.default_rng(seed)
    dtype = ("float32", "bfloat16", "int8", "float32")[seed]
    head_dim, kv_heads, group = ((32, 1, 3), (64, 2, 4), (32, 2, 1), (128, 1, 8))[seed]
    size = CacheSize(3, kv_heads, int(random.integers(5, 10)) * 128, head_dim)
    window = (None, 200, None, 70)[seed]
    cap = 20.0 if seed == 3 else None
    mine, plain = (
        body.attention if cap is None else body.capped_attention(cap) for body in (GPU, PLAIN)
    )
    layer, heads = random_layer(random, size, dtype), kv_heads * group
    # A first column, the last and the first of a part of 512, and a row that is not active.
    position = jnp.array([(0, 511, 5), (511, 7, 512), (512, 513, 0), (300, 9, 520)][seed])
    active = jnp.array([True, False, True])
    given = projections(random, 3, heads, size), rotation(random, 3, head_dim)
    found, new = jax.jit(mine.step, static_argnums=5)(*given, layer, position, active, window)
    expected, wanted = plain.step(*given, layer, position, active, window)
    error = np.abs(np.float32(found) - np.float32(expected))[np.asarray(active)].max()
    assert error <= TOLERANCE[dtype]
    for slot in (0, 2):
        upto = position[slot] + 1
        for ours, theirs in zip(new, wanted, strict=True):
            np.testing.assert_allclose(
                np.float32(ours[slot, :, :upto]),
                np.float32(theirs[slot, :, :upto]),
                rtol=1e-2,
                atol=1.01 if ours.dtype == jnp.int8 else 1e-5,
            )
    np.testing.assert_array_equal(np.float32(new[0][1]), np.float32(layer[0][1]))  # not active
    rows, count = int(random.integers(1, 90)), None
    count = int(random.integers(1, rows + 1))
    span = PromptSpan(*map(jnp.int32, (1, int(random.integers(0, 300)), count)))
    given = projections(random, rows, heads, size), rotation(random, rows, head_dim)
    found, _ = jax.jit(mine.prompt, static_argnums=4)(*given, layer, span, window)
    expected, _ = plain.prompt(*given, layer, span, window)
    assert np.abs(np.float32(found) - np.float32(expected))[:count].max() <= TOLERANCE[dtype]


def random_packed(random, bits, group, inward, outward, *, minima, order):
    codes = random.integers(0, 256, (outward, inward // 2), np.uint8)
    if bits != 4:
        codes = random.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (outward, inward), np.int8)
    scales = random.random((outward, inward // group)).astype(np.float16)
    low = random.random(scales.shape).astype(np.float16) if minima else None
    places = random.permutation(inward).astype(np.int32) if order else None
    return Packed(codes, scales, low, bits, group, places)


def random_float8(random, kind, group, inward, outward):
    codes = random.standard_normal((outward, inward)).astype(kind)
    codes[:, :3] = np.array([0, 2.0**-9, -(2.0**-8)]).astype(kind)  # two are below the exponents
    scales = random.random((outward, inward // group), np.float32)
    return Packed(codes, scales, None, 8, group)


@pytest.mark.parametrize("seed", range(6))
def test_a_packed_matrix_means_what_its_numbers_do(seed):
    random = np.random.default_rng(seed)
    bits, group = ((4, 32), (8, 32), (4, 128), (6, 16), (5, 32), (4, 64))[seed]
    rows, inward, outward = (
        int(random.integers(1, 40)),
        int(random.integers(1, 5)) * 128,
        int(random.integers(1, 6)) * 16,
    )
    packed = random_packed(
        random, bits, group, inward, outward, minima=seed % 2 == 0, order=seed == 2
    )
    assert tiling_of(rows, inward, packed) is not None  # the kernel takes it
    x = random.standard_normal((rows, inward), np.float32)
    for dtype, tolerance in ((jnp.float32, 1e-5), (jnp.bfloat16, 0.01)):
        found = multiply_packed(jnp.asarray(x), jax.tree.map(jnp.asarray, packed), dtype)
        expected = x @ dense_of(packed)
        assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("kind", FLOAT8_TYPES)
@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize("rows", [3, 200])
def test_float8_numbers_are_multiplied_by_their_scales(kind, group, rows):
    """Few rows by the kernel, many by XLA; both round a weight as one that was expanded at load."""
    random = np.random.default_rng(group)
    packed = random_float8(random, kind, group, 384, 48)
    assert (tiling_of(rows, 384, packed) is None) == (rows == 200)
    x, held = random.standard_normal((rows, 384), np.float32), jax.tree.map(jnp.asarray, packed)
    for dtype in (jnp.float32, jnp.bfloat16):
        found = multiply_packed(jnp.asarray(x), held, dtype)
        left, right = (each.astype(dtype).astype(np.float32) for each in (x, dense_of(packed)))
        expected = left @ right
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_float8_is_expanded_for_gpus_that_cannot_convert_it():
    converting = [each for each in ("8.0", "8.9", "9.0", "12.0", "gfx942") if converts_float8(each)]
    assert converting == ["8.9", "9.0", "12.0"]
    assert not lacks_float8(jax.make_mesh((1, 1), ("data", "model")))  # the interpreter


def test_a_prompt_and_an_odd_matrix_are_unpacked_whole():
    random = np.random.default_rng(0)
    packed = random_packed(random, 4, 32, 64, 40, minima=False, order=False)
    assert tiling_of(4, 64, packed) is None  # 40 outputs are no whole tiles
    for rows, matrix in (
        (4, packed),
        (200, random_packed(random, 4, 32, 64, 32, minima=True, order=False)),
    ):
        x = random.standard_normal((rows, 64), np.float32)
        found = multiply_packed(jnp.asarray(x), jax.tree.map(jnp.asarray, matrix), jnp.float32)
        np.testing.assert_allclose(found, x @ dense_of(matrix), rtol=1e-4, atol=1e-3)


def test_what_the_kernels_cannot_run_is_refused():
    assert "powers of two" in GPU.refuses(dataclasses.replace(MODEL, head_dim=80), 1)
    assert not GPU.refuses(dataclasses.replace(MODEL, head_dim=64), 1)
    assert "run on GPUs" in GPU.missing()
