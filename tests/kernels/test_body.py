"""Every body keeps the contract of `kernels/body.py`, and nothing else asks for its name."""

import ast
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxllama
from jaxllama.config import EngineConfig, Experts
from jaxllama.errors import ConfigError
from jaxllama.kernels import BODIES, body_named, choose_body, fastest_body
from jaxllama.kernels.body import (
    AdapterRows,
    AdapterShape,
    Choosing,
    GroupKind,
    GroupMember,
    MatrixGroup,
    NormWeight,
    Placement,
    PromptSpan,
)
from jaxllama.kernels.packed import Packed, dense_of
from jaxllama.kernels.plain import PLAIN
from jaxllama.kernels.storage import CacheSize
from jaxllama.sharding import make_mesh
from tests.support import MODEL

PACKAGE = Path(jaxllama.__file__).parent
WIDTH, ROWS = 64, 5
INTERPRETED = ("gpu", "tpu")  # their kernels are interpreted where there is no such device
RUNNABLE = [
    pytest.param(
        body,
        id=name,
        marks=pytest.mark.skipif(
            bool(body.missing()) and name not in INTERPRETED, reason="not here"
        ),
    )
    for name, body in BODIES.items()
]
MIXTURE = dataclasses.replace(MODEL, head_dim=64, experts=Experts(3, 2, 32))
WITH_EXPERTS = [each for each in RUNNABLE if not each.values[0].refuses(MIXTURE, 1)]
# Inputs of packed matrices are rounded to 8 bits by the C++ body; float32 weights are exact.
TOLERANCE = {"dense": 1e-5, "packed": 0.03, "float8": 0.01}

rng = np.random.default_rng(0)
x = rng.standard_normal((ROWS, WIDTH), np.float32)
norm = NormWeight(jnp.asarray(rng.random(WIDTH, np.float32)), 1e-5)


def normed(rows):
    scale = np.sqrt(np.mean(rows**2, axis=-1, keepdims=True) + norm.eps)
    return rows / scale * np.asarray(norm.weight)


def matrix(form, outward):
    """A matrix as a reader gives it, and its float32 values [in, out]."""
    if form == "dense":
        dense = rng.standard_normal((WIDTH, outward), np.float32)
        return dense, dense
    if form == "float8":
        codes = rng.standard_normal((outward, WIDTH)).astype(ml_dtypes.float8_e4m3fn)
        packed = Packed(codes, rng.random((outward, 1), np.float32), None, 8, WIDTH)
        return packed, dense_of(packed)
    codes = rng.integers(0, 256, (outward, WIDTH // 2), np.uint8)
    scales = rng.random((outward, WIDTH // 32)).astype(np.float16)
    packed = Packed(codes, scales, None, 4, 32)
    return packed, dense_of(packed)


def laid_out(body, kind, matrices, biases, axes=("width", "heads")):
    engine = EngineConfig(kernels=body.name)
    to = Placement(make_mesh(engine, MODEL), "float32", packed=True)
    return body.lay_out(MatrixGroup(kind, matrices, biases, axes), to)


def close(found, expected, form):
    assert np.abs(np.asarray(found) - expected).max() <= TOLERANCE[form] * np.abs(expected).max()


@pytest.mark.parametrize("body", RUNNABLE)
@pytest.mark.parametrize("form", TOLERANCE)
def test_matmul_norms_multiplies_and_adds(body, form):
    given, dense = matrix(form, 96)
    bias, add = rng.random(96, np.float32), rng.random((ROWS, 96), np.float32)
    (placed,) = laid_out(body, GroupKind.SINGLE, [given], [bias])
    found = placed.weight.matmul(jnp.asarray(x), bias=placed.bias, norm=norm)
    close(found, normed(x) @ dense + bias, form)
    found = placed.weight.matmul(jnp.asarray(x), bias=placed.bias, add=jnp.asarray(add))
    close(found, x @ dense + bias + add, form)


@pytest.mark.parametrize("body", RUNNABLE)
@pytest.mark.parametrize("form", TOLERANCE)
def test_a_group_reads_the_same_rows(body, form):
    widths = (64, 32, 32)
    matrices = [matrix(form, width) for width in widths]
    biases = [rng.random(width, np.float32) for width in widths]
    given = [each for each, _ in matrices]
    if body.joins:
        placed = laid_out(body, GroupKind.QKV, given, biases)
    else:
        pairs = zip(given, biases, strict=True)
        placed = [laid_out(body, GroupKind.SINGLE, [m], [b])[0] for m, b in pairs]
    group = [GroupMember(*each, width) for each, width in zip(placed, widths, strict=True)]
    found = group[0].weight.project(jnp.asarray(x), group, norm=norm, active=None)
    for each, (_, dense), bias in zip(found, matrices, biases, strict=True):
        close(each, normed(x) @ dense + bias, form)


@pytest.mark.parametrize("body", RUNNABLE)
@pytest.mark.parametrize("form", TOLERANCE)
def test_gate_and_up_are_gated(body, form):
    (gate, dense_gate), (up, dense_up) = matrix(form, 96), matrix(form, 96)
    axes = ("width", "ffn")
    if body.joins:
        placed = laid_out(body, GroupKind.GATE_UP, [gate, up], [None, None], axes)
    else:
        placed = [laid_out(body, GroupKind.SINGLE, [m], [None], axes)[0] for m in (gate, up)]
    group = [GroupMember(*each, 96) for each in placed]
    found = group[0].weight.gated(jnp.asarray(x), group, norm=norm, active=None)
    left, right = np.maximum(normed(x) @ dense_gate, -80), normed(x) @ dense_up  # there silu is 0
    close(found, left / (1 + np.exp(-left)) * right, form)


@pytest.mark.parametrize("body", RUNNABLE)
@pytest.mark.parametrize("form", TOLERANCE)
def test_an_embedding_looks_up_and_scores(body, form):
    given, dense = matrix(form, 96)  # [width, vocab]
    given = given.T if form == "dense" else given
    axes = ("vocab", "width")
    (placed,) = laid_out(body, GroupKind.EMBEDDING, [given], [None], axes)
    tokens = np.array([0, 95, 7], np.int32)
    found = placed.weight.take(jnp.asarray(tokens), 96)
    np.testing.assert_allclose(np.asarray(found), dense.T[tokens], rtol=1e-5, atol=1e-6)
    close(placed.weight.matmul(jnp.asarray(x), norm=norm), normed(x) @ dense, form)


@pytest.mark.parametrize("body", RUNNABLE)
@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_attention_agrees_with_the_plain_one(body, head_dim):
    if body.refuses(dataclasses.replace(MODEL, head_dim=head_dim), 1):
        pytest.skip("the body refuses this head size")
    heads, kv_heads, columns, slots = 4, 2, 256, 3
    size = CacheSize(slots, kv_heads, columns, head_dim)

    def given(rows):
        sizes = (heads, kv_heads, kv_heads)
        angles = rng.random((rows, head_dim // 2)).astype(np.float32)
        projections = tuple(
            jnp.asarray(rng.standard_normal((rows, count, head_dim), np.float32)) for count in sizes
        )
        return projections, (jnp.asarray(np.cos(angles)), jnp.asarray(np.sin(angles)))

    pair = (body, PLAIN)
    prompts = [jax.jit(each.attention.prompt, static_argnums=4) for each in pair]
    steps = [jax.jit(each.attention.step, static_argnums=5) for each in pair]
    layers = [
        tuple(jnp.zeros(part.shape, part.dtype) for part in each.cache_arrays(size, "float32"))
        for each in pair
    ]
    for slot, start, rows in ((0, 0, 150), (1, 0, 150), (2, 0, 150), (1, 150, 6)):
        span, one = PromptSpan(*map(jnp.int32, (slot, start, rows))), given(max(rows, 8))
        found = [
            prompt(*one, layer, span, None) for prompt, layer in zip(prompts, layers, strict=True)
        ]
        layers = [layer for _, layer in found]
        close(found[0][0][:rows], np.asarray(found[1][0][:rows]), "dense")
    position, active = jnp.array([3, 140, 9]), jnp.array([True, True, False])
    one = given(slots)
    for window in (None, 16):
        found = [
            step(*one, layer, position, active, window)
            for step, layer in zip(steps, layers, strict=True)
        ]
        close(found[0][0][:2], np.asarray(found[1][0][:2]), "dense")


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_body_has_all_operations(body):
    assert isinstance(body.choosing, Choosing)
    assert body_named(body.name) is body and body.prompt_tile(16) >= 1


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_prompt_chunks_are_whole_tiles(body):
    for slots in (1, 12, 16):
        tile = body.prompt_tile(slots)
        assert [body.whole_tiles(count, slots) for count in (1, tile, tile + 1)] == [
            tile, tile, 2 * tile,
        ]  # fmt: skip


def test_an_unknown_body_is_refused():
    with pytest.raises(ConfigError, match="kernels is 'abacus'; expected one of cpu, "):
        body_named("abacus")


def test_auto_takes_the_fastest_that_runs():
    body, passed_over = choose_body("auto", MODEL, 1)
    assert body is fastest_body()
    assert (not passed_over) == (body is next(iter(BODIES.values())))


# Nothing outside kernels/ compares the name of a body.


def comparisons(source):
    """Lines that compare something with the name of a body."""
    names = set(BODIES)
    found = []
    for node in ast.walk(ast.parse(source)):
        values = []
        if isinstance(node, ast.Compare):
            values = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            values = [node.value]
        constants = {each.value for each in values if isinstance(each, ast.Constant)}
        asks_kernels = any("kernels" in ast.unparse(each) for each in values)
        asks_body = any("body" in ast.unparse(each).lower() for each in values)
        if constants & names and (asks_kernels or asks_body):
            found.append(node.lineno)
    return found


def test_no_module_outside_the_kernels_compares_the_name_of_a_body():
    found = {
        str(path.relative_to(PACKAGE)): lines
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] != "kernels"
        and (lines := comparisons(path.read_text()))
    }
    assert found == {}


@pytest.mark.parametrize(
    "source", ['if engine.kernels == "cpu": pass', 'x = 1 if body != "xla" else 2']
)
def test_a_comparison_would_be_found(source):
    assert comparisons(source) == [1]


@pytest.mark.parametrize("form", ["dense", "packed"])
@pytest.mark.parametrize("body", WITH_EXPERTS)
def test_one_expert_of_several_is_computed_for_the_rows_that_use_it(body, form):
    count, inner = 3, 32
    names = ("gate", "up", "down")
    parts = {name: [matrix_of(form, name, inner) for _ in range(count)] for name in names}
    stacks = {name: stacked([given for given, _ in pairs]) for name, pairs in parts.items()}
    both = [stacks["gate"], stacks["up"]]
    gate, up = (each.weight for each in laid_out(body, GroupKind.EXPERT_GATE_UP, both, [None] * 2))
    (last,) = laid_out(body, GroupKind.EXPERT, [stacks["down"]], [None], ("ffn", "width"))
    used = jnp.array([True, False, True, True, False])
    rows = x / 200  # packed weights are large, and silu shall not be a straight line
    for expert in range(count):
        number = jnp.int32(expert)
        inside = gate.gated(number, jnp.asarray(rows), up, "silu", used)
        found = np.asarray(last.weight.matmul(number, inside, used))
        ours = {name: parts[name][expert][1] for name in names}
        gated = rows @ ours["gate"]
        expected = (gated / (1 + np.exp(-gated)) * (rows @ ours["up"])) @ ours["down"]
        error = np.abs(found - expected)[np.asarray(used)].max() / np.abs(expected).max()
        assert error < 2 * TOLERANCE[form]  # inputs are rounded twice
        if body == "cpu":  # the others are left out, and are summed with other experts' results
            assert not found[~np.asarray(used)].any()


def matrix_of(form, name, inner):
    """A matrix of an expert: WIDTH inputs, or for the last one WIDTH outputs."""
    given, dense = matrix(form, inner if name != "down" else WIDTH)
    if name != "down":
        return given, dense
    if form == "dense":
        return given[:inner], dense[:inner]
    half = dataclasses.replace(
        given, codes=given.codes[:, : inner // 2], scales=given.scales[:, : inner // 32]
    )
    return half, dense_of(half)


def stacked(matrices):
    if not isinstance(matrices[0], Packed):
        return np.stack(matrices)
    codes, scales = (np.stack([getattr(m, name) for m in matrices]) for name in ("codes", "scales"))
    return Packed(codes, scales, None, 4, 32)


@pytest.mark.parametrize("body", RUNNABLE)
def test_each_row_gets_the_delta_of_its_own_adapter(body):
    to = Placement(make_mesh(EngineConfig(kernels=body.name), MODEL), "float32", packed=False)
    outward = (96, 40, 33)  # the last is no multiple of a vector
    group = body.adapter_group(AdapterShape(WIDTH, outward, ("width", "heads"), 3, 16), to)
    half = rng.standard_normal
    a = [half((WIDTH, 48), np.float32).astype(np.float16) for _ in range(3)]
    b = [[half((16, each), np.float32).astype(np.float16) for each in outward] for _ in range(3)]
    for number in (0, 2):
        group = group.written(
            jnp.int32(number), jnp.asarray(a[number]), [*map(jnp.asarray, b[number])]
        )
    rows = AdapterRows(jnp.array([2, -1, 0, 1, 2]), jnp.array([1, 5, -0.5, 1, 0], jnp.float32))
    for by, given in ((None, x), (norm, normed(x))):
        found = np.asarray(group.delta(jnp.asarray(x), norm=by, rows=rows))
        assert found.shape == (ROWS, sum(outward))
        for row, (number, scale) in enumerate(zip(*map(np.asarray, rows), strict=True)):
            expected = np.zeros(sum(outward))
            if number in (0, 2):
                ranks = scale * (given[row] @ a[number].astype(np.float64))
                parts = (ranks[i * 16 : i * 16 + 16] @ b[number][i] for i in range(3))
                expected = np.concatenate(list(parts))
            np.testing.assert_allclose(found[row], expected, rtol=0, atol=2e-4)
            alone = AdapterRows(*(each[row : row + 1] for each in rows))
            same = group.delta(jnp.asarray(x[row : row + 1]), norm=by, rows=alone)
            if body.name == "cpu":  # bit for bit in any company
                np.testing.assert_array_equal(np.asarray(same)[0], found[row])


@pytest.mark.parametrize("body", RUNNABLE)
@pytest.mark.parametrize("form", TOLERANCE)
def test_a_delta_is_added_before_the_activation(body, form):
    (gate, one), (up, two) = matrix(form, 64), matrix(form, 64)
    placed = laid_out(body, GroupKind.GATE_UP, [gate, up], [None, None], ("width", "ffn"))
    members = [GroupMember(each.weight, each.bias, 64) for each in placed]
    add = 0.1 * rng.standard_normal((ROWS, 128), np.float32)
    active = jnp.array([True, False, True, True, False])
    found = placed[0].weight.gated(
        jnp.asarray(x), members, norm=norm, add=jnp.asarray(add), active=active
    )
    inner = np.maximum(normed(x) @ one + add[:, :64], -80)  # there silu is zero
    expected = inner / (1 + np.exp(-inner)) * (normed(x) @ two + add[:, 64:])
    close(np.asarray(found)[np.asarray(active)], expected[np.asarray(active)], form)
