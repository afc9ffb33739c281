"""A mesh of virtual devices: same tokens as one device, no cache or weight gathered."""

import dataclasses
import math
import re

import jax
import pytest

from jaxllama.config import EngineConfig, ModelConfig
from jaxllama.errors import ConfigError
from jaxllama.sharding import make_mesh, parse_mesh
from jaxllama.testing import FAMILIES
from tests.support import ENGINE, new_engine, programs, request, run

MODEL = dataclasses.replace(FAMILIES["llama3"], kv_heads=4, max_context=512)
BASE = dataclasses.replace(ENGINE, slots=8)
MESHES = [(1, 2), (2, 4)]


def sharded(data: int, model: int) -> EngineConfig:
    return dataclasses.replace(BASE, data_parallel=data, model_parallel=model)


def some_requests():
    return [
        request(range(i, i + 20 + i * 7), 8, temperature=float(i % 2), seed=i, knobs={"top_p": 0.9})
        for i in range(10)
    ]


@pytest.mark.parametrize(("data", "model"), MESHES)
def test_mesh_gives_the_tokens_of_one_device(data, model):
    expected = run(new_engine(MODEL, BASE), some_requests())
    answers = run(new_engine(MODEL, sharded(data, model)), some_requests())
    assert [one.tokens for one in answers] == [one.tokens for one in expected]


def moved(text: str) -> set[tuple[int, ...]]:
    """Shapes of everything that travels between devices whole."""
    found = re.findall(r"= \w+\[([\d,]+)\]\S* (?:all-gather|all-to-all|collective-permute)", text)
    return {tuple(int(size) for size in shape.split(",")) for shape in found}


@pytest.mark.parametrize(("data", "model"), MESHES)
@pytest.mark.parametrize("name", ["decode", "prefill", "copy"])
def test_neither_cache_nor_weights_travel(data, model, name):
    ready = programs(MODEL, sharded(data, model))
    large = {leaf.shape for leaf in jax.tree.leaves(ready.params) if leaf.ndim > 1}
    cache = ready._state.cache[0].keys.shape
    for shape in moved(ready.compiled(name).as_text()):
        assert shape not in large
        assert math.prod(shape) < math.prod(cache) // (2 * data * model), shape


def test_gathered_shapes_are_noticed():
    assert moved("%x = f32[4,2,264,16]{3,2} all-gather(%y), dims={0}") == {(4, 2, 264, 16)}


def test_weights_and_cache_lie_in_parts():
    ready = programs(MODEL, sharded(2, 4))
    q = ready.params["blocks"][0]["attention"]["q"]["weight"]
    assert q.addressable_shards[0].data.shape == (MODEL.width, MODEL.width // 4)
    keys = ready.empty().cache[0].keys
    assert keys.addressable_shards[0].data.shape[:2] == (4, 1)


@pytest.mark.parametrize(
    ("text", "sizes"), [(None, (1, 1)), ("data=2", (2, 1)), ("model=4, data=2", (2, 4))]
)
def test_mesh_text_is_understood(text, sizes):
    assert parse_mesh(text) == sizes


@pytest.mark.parametrize("text", ["data", "data=0", "rows=2", "data=2;model=2", "data=-1"])
def test_bad_mesh_text_is_refused(text):
    with pytest.raises(ConfigError, match="data=2,model=4"):
        parse_mesh(text)


@pytest.mark.parametrize(
    ("data", "model", "word"), [(8, 2, "needs 16 devices"), (1, 8, "divide over model=8")]
)
def test_mesh_that_does_not_fit_is_refused(data, model, word):
    with pytest.raises(ConfigError, match=word):
        make_mesh(sharded(data, model), MODEL)


def test_slots_must_divide_over_the_mesh():
    with pytest.raises(ConfigError, match="multiple"):
        EngineConfig(slots=3, data_parallel=2)


def test_config_is_hashable():
    assert hash(MODEL) == hash(dataclasses.replace(MODEL))
    assert isinstance(MODEL, ModelConfig)
