"""Float8 weights in programs: they give what the expanded ones give, on one device and on several.

`tests/kernels/test_body.py` and its neighbours hold the kernels of the bodies to the same.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hf_writer import write_float8
from jax.sharding import PartitionSpec
from trees import random_weights

from jaxllama.chips import chip_named
from jaxllama.cli.memory import weight_bytes
from jaxllama.config import EngineConfig
from jaxllama.engine.adapters import LoadedAdapters
from jaxllama.engine.choosing.bank import SamplerBank
from jaxllama.engine.engine import Engine
from jaxllama.kernels import BODIES
from jaxllama.kernels.body import GroupKind, MatrixGroup, Placement
from jaxllama.kernels.packed import Packed, dense_of
from jaxllama.loading import read_weights
from jaxllama.model.adapters import empty_adapters
from jaxllama.sharding import make_mesh
from jaxllama.testing import tiny
from jaxllama.weights import open_checkpoint
from jaxllama.weights.lora import read_adapter
from tests.adapter_writer import random_adapter, write_adapter
from tests.support import QuickPrograms, Told, request, run

MODEL = tiny(name="m", vocab_size=256, width=64, heads=4, kv_heads=2, ffn_width=128, layers=2)
DENSE = EngineConfig(slots=4, context=128, candidates=32, cache_dtype="float32", adapter_slots=1)
FLOAT8 = dataclasses.replace(DENSE, packed=True)


def answers(folder: Path, adapter: Path, engine: EngineConfig) -> tuple[list[Told], int]:
    """Some answers, of which one uses an adapter, and the bytes of the weights."""
    mesh = make_mesh(engine, MODEL)
    with open_checkpoint(folder) as checkpoint:
        params = read_weights(checkpoint, engine, mesh, None)
    bank = SamplerBank({}, vocab=MODEL.vocab_size, candidates=32, top_logprobs=20)
    blocks = empty_adapters(MODEL, engine, mesh)
    programs = QuickPrograms(MODEL, engine, bank, params, mesh, adapters=blocks)
    adapters = LoadedAdapters(programs, blocks)
    adapters.load("one", read_adapter(adapter, MODEL, engine))
    asked = [
        request(range(1, 60), 6),
        request([5, 6], 6),
        request([5, 6], 6, adapter=adapters.use("one", 1.0)),
    ]
    return run(Engine(programs, adapters=adapters), asked), programs.weight_bytes


def test_float8_and_expanded_weights_give_the_same_tokens(tmp_path: Path):
    folder, _ = write_float8(tmp_path / "m", MODEL, random_weights(MODEL), block=(32, 32))
    adapter = write_adapter(tmp_path / "a", random_adapter(MODEL))
    expected, dense_bytes = answers(folder, adapter, DENSE)
    assert expected[1].tokens != expected[2].tokens  # the adapter acts
    for engine in (FLOAT8, dataclasses.replace(FLOAT8, model_parallel=2)):
        found, held = answers(folder, adapter, engine)
        assert held < dense_bytes * 0.6  # embedding and head are float32
        assert [one.tokens for one in found] == [one.tokens for one in expected]
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)


@pytest.mark.parametrize("body", ["gpu", "tpu"])
@pytest.mark.parametrize("split", ["inputs", "outputs"])
def test_each_device_multiplies_its_part_of_a_float8_matrix(body: str, split: str):
    random, sizes = np.random.default_rng(0), (256, 256)
    codes = random.standard_normal(sizes[::-1]).astype(jnp.float8_e4m3fn)
    matrix = Packed(codes, random.random((256, 2), np.float32), None, 8, 128)
    axes = ("ffn", "width") if split == "inputs" else ("width", "ffn")
    engine = EngineConfig(kernels=body, model_parallel=2)
    mesh = make_mesh(engine, MODEL)
    (placed,) = BODIES[body].lay_out(
        MatrixGroup(GroupKind.SINGLE, [matrix], [None], axes), Placement(mesh, "float32", True)
    )
    kept = [leaf for leaf in jax.tree.leaves(placed.weight) if leaf.dtype == jnp.float8_e4m3fn]
    assert [leaf.addressable_shards[0].data.size for leaf in kept] == [codes.size // 2]
    x = random.standard_normal((5, 256)).astype(jnp.bfloat16).astype(np.float32)
    of_x, of_y = (
        PartitionSpec(None, "model" if split == each else None) for each in ("inputs", "outputs")
    )
    multiply = jax.shard_map(
        lambda weight, rows: weight.matmul(rows),
        mesh=mesh,
        in_specs=(jax.tree.map(lambda leaf: leaf.sharding.spec, placed.weight), of_x),
        out_specs=of_y,
        check_vma=False,
    )
    found, expected = jax.jit(multiply)(placed.weight, x), x @ dense_of(matrix)
    assert np.abs(found - expected).max() <= 0.01 * np.abs(expected).max()  # the TPU's is rounded


def test_float8_inputs_that_gpus_cannot_share_are_expanded():
    """Three groups of 64 inputs for two devices."""
    codes = np.ones((32, 192), jnp.float8_e4m3fn)
    matrix = Packed(codes, np.ones((32, 3), np.float32), None, 8, 64)
    mesh = make_mesh(EngineConfig(kernels="gpu", model_parallel=2), MODEL)
    for axes, dtype in ((("ffn", "width"), "float32"), (("width", "ffn"), "float8_e4m3fn")):
        group = MatrixGroup(GroupKind.SINGLE, [matrix], [None], axes)
        (placed,) = BODIES["gpu"].lay_out(group, Placement(mesh, "float32", True))
        assert jax.tree.leaves(placed.weight)[0].dtype.name == dtype


def test_inspect_states_expanded_float8_weights_for_chips_without_float8(tmp_path: Path):
    folder, _ = write_float8(tmp_path, MODEL, random_weights(MODEL), block=(32, 32))
    engine = dataclasses.replace(DENSE, kernels="gpu", dtype="bfloat16")
    with open_checkpoint(folder) as checkpoint:
        stated = weight_bytes(checkpoint, engine, keeps_float8=chip_named("gpu:a100").keeps_float8)
        kept = weight_bytes(checkpoint, engine, keeps_float8=chip_named("gpu:h100").keeps_float8)
    leaves = jax.tree.leaves(random_weights(MODEL))
    assert stated == sum(leaf.nbytes // min(leaf.ndim, 2) for leaf in leaves)  # vectors: float32
    assert kept < 0.8 * stated


@pytest.mark.parametrize("body", ["gpu", "tpu"])
def test_inspect_states_the_bytes_of_float8_weights(tmp_path: Path, body: str):
    model = tiny(name="wide", width=256, heads=4, kv_heads=2, head_dim=64, ffn_width=512, layers=2)
    folder, _ = write_float8(tmp_path, model, random_weights(model), block=(128, 128))
    engine = dataclasses.replace(DENSE, kernels=body, dtype="bfloat16")
    with open_checkpoint(folder) as checkpoint:
        stated = weight_bytes(checkpoint, engine)
        params = read_weights(checkpoint, engine, make_mesh(engine, model), None)
    leaves = jax.tree.leaves(params)
    assert stated == sum(leaf.nbytes for leaf in leaves)
    codes = [leaf for leaf in leaves if leaf.dtype == jnp.float8_e4m3fn]
    assert len(codes) == 4 * model.layers  # queries, keys and values are one, gate and up are one
