"""Packed weights on the plain path: unpacked one matrix at a time, and only while it is used."""

import numpy as np
import pytest

from jaxllama.config import EngineConfig, ModelConfig
from jaxllama.engine.blueprints import NAMES
from jaxllama.engine.choosing.bank import SamplerBank
from jaxllama.engine.engine import Engine
from jaxllama.engine.programs import Programs
from jaxllama.kernels.packed import Packed
from jaxllama.model.params import abstract_params
from jaxllama.model.prepare import Preparation
from jaxllama.sharding import make_mesh
from jaxllama.testing import tiny
from tests.support import request, run

CONFIG = tiny(
    name="packed",
    vocab_size=512,
    width=128,
    layers=4,
    heads=2,
    kv_heads=1,
    head_dim=64,
    ffn_width=512,
    tied=True,
)
LARGEST = 512 * 128 * 4  # bytes of one matrix in float32: gate, up, down and the embedding
READ_WEIGHTS = ("prefill", "decode", "peek", "score", "embed")


def packed_weights(config: ModelConfig) -> dict[str, Packed | np.ndarray]:
    """Random weights in four bits; norms are ones."""
    rng = np.random.default_rng(0)
    weights: dict[str, Packed | np.ndarray] = {}
    for path, leaf in abstract_params(config).items():
        if not leaf.is_matrix:
            weights[path] = np.ones(leaf.shape, np.float32)
            continue
        out, inward = leaf.shape if leaf.axes[0] == "vocab" else leaf.shape[::-1]
        codes = rng.integers(0, 256, (out, inward // 2), np.uint8)
        scales = (rng.random((out, inward // 32)) / 100).astype(np.float16)
        weights[path] = Packed(codes, scales, (scales * -7.5).astype(np.float16), 4, 32)
    return weights


def programs_of(*, packed: bool) -> Programs:
    engine = EngineConfig(slots=4, context=128, candidates=32, packed=packed)
    mesh = make_mesh(engine, CONFIG)
    leaves = abstract_params(CONFIG)
    preparation = Preparation(CONFIG, engine, mesh)
    for path, value in packed_weights(CONFIG).items():
        preparation.add(path, leaves[path], value)
    bank = SamplerBank({}, vocab=CONFIG.vocab_size, candidates=32, top_logprobs=20)
    return Programs(CONFIG, engine, bank, preparation.tree(), mesh)


@pytest.fixture(scope="module")
def packed() -> Programs:
    return programs_of(packed=True)


def test_list_of_programs_that_read_weights_is_complete():
    without = {"empty", "admit", "release", "scrub", "copy", "save", "restore"}
    without.add("decode_lean")  # decode with fewer samplers, and here there are none
    assert set(READ_WEIGHTS) == set(NAMES) - without


@pytest.mark.parametrize("name", READ_WEIGHTS)
def test_program_holds_about_one_unpacked_matrix_at_a_time(packed, name):
    dense = sum(np.prod(leaf.shape) * 4 for leaf in abstract_params(CONFIG).values())
    memory = packed.compiled(name).memory_analysis()
    assert packed.weight_bytes < dense / 6
    assert memory.temp_size_in_bytes < 2 * LARGEST
    assert packed.weight_bytes + memory.temp_size_in_bytes < dense / 2


def test_packed_and_dense_weights_give_the_same_tokens(packed):
    requests = [request(range(1, 60), 6), request([5, 6], 6), request([9], 6)]
    answers = run(Engine(packed), requests)
    expected = run(Engine(programs_of(packed=False)), requests)
    assert [one.tokens for one in answers] == [one.tokens for one in expected]
    for one, other in zip(answers, expected, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)
