"""From canonical weights to what the kernels read."""

import dataclasses

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllama.errors import ConfigError
from jaxllama.kernels.body import InGroup, UnreadMatrix
from jaxllama.kernels.cpu import library
from jaxllama.kernels.cpu.tiled import untile
from jaxllama.kernels.cpu.tiling import tile
from jaxllama.kernels.cpu.weights import TiledWeight
from jaxllama.kernels.packed import Packed, dense_of
from jaxllama.model.linear import Linear
from jaxllama.model.params import abstract_params
from jaxllama.model.prepare import Preparation
from jaxllama.sharding import make_mesh
from jaxllama.testing import random_params, tiny
from jaxllama.weights import open_checkpoint
from jaxllama.weights.base import fill
from jaxllama.weights.stored import part_of
from tests.support import BODIES, ENGINE, KERNELS, MODEL
from tests.weights.writers import flatten, write_gguf

SPLIT = dataclasses.replace(KERNELS, model_parallel=2)
WIDE = dataclasses.replace(MODEL, width=64)
MESH = {"model_parallel": 2, "data_parallel": 2}
PARTED = [
    dataclasses.replace(ENGINE, **MESH),
    dataclasses.replace(ENGINE, packed=True, **MESH),
    pytest.param(
        dataclasses.replace(KERNELS, **MESH),
        marks=pytest.mark.skipif(not library.available(), reason=library.why_not()),
    ),
]


def some_packed(bits: int, inward: int, outward: int) -> Packed:
    rng = np.random.default_rng(bits)
    shape = (outward, inward // 2 if bits == 4 else inward)
    low, high, kind = (0, 256, np.uint8) if bits == 4 else (-128, 128, np.int8)
    scales = rng.random((outward, inward // 32)).astype(np.float16)
    return Packed(rng.integers(low, high, shape, kind), scales, None, bits, 32)


@pytest.mark.skipif(not library.available(), reason=library.why_not())
@pytest.mark.parametrize("mixed", ["dense", "eight bits", "nothing"])
def test_parts_of_different_kinds_stay_exactly_what_they_are(mixed):
    """Files often keep v in more bits than q and k."""
    leaves = abstract_params(WIDE)
    preparation = Preparation(WIDE, KERNELS, make_mesh(KERNELS, WIDE))
    parts = {}
    for name in "qkv":
        path = f"blocks.0.attention.{name}.weight"
        inward, outward = leaves[path].shape
        value = some_packed(4, inward, outward)
        if name == "v" and mixed == "dense":
            value = np.random.default_rng(0).random((inward, outward), np.float32)
        elif name == "v" and mixed == "eight bits":
            value = some_packed(8, inward, outward)
        parts[name] = value
        preparation.add(path, leaves[path], value)
    attention = preparation.tree()["blocks"][0]["attention"]
    tiles = attention["q"]["weight"].parts
    assert attention["k"]["weight"] == attention["v"]["weight"] == InGroup()
    expected = [dense_of(part) if isinstance(part, Packed) else part for part in parts.values()]
    found = np.concatenate([untile(each) for each in tiles], axis=1)
    assert np.array_equal(found, np.concatenate(expected, axis=1))
    kept = {"nothing": ["q4"], "dense": ["q4", "f32"], "eight bits": ["q4", "q8"]}
    assert [each.kind for each in tiles] == kept[mixed]


@pytest.mark.skipif(not library.available(), reason=library.why_not())
@pytest.mark.parametrize("most", ["Q4_K", "Q5_K"])
def test_a_mix_of_k_quants_stays_as_small_as_its_file_and_as_exact(tmp_path, most):
    """As files called Q4_K_M and Q5_K_M are: v, down and the embedding in six bits."""
    config = tiny(name="wide", width=256, heads=4, kv_heads=2, head_dim=64, ffn_width=512, layers=1)
    params = flatten(random_params(config))
    kinds = {"": most, "v": "Q6_K", "down": "Q6_K", "embed": "Q6_K"}
    expected = write_gguf(tmp_path / "m.gguf", config, params, kind=kinds)
    leaves = abstract_params(config)
    preparation = Preparation(config, KERNELS, make_mesh(KERNELS, config))
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        fill(leaves, checkpoint, preparation.add)
    tree = preparation.tree()
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    assert held <= 1.03 * sum(size_in_file(path, expected[path], kinds) for path in expected)
    block = tree["blocks"][0]
    np.testing.assert_array_equal(
        untile(block["ffn"]["down"]["weight"].parts[0]), expected["blocks.0.ffn.down.weight"]
    )
    for each, name in zip(block["attention"]["q"]["weight"].parts, ("qk", "v"), strict=True):
        whole = [expected[f"blocks.0.attention.{letter}.weight"] for letter in name]
        np.testing.assert_array_equal(untile(each), np.concatenate(whole, axis=1))
    np.testing.assert_array_equal(
        untile(tree["embed"]["weight"].parts[0]), expected["embed.weight"].T
    )


def size_in_file(path, value, kinds):
    """Bytes of one tensor."""
    if value.ndim == 1:
        return value.size * 4
    kind = gguf.GGMLQuantizationType[kinds.get(path.split(".")[-2], kinds[""])]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return value.size // block * size


@pytest.mark.skipif(not library.available(), reason=library.why_not())
def test_six_bits_with_damaged_scales_are_still_told():
    """No unit is found for what is not a number, so it is kept as it is."""
    packed = Packed(np.zeros((64, 256), np.int8), np.ones((64, 16), np.float32), None, 6, 16)
    packed.scales[3, 0] = np.nan
    config = dataclasses.replace(MODEL, width=256, vocab_size=64)
    leaves = abstract_params(config)
    preparation = Preparation(config, KERNELS, make_mesh(KERNELS, config))
    preparation.add("embed.weight", leaves["embed.weight"], packed)
    held = preparation.tree()["embed"]["weight"].parts[0]
    assert held.kind == "f32" and held.shape == (256, 64)
    assert np.isnan(untile(held)[:, 3]).any() and np.isfinite(untile(held)[:, 4]).all()


def split_model(**changes):
    return dataclasses.replace(WIDE, **{"heads": 4, "kv_heads": 2, "ffn_width": 512, **changes})


def prepared(config, **values):
    """The tree of some weights of the first block, on two devices."""
    leaves = abstract_params(config)
    preparation = Preparation(config, SPLIT, make_mesh(SPLIT, config))
    for name, value in values.items():
        path = "blocks.0." + name.replace("_weight", ".weight").replace("__", ".")
        preparation.add(path, leaves[path], value)
    return preparation.tree()["blocks"][0]


def part(tiled, index):
    """What one device holds."""
    return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_shards[index].data), tiled)


@pytest.mark.skipif(not library.available(), reason=library.why_not())
@pytest.mark.parametrize("bits", [0, 4, 8])
def test_each_device_has_its_own_queries_keys_and_values(bits):
    config, rng = split_model(), np.random.default_rng(1)
    sizes = {"q": 4, "k": 2, "v": 2}
    shapes = {name: (config.width, heads * config.head_dim) for name, heads in sizes.items()}
    values = {
        name: some_packed(bits, *shape) if bits else rng.random(shape, np.float32)
        for name, shape in shapes.items()
    }
    fused = prepared(config, **{f"attention__{n}_weight": v for n, v in values.items()})
    plain = {name: dense_of(each) if bits else each for name, each in values.items()}
    for index in range(2):
        own = [np.split(each, 2, axis=1)[index] for each in plain.values()]
        found = untile(part(fused["attention"]["q"]["weight"].parts[0], index))
        assert np.array_equal(found, np.concatenate(own, axis=1))


@pytest.mark.skipif(not library.available(), reason=library.why_not())
def test_each_device_has_its_own_columns_of_the_feed_forward():
    config = split_model()
    gate, up = (some_packed(4, config.width, config.ffn_width) for _ in range(2))
    down = some_packed(8, config.ffn_width, config.width)
    made = prepared(config, ffn__gate_weight=gate, ffn__up_weight=up, ffn__down_weight=down)["ffn"]
    for index in range(2):
        own = [np.split(dense_of(each), 2, axis=1)[index] for each in (gate, up)]
        found = untile(part(made["gate"]["weight"].parts[0], index))
        assert np.array_equal(found, np.concatenate(own, axis=1))
        assert np.array_equal(
            untile(part(made["down"]["weight"].parts[0], index)),
            np.split(dense_of(down), 2, axis=0)[index],
        )


@pytest.mark.skipif(not library.available(), reason=library.why_not())
def test_scales_that_two_devices_would_share_are_refused():
    config = split_model(ffn_width=192)
    shape = (config.width, config.ffn_width)
    scales = np.ones((shape[0], 2), np.float16)  # groups of 128: one and a half for each device
    rows = Packed(np.zeros((shape[0], 96), np.uint8), scales, None, 4, 128)
    with pytest.raises(ConfigError, match=r"128 share scales, does not divide over model=2"):
        prepared(config, ffn__down_weight=rows)


def sorted_by_activity(inward, outward, group):
    """A matrix as act-order GPTQ leaves it: its inputs sorted, groups of the sorted ones."""
    packed = some_packed(4, inward, outward)
    scales = np.random.default_rng(2).random((outward, inward // group)).astype(np.float16)
    order = np.random.default_rng(3).permutation(inward).astype(np.int32)
    return dataclasses.replace(packed, scales=scales, group=group, order=order)


def asymmetric(bits, inward, outward, group, *, is_sorted):
    """A matrix as GPTQ and AWQ store it: a scale and a zero for each group of inputs."""
    codes = some_packed(bits, inward, outward).codes
    rng = np.random.default_rng(bits)
    scales = rng.random((outward, inward // group)).astype(np.float32)
    zeros = rng.integers(0, 16, scales.shape)
    order = rng.permutation(inward).astype(np.int32) if is_sorted else None
    return Packed(codes, scales, (scales * -zeros).astype(np.float32), bits, group, order)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize(
    ("bits", "group", "is_sorted"),
    [(4, 32, True), (4, 64, False), (4, 128, True), (4, 256, True), (8, 128, False), (8, 64, True)],
)
def test_groups_of_any_size_and_sorted_inputs_meet_their_weights(body, bits, group, is_sorted):
    """q, k and v of one kind are one matrix of kernels; the plain path sorts the inputs."""
    config = split_model(width=256)
    engine = dataclasses.replace(body, packed=body.kernels == "xla")
    leaves, given = abstract_params(config), {}
    preparation = Preparation(config, engine, make_mesh(engine, config))
    for name in "qkv":
        path = f"blocks.0.attention.{name}.weight"
        given[name] = asymmetric(bits, *leaves[path].shape, group, is_sorted=is_sorted)
        if is_sorted:
            order = given["q"].order
            given[name] = dataclasses.replace(given[name], order=order)
        preparation.add(path, leaves[path], given[name])
    made = preparation.tree()["blocks"][0]["attention"]
    x = np.random.default_rng(5).standard_normal((3, config.width), dtype=np.float32)
    expected = np.concatenate([x @ dense_of(each) for each in given.values()], axis=1)
    if body.kernels == "xla":
        assert all(made[name]["weight"].packed.codes.dtype.itemsize == 1 for name in "qkv")
        found = np.concatenate([times(made[name]["weight"], x) for name in "qkv"], axis=1)
    else:
        (tiled,) = made["q"]["weight"].parts
        assert tiled.kind == f"q{bits}"
        sorted_rows = slice(None) if given["q"].order is None else given["q"].order
        exact = np.concatenate([dense_of(each)[sorted_rows] for each in given.values()], axis=1)
        np.testing.assert_array_equal(untile(tiled), exact)
        found = times(made["q"]["weight"], x)
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


def times(weight, x):
    """What a module with this weight makes of rows."""
    module = Linear(x.shape[1], 1, ("width", "heads"), bias=False)
    module.weight.value = weight
    return np.asarray(module(jnp.asarray(x)))


@pytest.mark.skipif(not library.available(), reason=library.why_not())
def test_several_matrices_multiply_as_one():
    parts = [put(tile(some_packed(bits, 64, outward))) for bits, outward in ((4, 40), (8, 24))]
    x = np.random.default_rng(0).random((3, 64), np.float32)
    expected = np.concatenate([times(TiledWeight((part,)), x) for part in parts], axis=1)
    np.testing.assert_array_equal(times(TiledWeight(tuple(parts)), x), expected)


def put(weight):
    """On the device."""
    return jax.tree.map(jnp.asarray, weight)


def test_the_order_of_inputs_matters_to_the_test_above():
    packed = sorted_by_activity(64, 8, 32)
    assert not np.allclose(dense_of(packed), dense_of(dataclasses.replace(packed, order=None)))


@pytest.mark.skipif(not library.available(), reason=library.why_not())
def test_sorted_inputs_are_not_split_over_devices():
    config = split_model()
    with pytest.raises(ConfigError, match="inputs are sorted"):
        prepared(config, ffn__down_weight=sorted_by_activity(config.ffn_width, config.width, 32))


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_1"])
@pytest.mark.parametrize("engine", PARTED, ids=["xla", "xla packed", "cpu"])
@pytest.mark.parametrize("kv_heads", [2, 1])
def test_weights_read_in_parts_are_those_read_whole(tmp_path, kind, engine, kv_heads):
    """Every array, its placement included; and no part that is read is more than a device's."""
    config = tiny(name="parted", width=64, kv_heads=kv_heads, ffn_width=128)
    params = flatten(random_params(config))
    write_gguf(tmp_path / "m.gguf", config, params, kind=kind)
    leaves, mesh, trees, read = abstract_params(config), make_mesh(engine, config), [], []
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        for in_parts in (False, True):
            preparation = Preparation(config, engine, mesh)

            def add(path, leaf, value, add=preparation.add):
                if isinstance(value, UnreadMatrix):
                    value = value._replace(read=recorded(read, value.read))
                add(path, leaf, value)

            fill(leaves, checkpoint, add, in_parts=in_parts)
            trees.append(preparation.tree())
    assert jax.tree.structure(trees[0]) == jax.tree.structure(trees[1])
    for one, other in zip(*map(jax.tree.leaves, trees), strict=True):
        assert one.sharding == other.sharding and one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    if engine.kernels == "xla" and kv_heads == 2:
        split = [leaf for leaf in leaves.values() if leaf.is_matrix]
        assert sum(read) == sum(np.prod(leaf.shape) for leaf in split)  # each part once
        assert max(read) == max(np.prod(leaf.shape) for leaf in split) // 2


def recorded(sizes, read):
    """A reader that notes the size of every part, samples of one output aside."""

    def note(index):
        value = read(index)
        if index is None or all(each != slice(0, 1) for each in index):
            sizes.append(np.prod(value.shape))
        return value

    return note


@pytest.mark.parametrize("width", [64, 192])
def test_packed_inputs_that_devices_cannot_share_are_read_whole(width):
    """Sorted inputs, and groups of 64 of which one and a half would be each device's."""
    config = split_model(ffn_width=width)
    matrix = some_packed(4, width, config.width)
    if width == 64:
        matrix = sorted_by_activity(width, config.width, 32)
    else:
        matrix = dataclasses.replace(matrix, scales=matrix.scales[:, ::2].copy(), group=64)
    engine = dataclasses.replace(SPLIT, kernels="xla", dtype="float32", packed=True)
    leaves = abstract_params(config)
    preparation = Preparation(config, engine, make_mesh(engine, config))
    asked = []

    def read(index):
        asked.append(index)
        sample = part_of(matrix, (slice(0, 1), slice(0, width)))
        return matrix if index is None else sample

    path = "blocks.0.ffn.down.weight"
    preparation.add(path, leaves[path], UnreadMatrix(leaves[path].shape, read))
    held = preparation.tree()["blocks"][0]["ffn"]["down"]["weight"].packed
    assert asked[-1] is None
    np.testing.assert_array_equal(dense_of(jax.tree.map(np.asarray, held)), dense_of(matrix))
