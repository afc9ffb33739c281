"""The TPU body's kernels against their plain meaning, run by Pallas's interpreters.

Nothing here runs on a TPU; `make accelerators` compiles the same kernels for one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from jaxllama.errors import ConfigError
from jaxllama.kernels.body import GroupKind, MatrixGroup, Placement, PromptSpan
from jaxllama.kernels.packed import Packed, dense_of
from jaxllama.kernels.plain import attention as plain
from jaxllama.kernels.storage import CacheSize
from jaxllama.kernels.tpu import TPU
from jaxllama.kernels.tpu import attention as tpu
from jaxllama.kernels.tpu.grouped import can_group, grouped, zero_of
from jaxllama.kernels.tpu.grouped_matmul import multiply, take, units_of
from jaxllama.kernels.tpu.layout import lay_out
from jaxllama.testing import FAMILIES, tiny

COLUMNS = 384
RUN = 16  # rows of a prompt


class Case(NamedTuple):
    """Sizes of an attention: slots, key heads, queries per key head, head size, and the cache."""

    slots: int
    kv_heads: int
    group: int
    size: int
    dtype: str
    window: int | None = None
    cap: float | None = None

    @property
    def tolerance(self):
        """Queries and weights are rounded to bfloat16 unless the cache is float32."""
        return 3e-6 if self.dtype == "float32" else 8e-3


CASES = [
    Case(3, 2, 2, 64, "float32"),
    Case(3, 1, 3, 64, "bfloat16", window=150),
    Case(2, 2, 1, 128, "int8", cap=30.0),
]


def layer_of(case, rng):
    """A cache of random numbers, in the form of the TPU body."""
    size = CacheSize(case.slots, case.kv_heads, COLUMNS, case.size)
    numbers, *scales = tpu.cache_arrays(size, case.dtype)
    if scales:
        codes = rng.integers(-127, 128, numbers.shape)
        return jnp.asarray(codes, jnp.int8), jnp.asarray(
            rng.random(scales[0].shape) / 50, jnp.float32
        )
    return (jnp.asarray(rng.standard_normal(numbers.shape), numbers.dtype),)


def plain_layer(layer):
    """The same cache in the form of the plain body."""
    numbers, *scales = layer
    size = numbers.shape[3] // 2
    found = numbers[..., :size], numbers[..., size:]
    return (*found, scales[0][:, 0::2], scales[0][:, 1::2]) if scales else found


def projections(case, rows, rng):
    counts = (case.kv_heads * case.group, case.kv_heads, case.kv_heads)
    return tuple(
        jnp.asarray(rng.standard_normal((rows, count, case.size)), jnp.float32) for count in counts
    )


def turns(case, rows, rng):
    angles = rng.random((rows, case.size // 2))
    return jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)


def assert_same_cache(found, expected, columns):
    """Rotation is rounded as the compiler likes; beyond that, the same numbers in all columns."""
    for one, other in zip(plain_layer(found), expected, strict=True):
        sides = [np.asarray(side, np.float32)[:, :, :columns] for side in (one, other)]
        step = 1 if one.dtype == jnp.int8 else 2e-2 if one.dtype == jnp.bfloat16 else 1e-5
        assert np.abs(sides[0] - sides[1]).max() <= step
        assert np.mean(sides[0] != sides[1]) < 0.01


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_step_appends_a_column_and_attends_alone_as_in_company(case):
    rng = np.random.default_rng(0)
    layer, given = layer_of(case, rng), (projections(case, case.slots, rng),)
    given += (turns(case, case.slots, rng),)
    position = jnp.array([5, 300, 127][: case.slots], jnp.int32)

    @jax.jit
    def attend(active):
        return tpu.attend_step(*given, layer, position, active, case.window, case.cap)

    every = jnp.ones(case.slots, bool)
    found, after = attend(every)
    expected, wanted = plain.attend_step(
        *given, plain_layer(layer), position, every, case.window, case.cap
    )
    assert np.abs(found - expected).max() < case.tolerance
    assert_same_cache(after, wanted, COLUMNS)
    alone, untouched = attend(every.at[0].set(False))
    np.testing.assert_array_equal(alone[1:], found[1:])
    assert not alone[0].any()
    for before, now in zip(layer, untouched, strict=True):
        np.testing.assert_array_equal(now[0], before[0])


def test_a_step_has_no_races_in_the_simulation_of_a_tpu():
    case = CASES[0]
    rng = np.random.default_rng(1)
    layer, given = layer_of(case, rng), (projections(case, 3, rng), turns(case, 3, rng))
    position, active = jnp.array([200, 9, 383]), jnp.array([True, False, True])
    simulation = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
    with pltpu.force_tpu_interpret_mode(simulation):
        run = jax.jit(lambda: tpu.attend_step(*given, layer, position, active, None))
        found, _ = jax.block_until_ready(run())
    expected, _ = plain.attend_step(*given, plain_layer(layer), position, active, None)
    assert np.abs(found - expected)[np.asarray(active)].max() < case.tolerance


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_prompt_attends_to_its_prefix_wherever_its_chunk_begins(case):
    rng = np.random.default_rng(2)
    layer = layer_of(case, rng)
    given = (projections(case, RUN, rng), turns(case, RUN, rng))

    @jax.jit
    def attend(given, layer, start):
        span = PromptSpan(jnp.int32(1), start, jnp.int32(RUN))
        return tpu.attend_prompt(*given, layer, span, case.window, case.cap)

    found, after = attend(given, layer, jnp.int32(250))
    span = PromptSpan(*map(jnp.int32, (1, 250, RUN)))
    expected, wanted = plain.attend_prompt(*given, plain_layer(layer), span, case.window, case.cap)
    assert np.abs(found - expected).max() < case.tolerance
    assert_same_cache(after, wanted, COLUMNS)
    # The same tokens, cut into chunks elsewhere: the last eight rows begin another chunk.
    later = jax.tree.map(lambda x: jnp.concatenate([x[8:], x[:8]]), given)
    again, _ = attend(later, after, jnp.int32(258))
    np.testing.assert_array_equal(again[:8], found[8:])


class PackedForm(NamedTuple):
    """A form of packed matrices: bits, group, and what the minima are."""

    bits: int
    group: int
    minima: str
    scales: type = np.float16
    sizes: tuple[int, int] = (512, 200)
    float8: type | None = None  # of codes


FORMS = [
    PackedForm(4, 32, "middle"),
    PackedForm(4, 32, "any", np.float32, (576, 128)),
    PackedForm(4, 128, "middle", sizes=(1024, 128)),
    PackedForm(4, 512, "any", sizes=(1024, 128)),
    PackedForm(8, 16, "none"),
    PackedForm(8, 128, "none", np.float32, (512, 200), ml_dtypes.float8_e4m3fn),
    PackedForm(8, 64, "none", np.float32, (576, 128), ml_dtypes.float8_e5m2),
]


def packed(form, rng):
    inward, outward = form.sizes
    if form.bits == 4:
        codes = rng.integers(0, 256, (outward, inward // 2), np.uint8)
    elif form.float8 is not None:
        codes = rng.standard_normal((outward, inward)).astype(form.float8)
        codes[:, :3] = np.array([0, 2.0**-9, -(2.0**-8)]).astype(form.float8)  # two are subnormal
    else:
        codes = rng.integers(-127, 128, (outward, inward)).astype(np.int8)
    scales = (rng.random((outward, inward // form.group)) / 100).astype(form.scales)
    scales[0, 0], scales[1, 0] = 3e-6, -0.01  # below float16's smallest exponent; negative
    any_minima = (rng.standard_normal(scales.shape) / 20).astype(form.scales)
    minima = {"none": None, "middle": -8 * scales, "any": any_minima}[form.minima]
    return Packed(codes, scales, minima, form.bits, form.group)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_packed_matrices_multiply_and_give_rows(form):
    rng = np.random.default_rng(3)
    matrix = packed(form, rng)
    assert can_group(matrix)
    assert zero_of(matrix) == {"none": 0, "middle": 8, "any": None}[form.minima]
    held = jax.tree.map(jnp.asarray, grouped(matrix, zero_of(matrix)))
    dense, x = dense_of(matrix), rng.standard_normal((5, form.sizes[0]), np.float32)
    found = jax.jit(multiply)(x, held)
    rounded = np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32)
    weights = np.asarray(jnp.asarray(dense, jnp.bfloat16), np.float32)
    expected = rounded @ weights
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    tokens = np.array([0, form.sizes[1] - 1, 1], np.int32)
    rows = jax.jit(take)(held, tokens)[:, : form.sizes[0]]
    np.testing.assert_allclose(rows, dense.T[tokens], rtol=1e-6, atol=1e-9)


def test_blocks_of_a_matrix_are_whole_tiles():
    for inputs, group, count in ((7168, 32, 4), (8192, 32, 8), (576, 32, 5), (4096, 128, 8)):
        codes = np.zeros((128, inputs // 2), np.uint8)
        matrix = Packed(codes, np.zeros((128, inputs // group), np.float16), None, 4, group)
        held = grouped(matrix, 0)
        unit = 256 if held.inputs % 256 == 0 else 128
        assert units_of(held, held.inputs // unit, unit) == count
        rows = count * unit // group
        assert rows % 16 == 0 or count * unit == held.inputs


def test_matrices_that_the_kernels_cannot_read_are_unpacked():
    codes = np.zeros((32, 96 // 2), np.uint8)
    matrix = Packed(codes, np.ones((32, 2), np.float16), None, 4, 48)
    assert not can_group(matrix)
    to = Placement(jax.make_mesh((1, 1), ("data", "model")), "float32", packed=True)
    group = MatrixGroup(GroupKind.SINGLE, [matrix], [None], ("width", "heads"))
    (weight,) = lay_out(group, to)
    assert weight.weight.matrix.array.shape == (96, 32)


def test_models_and_caches_without_kernels_are_refused_by_name():
    assert "head size is 16" in TPU.refuses(FAMILIES["llama3"], 1)
    wide = tiny(head_dim=64)
    assert not TPU.refuses(wide, 4)
    with pytest.raises(ConfigError, match="cache_dtype is 'float16'; kernels 'tpu' take one of"):
        TPU.cache_arrays(CacheSize(1, 1, 128, 64), "float16")
