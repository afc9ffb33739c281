"""The matmul kernels against plain NumPy, on every instruction set this processor has."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax import lax

from jaxllama.kernels.cpu import library, tiling
from jaxllama.kernels.cpu.layout import kept
from jaxllama.kernels.cpu.matmul import (
    attributes,
    check,
    matmul_add,
    normed_matmul,
    normed_swiglu,
    or_empty,
    stored,
    take_rows,
)
from jaxllama.kernels.cpu.tiled import Tiled, untile
from jaxllama.kernels.packed import Packed, unpack

pytestmark = pytest.mark.skipif(not library.available(), reason=library.why_not())

EPS = 1e-5
ROWS = (1, 2, 3, 4, 5, 6, 7, 16, 33)


@pytest.fixture(params=("portable", "avx2", "avx512", "amx", "emulated"))
def isa(request):
    """One instruction set after the other; back to the best afterwards."""
    before = library.isa()
    if not library.force_isa(request.param):
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    library.force_isa(before)


@pytest.fixture
def noise():
    return np.random.default_rng(11)


# ---- weights


def packed(noise, inward, outward, *, bits=4, group=32, minima="any", wide=False):
    """A packed matrix; minima any, none, or symmetric: -8 scales."""
    if bits == 4:
        codes = noise.integers(0, 256, (outward, inward // 2), dtype=np.uint8)
    else:
        least = -(2 ** (bits - 1)) if bits == 8 or minima == "none" else 0
        codes = noise.integers(least, least + 2**bits, (outward, inward)).astype(np.int8)
    scales = (0.001 + 0.01 * noise.random((outward, -(-inward // group)))).astype(np.float16)
    offset = -8.0 if minima == "symmetric" else noise.uniform(-9, -6)
    low = None if minima == "none" else (scales.astype(np.float32) * offset).astype(np.float16)
    kept = np.float32 if wide else np.float16
    low = None if low is None else low.astype(kept)
    return Packed(codes, scales.astype(kept), low, bits, group)


def k_quant(noise, inward, outward, *, bits=4):
    """Scales and minima that are six-bit steps of float16 units, in float32, as Q4_K has them."""

    def factors(sign):
        units = (0.001 * noise.random((outward, inward // 256, 1))).astype(np.float16)
        steps = noise.integers(0, 64, (outward, inward // 256, 8))
        return (sign * units.astype(np.float32) * steps).reshape(outward, -1).astype(np.float32)

    codes = packed(noise, inward, outward, bits=bits).codes
    return Packed(codes, factors(1), factors(-1), bits, 32)


def q6_k(noise, inward, outward):
    """Scales of sixteen inputs that are signed bytes of float16 units, in float32."""
    units = (0.001 * noise.random((outward, inward // 256, 1))).astype(np.float16)
    steps = noise.integers(-128, 128, (outward, inward // 256, 16))
    scales = (units.astype(np.float32) * steps).reshape(outward, -1).astype(np.float32)
    return Packed(packed(noise, inward, outward, bits=6, minima="none").codes, scales, None, 6, 16)


def dense(noise, dtype, inward, outward):
    return noise.standard_normal((inward, outward)).astype(dtype)


FORMS = {
    "q4_0": partial(packed, inward=96, outward=70, minima="symmetric"),
    "q4_1": partial(packed, inward=160, outward=96),
    "q4 without minima": partial(packed, inward=64, outward=33, minima="none"),
    "q4 wide": partial(packed, inward=64, outward=40, wide=True),
    "q4 wide, no minima": partial(packed, inward=64, outward=40, wide=True, minima="none"),
    "q4 of 128": partial(packed, inward=512, outward=48, group=128),
    "q4 of 128, wide": partial(packed, inward=256, outward=48, group=128, wide=True),
    "q4 of 128, symmetric": partial(packed, inward=384, outward=64, group=128, minima="symmetric"),
    "q4_k": partial(k_quant, inward=512, outward=70),
    "q5_0": partial(packed, inward=96, outward=70, bits=5, minima="none"),
    "q5_1": partial(packed, inward=160, outward=64, bits=5),
    "q5 wide": partial(packed, inward=64, outward=40, bits=5, wide=True),
    "q5_k": partial(k_quant, inward=256, outward=70, bits=5),
    "q6_k": partial(q6_k, inward=512, outward=70),
    "q8_0": partial(packed, inward=160, outward=50, bits=8, minima="none"),
    "q8 with minima": partial(packed, inward=64, outward=64, bits=8),
    "q8 of 128, wide": partial(packed, inward=256, outward=31, bits=8, group=128, wide=True),
    "bf16": partial(dense, dtype=ml_dtypes.bfloat16, inward=100, outward=70),
    "f16": partial(dense, dtype=np.float16, inward=100, outward=33),
    "f32": partial(dense, dtype=np.float32, inward=50, outward=65),
}


@pytest.fixture(params=FORMS)
def matrix(request, noise):
    return FORMS[request.param](noise)


def values(matrix):
    """The matrix [in, out], float32."""
    if isinstance(matrix, Packed):
        return np.asarray(unpack(jax.tree.map(jnp.asarray, matrix))).T
    return matrix.astype(np.float32)


# ---- the meaning, in NumPy


def normed(x, weight):
    x = x.astype(np.float64)
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + EPS) * weight


def seen(kind, x):
    """Rows as the kernels round them before they meet weights of a kind, float64."""
    if kind in ("f16", "f32"):
        return x.astype(np.float64)
    if kind == "bf16":
        return x.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)
    blocks = x.astype(np.float32).reshape(len(x), -1, 32)
    largest = np.abs(blocks).max(axis=-1, keepdims=True)
    codes = np.rint(blocks * (np.float32(127) / largest))
    return (codes.astype(np.float64) * (largest / np.float32(127))).reshape(x.shape)


def close(found, expected, tolerance):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * expected.std()


def rows_of(noise, count, width):
    return noise.standard_normal((count, width)).astype(np.float32)


def tile(*matrices, **options):
    return jax.tree.map(jnp.asarray, tiling.tile(*matrices, **options))


def tile_pair(*matrices, **options):
    return jax.tree.map(jnp.asarray, tiling.tile_pair(*matrices, **options))


@partial(jax.jit, static_argnums=2)
def apply_normed(x, norm, eps, weight):
    return normed_matmul(x, norm, eps, weight)


# ---- what is multiplied


@pytest.mark.usefixtures("isa")
def test_product_is_that_of_the_rounded_rows(matrix, noise):
    weight = tile(matrix)
    for count in ROWS:
        x = rows_of(noise, count, weight.shape[0])
        found = apply_normed(x, None, 0.0, weight)
        close(found, seen(weight.kind, x) @ values(matrix), 1e-5)


@pytest.mark.usefixtures("isa")
def test_rounding_rows_costs_little(matrix, noise):
    weight = tile(matrix)
    x = rows_of(noise, 33, weight.shape[0])
    error = np.asarray(apply_normed(x, None, 0.0, weight)) - x @ values(matrix)
    assert error.std() <= 0.012 * (x @ values(matrix)).std()


@pytest.mark.parametrize("matrix", sorted(FORMS.keys() - {"bf16"}), indirect=True)
@pytest.mark.usefixtures("isa")
def test_inputs_that_tower_above_their_row_cost_the_others_nothing(matrix, noise):
    weight = tile(matrix)
    x = noise.uniform(-1, 1, (9, weight.shape[0])).astype(np.float32)
    towers = {1: (3, 1e4), 2: (31, -1e4), 7: (weight.shape[0] - 13, 1e4)}
    for row, (place, size) in towers.items():
        x[row, place] = size
    rest = np.where(np.abs(x) > 1, 0, x)
    error = np.asarray(apply_normed(x, None, 0.0, weight)) - x.astype(np.float64) @ values(matrix)
    # Float32 keeps seven digits of the towers.
    bound = 0.012 * (rest @ values(matrix)).std() + 1e-2 * np.abs(values(matrix)).max()
    assert error.std(axis=1).max() <= bound


@pytest.mark.usefixtures("isa")
def test_rows_are_normed_first(matrix, noise):
    weight = tile(matrix)
    x = 3 * rows_of(noise, 9, weight.shape[0])
    norm = noise.random(weight.shape[0]).astype(np.float32)
    found = apply_normed(x, norm, EPS, weight)
    # A last bit of the norm may move an input to the next code: no closer than one such step.
    close(found, seen(weight.kind, normed(x, norm)) @ values(matrix), 0.01)


@pytest.mark.usefixtures("isa")
def test_residual_and_bias_are_added(matrix, noise):
    outward = values(matrix).shape[1]
    bias = noise.standard_normal(outward).astype(np.float32)
    weight = tile(matrix, biases=[bias])
    x, residual = rows_of(noise, 7, weight.shape[0]), rows_of(noise, 7, outward)
    found = jax.jit(matmul_add)(x, weight, residual)
    close(found, residual + bias + seen(weight.kind, x) @ values(matrix), 1e-5)


@pytest.mark.usefixtures("isa")
def test_gate_and_up_are_combined(matrix, noise):
    up = matrix if isinstance(matrix, Packed) else matrix[:, ::-1]
    outward = values(matrix).shape[1]
    biases = [rows_of(noise, 1, outward)[0], None]
    weight = tile_pair(matrix, up, biases=biases)
    x = 2 * rows_of(noise, 7, weight.shape[0])
    norm = np.ones(weight.shape[0], np.float32)
    found = jax.jit(normed_swiglu, static_argnums=2)(x, norm, EPS, weight)
    rounded = seen(weight.kind, normed(x, norm))
    gate = rounded @ values(matrix) + biases[0]
    close(found, gate / (1 + np.exp(-gate)) * (rounded @ values(up)), 0.02)


@pytest.mark.usefixtures("isa")
def test_gates_of_any_size_stay_finite():
    weight = tile_pair(np.eye(32, dtype=np.float32), np.ones((32, 32), np.float32))
    gates = np.array([-1e30, -300, -88.5, -20, -0.5, 1e-8, 20, 88.5, 300, 1e18], np.float32)
    x = np.zeros((len(gates), 32), np.float32)
    x[:, 0] = gates  # and, through the ones, the first output of up
    apply = jax.jit(normed_swiglu, static_argnums=2)
    found = np.asarray(apply(x, None, 0.0, weight), np.float64)[:, 0] / gates
    with np.errstate(over="ignore"):
        expected = gates / (1 + np.exp(-gates.astype(np.float64)))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-35)


@pytest.mark.usefixtures("isa")
def test_reordered_inputs_meet_their_weights(matrix, noise):
    inward = values(matrix).shape[0]
    order = noise.permutation(inward)
    weight = tile(matrix, order=order)
    x, norm = rows_of(noise, 5, inward), noise.random(inward).astype(np.float32)
    close(
        apply_normed(x, None, 0.0, weight),
        seen(weight.kind, x[:, order]) @ values(matrix),
        1e-5,
    )
    rounded = seen(weight.kind, normed(x, norm)[:, order])
    close(apply_normed(x, norm, EPS, weight), rounded @ values(matrix), 0.01)


@pytest.mark.usefixtures("isa")
def test_matrices_side_by_side_are_one(noise):
    parts = [packed(noise, 96, count, minima=kind) for count, kind in
             ((48, "any"), (16, "symmetric"), (10, "none"))]  # fmt: skip
    bias = rows_of(noise, 1, 16)[0]
    weight = tile(*parts, biases=[None, bias, None])
    x = rows_of(noise, 5, 96)
    whole = np.concatenate([values(part) for part in parts], axis=1)
    expected = seen("q4", x) @ whole + np.concatenate([np.zeros(48), bias, np.zeros(10)])
    close(apply_normed(x, None, 0.0, weight), expected, 1e-5)


# ---- the bit rule


@pytest.mark.usefixtures("isa")
def test_a_row_is_the_same_alone_and_in_company(matrix, noise):
    weight = tile(matrix)
    x, norm = rows_of(noise, 40, weight.shape[0]), noise.random(weight.shape[0], np.float32)
    x[::3, 7], x[5:8, 20] = 100, -50  # these tower above their rows
    whole = np.asarray(apply_normed(x, norm, EPS, weight))
    for start, count in ((0, 1), (39, 1), (3, 2), (5, 7), (1, 16), (8, 32)):
        part = np.asarray(apply_normed(x[start : start + count], norm, EPS, weight))
        np.testing.assert_array_equal(part, whole[start : start + count])


@pytest.mark.usefixtures("isa")
def test_wanted_rows_are_the_same_without_the_others(matrix, noise):
    weight = tile(matrix)
    x, residual = rows_of(noise, 20, weight.shape[0]), rows_of(noise, 20, weight.shape[1])
    whole = np.asarray(jax.jit(matmul_add)(x, weight, residual))
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        wanted = noise.random(20) < share
        found = np.asarray(jax.jit(matmul_add)(x, weight, residual, wanted))
        np.testing.assert_array_equal(found[wanted], whole[wanted])
    first = np.arange(20) < 6
    found = np.asarray(jax.jit(matmul_add)(x, weight, residual, first))
    np.testing.assert_array_equal(found[first], whole[first])


@pytest.mark.usefixtures("isa")
def test_rows_beyond_what_is_prepared_at_once_are_the_same(noise):
    # 4 MB of rows are prepared at a time: about 250 of these.
    weight = tile(dense(noise, np.float32, 4096, 32))
    x = rows_of(noise, 300, 4096)
    whole = np.asarray(apply_normed(x, None, 0.0, weight))
    np.testing.assert_array_equal(whole[-3:], apply_normed(x[-3:], None, 0.0, weight))


@pytest.mark.usefixtures("isa")
def test_results_do_not_depend_on_threads(matrix, noise):
    weight = tile(matrix)
    x, before = rows_of(noise, 19, weight.shape[0]), library.threads()
    found = []
    for count in (1, 2, 5):
        library.set_threads(count)
        assert library.threads() == count
        found.append(np.asarray(apply_normed(x, None, 0.0, weight)))
    library.set_threads(before)
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])


def test_calls_from_several_threads_at_once_are_right(noise):
    weight = tile(packed(noise, 256, 512))
    rows = [rows_of(noise, 8, 256) for _ in range(4)]
    expected = [np.asarray(apply_normed(x, None, 0.0, weight)) for x in rows]

    def repeat(which):
        found = [np.asarray(apply_normed(rows[which], None, 0.0, weight)) for _ in range(50)]
        return all(np.array_equal(each, expected[which]) for each in found)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(repeat, range(4)))


@pytest.mark.usefixtures("isa")
def test_subnormal_scales_count_whoever_calls(noise):
    # Half the threads of XLA flush subnormal float32 to zero; a subnormal float16 is none of those.
    plain = packed(noise, 64, 32, minima="none")
    small = np.full_like(plain.scales, 2e-7)
    assert small.min() < np.finfo(np.float16).tiny
    matrix = Packed(plain.codes, small, None, 4, 32)
    weight, x = tile(matrix), rows_of(noise, 9, 64)
    close(apply_normed(x, None, 0.0, weight), seen("q4", x) @ values(matrix), 1e-5)
    np.testing.assert_allclose(take_rows(weight, jnp.arange(32)), values(matrix).T, rtol=1e-6)


# ---- what is not a number


@pytest.mark.parametrize("trouble", [np.nan, np.inf, -np.inf])
@pytest.mark.usefixtures("isa")
def test_what_is_not_finite_is_not_hidden(matrix, noise, trouble):
    weight = tile(matrix)
    x = rows_of(noise, 8, weight.shape[0])
    x[3, 5] = trouble
    found = np.asarray(apply_normed(x, None, 0.0, weight))
    assert not np.isfinite(found[3]).any()
    assert np.isfinite(np.delete(found, 3, axis=0)).all()


@pytest.mark.usefixtures("isa")
def test_rows_of_zeros_and_tiny_numbers_give_no_more_than_that(matrix):
    weight = tile(matrix)
    x = np.zeros((3, weight.shape[0]), np.float32)
    x[1] = 1e-38
    x[2] = 1e-30
    found = np.asarray(apply_normed(x, None, 0.0, weight))
    assert np.abs(found).max() < 1e-27
    assert (found[0] == 0).all()


# ---- layout


def test_tiles_hold_exactly_the_matrix(matrix):
    weight = tile(matrix)
    assert weight.shape == values(matrix).shape
    np.testing.assert_array_equal(untile(weight), values(matrix))


def test_a_pair_holds_exactly_both(matrix):
    weight = tile_pair(matrix, matrix)
    both = np.concatenate([values(matrix)] * 2, axis=1)
    assert weight.shape == values(matrix).shape
    np.testing.assert_array_equal(untile(weight), both)


@pytest.mark.usefixtures("isa")
def test_rows_taken_are_outputs_of_the_matrix(matrix):
    weight, dense_one = tile(matrix), values(matrix)
    tokens = jnp.array([0, 5, dense_one.shape[1] - 1, 10**6, -3])
    rows = np.asarray(jax.jit(take_rows)(weight, tokens))
    last = dense_one.shape[1] - 1
    np.testing.assert_allclose(rows, dense_one.T[[0, 5, last, last, 0]], rtol=1e-6, atol=1e-8)


def test_a_transposed_view_is_tiled_as_it_is(noise):
    embedding = dense(noise, np.float16, 70, 40)
    np.testing.assert_array_equal(untile(tile(embedding.T)), embedding.T.astype(np.float32))


@pytest.mark.parametrize(
    ("form", "bits"),
    [
        ("q4_0", 4.5),
        ("q4_1", 5.0),
        ("q5_0", 5.5),
        ("q5_1", 6.0),
        ("q4_k", 4.625),
        ("q5_k", 5.625),
        ("q6_k", 6.5625),
        ("q8_0", 8.5),
    ],
)
def test_tiles_take_no_more_memory_than_the_file(noise, form, bits):
    weight = tile(FORMS[form](noise, outward=64))
    assert weight.nbytes == weight.shape[0] * 64 * bits / 8


def test_scales_that_are_no_steps_stay_float32(noise):
    matrix = packed(noise, 256, 32, wide=True)
    matrix.scales[0, 0] = 0.1
    weight = tile(matrix)
    assert weight.steps is None
    np.testing.assert_array_equal(untile(weight), values(matrix))


def test_six_bits_whose_scales_are_no_steps_have_no_tiles(noise):
    matrix = q6_k(noise, 256, 32)
    assert tiling.can_tile(matrix)
    matrix.scales[0, 0] = 0.1
    assert not tiling.can_tile(matrix)
    with pytest.raises(ValueError, match="signed bytes"):
        tile(matrix)


@pytest.mark.parametrize(("width", "group"), [(64, 16), (64, 8), (48, 16), (80, 40)])
def test_groups_that_are_no_blocks_have_no_tiles_and_become_dense(width, group):
    scales = np.full((32, width // group), 0.5, np.float32)
    matrix = Packed(np.full((32, width), 3, np.int8), scales, None, 8, group)
    assert not tiling.can_tile(matrix)
    dense = kept(matrix, "stored", by_output=False)
    np.testing.assert_array_equal(dense, np.full((width, 32), 1.5, np.float32))


def test_five_bits_with_and_without_minima_share_tiles(noise):
    parts = [packed(noise, 64, 32, bits=5, minima=kind) for kind in ("none", "any")]
    whole = np.concatenate([values(part) for part in parts], axis=1)
    np.testing.assert_allclose(untile(tile(*parts)), whole, rtol=1e-6)


@pytest.mark.usefixtures("isa")
def test_a_matrix_can_be_cut_along_both_axes(noise):
    matrix = packed(noise, 128, 128)
    weight, x = tile(matrix), rows_of(noise, 3, 128)
    whole = np.asarray(apply_normed(x, None, 0.0, weight))
    left = jax.tree.map(lambda part: part[:2], weight)
    np.testing.assert_array_equal(apply_normed(x, None, 0.0, left), whole[:, :64])
    upper, lower = (jax.tree.map(lambda part, cut=cut: part[:, cut], weight)
                    for cut in (slice(0, 2), slice(2, 4)))  # fmt: skip
    halves = [apply_normed(x[:, :64], None, 0.0, upper), apply_normed(x[:, 64:], None, 0.0, lower)]
    close(sum(np.asarray(half) for half in halves), whole, 1e-5)


# ---- refusals


def blank(group):
    """A matrix [64, 4] with two scales for each output."""
    return Packed(np.zeros((4, 32), np.uint8), np.zeros((4, 2), np.float16), None, 4, group)


def refusals(noise):
    weight, pair = tile(packed(noise, 64, 40)), tile_pair(*[packed(noise, 64, 40)] * 2)
    x = jnp.zeros((3, 64))
    yield "x is", lambda: normed_matmul(jnp.zeros((3, 32)), None, EPS, weight)
    yield "x is", lambda: normed_matmul(x.astype(jnp.bfloat16), None, EPS, weight)
    yield "norm is", lambda: check(x, jnp.zeros(32), weight, None)
    yield "residual is", lambda: matmul_add(x, weight, jnp.zeros((3, 64)))
    yield "residual is", lambda: check(x, None, weight, jnp.zeros((2, 40)))
    yield "tile_pair", lambda: normed_swiglu(x, None, EPS, weight)
    yield "plain matrix", lambda: take_rows(pair, jnp.zeros(2, jnp.int32))
    yield "whole blocks", lambda: tile(blank(group=16))
    yield "scales have shape", lambda: tile(blank(group=64))
    yield "tile them apart", lambda: tile(packed(noise, 64, 8), packed(noise, 64, 8, bits=8))
    yield "tile them apart", lambda: tile(packed(noise, 64, 8), np.zeros((64, 8), np.float32))
    yield "cannot share", lambda: tile(np.zeros((4, 8), np.float16), np.zeros((4, 8), np.float32))
    yield "int32", lambda: tile(np.zeros((4, 8), np.int32))
    yield "the bias", lambda: tile(packed(noise, 64, 8), biases=[np.zeros(9, np.float32)])
    yield "the order", lambda: tile(packed(noise, 64, 8), order=np.zeros(64, np.int32))
    yield "gate has", lambda: tile_pair(packed(noise, 64, 8), packed(noise, 64, 9))
    yield "threads is", lambda: library.set_threads(0)


@pytest.mark.parametrize("which", range(17))
def test_what_does_not_fit_is_refused_at_trace_time(noise, which):
    words, attempt = list(refusals(noise))[which]
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(attempt)


def call_matmul(weight, x, outward, **changed):
    """The handler itself, some of its arrays and attributes changed."""
    names = ("wanted", "norm", "order", "codes", "scales", "steps", "bias", "residual")
    empty = or_empty(None)
    absent = (or_empty(None, jnp.bool_), empty, or_empty(None, jnp.int32))
    arrays = dict(zip(names, (*absent, *stored(weight), empty, empty), strict=True))
    given = attributes(weight) | {
        "swiglu": np.int64(0),
        "eps": np.float32(0),
        "of_prompt": np.int64(0),
    }
    for name, value in changed.items():
        if name in arrays:
            arrays[name] = value
        else:
            given[name] = np.int64(value)
    shape = jax.ShapeDtypeStruct((len(x), outward), jnp.float32)
    call = jax.ffi.ffi_call("jaxllama_matmul", shape)
    return jax.block_until_ready(call(x, *arrays.values(), **given))


def test_the_handler_checks_every_size_itself(noise):
    weight, x = tile(packed(noise, 64, 40)), jnp.ones((3, 64))
    call_matmul(weight, x, 40)  # as it is, it fits
    codes, scales = jnp.asarray(weight.codes), jnp.asarray(weight.scales)
    wrong = [
        {"kind": 9}, {"kind": -1}, {"kind": 1}, {"kind": 4}, {"group": 0}, {"group": 4},
        {"zero": 33}, {"swiglu": 1}, {"codes": codes[:, :1]}, {"codes": codes[:1]},
        {"codes": codes[..., :100]}, {"codes": codes.astype(jnp.float32)},
        {"scales": scales[:, :1]}, {"scales": scales[..., :16]}, {"scales": scales[0]},
        {"scales": codes}, {"steps": jnp.ones((2, 2, 2, 32), jnp.uint8)},
        {"wanted": jnp.ones(2, jnp.bool_)}, {"wanted": jnp.ones(3)},
        {"norm": jnp.ones(63)}, {"bias": jnp.ones(40)}, {"residual": jnp.ones((3, 39))},
        {"order": jnp.arange(63)}, {"order": jnp.arange(64) + 1}, {"order": jnp.ones(64)},
    ]  # fmt: skip
    for changed in wrong:
        with pytest.raises(jax.errors.JaxRuntimeError, match="matmul: "):
            call_matmul(weight, x, 40, **changed)
    for outward in (32, 65):
        with pytest.raises(jax.errors.JaxRuntimeError, match="width of the weights"):
            call_matmul(weight, x, outward)
    with pytest.raises(jax.errors.JaxRuntimeError, match="width of the weights"):
        call_matmul(weight, jnp.ones((3, 65)), 40)


# ---- under jit


def test_no_rows_are_no_trouble(noise):
    weight = tile(packed(noise, 64, 40))
    assert apply_normed(jnp.zeros((0, 64)), None, 0.0, weight).shape == (0, 40)


def test_a_loop_inside_a_program_gives_the_same(noise):
    weight = tile(packed(noise, 64, 64))
    x = rows_of(noise, 2, 64)

    def body(_, rows):
        return matmul_add(rows, weight, rows) * 0.1

    looped = jax.jit(lambda rows: lax.fori_loop(0, 5, body, rows))(x)
    for _ in range(5):
        x = jax.jit(lambda rows: body(0, rows))(x)
    np.testing.assert_array_equal(looped, x)


def test_tiles_are_a_pytree_of_their_arrays(noise):
    weight = tiling.tile(packed(noise, 64, 40), biases=[np.zeros(40, np.float32)])
    moved = jax.tree.map(jnp.asarray, weight)
    assert isinstance(moved, Tiled)
    assert moved.shape == (64, 40)
    assert moved.nbytes == weight.nbytes


# ---- prompts in matrix tiles


@pytest.fixture(params=("amx", "emulated"))
def tiles(request):
    """AMX where it is, and its emulation everywhere; back to the best afterwards."""
    before = library.isa()
    if not library.force_isa(request.param):
        pytest.skip(f"this processor has no {request.param}")
    yield
    library.force_isa(before)


def for_prompts(weight):
    return dataclasses.replace(weight, of_prompts=True)


def in_bfloat16(x):
    return x.astype(ml_dtypes.bfloat16).astype(np.float64)


@pytest.mark.usefixtures("tiles")
def test_rows_of_prompts_and_packed_weights_are_rounded_to_bfloat16(matrix, noise):
    weight = tile(matrix)
    for count in (1, 16, 17, 33, 64):
        x = rows_of(noise, count, weight.shape[0])
        found = apply_normed(x, None, 0.0, for_prompts(weight))
        if isinstance(matrix, Packed):
            # A last bit of a weight before it is rounded may choose another neighbour.
            close(found, in_bfloat16(x) @ in_bfloat16(values(matrix)), 1e-3)
        else:
            close(found, seen(weight.kind, x) @ values(matrix), 1e-5)


@pytest.mark.usefixtures("tiles")
def test_a_row_of_a_prompt_is_the_same_alone_and_in_company(matrix, noise):
    weight = for_prompts(tile(matrix))
    x, norm = rows_of(noise, 70, weight.shape[0]), noise.random(weight.shape[0], np.float32)
    whole = np.asarray(apply_normed(x, norm, EPS, weight))
    for start, count in ((0, 1), (69, 1), (3, 2), (1, 16), (8, 32), (20, 33)):
        part = np.asarray(apply_normed(x[start : start + count], norm, EPS, weight))
        np.testing.assert_array_equal(part, whole[start : start + count])
    before = library.threads()
    library.set_threads(5)
    np.testing.assert_array_equal(apply_normed(x, norm, EPS, weight), whole)
    library.set_threads(before)


@pytest.mark.usefixtures("tiles")
def test_rows_of_steps_have_the_bits_of_the_body_without_tiles(matrix, noise):
    weight = tile(matrix)
    if weight.kind == "bf16":
        pytest.skip("steps multiply bfloat16 in tiles, too")
    x = rows_of(noise, 20, weight.shape[0])
    found = np.asarray(apply_normed(x, None, 0.0, weight))
    library.force_isa({"amx": "avx512", "emulated": "portable"}[library.isa()])
    np.testing.assert_array_equal(apply_normed(x, None, 0.0, weight), found)
