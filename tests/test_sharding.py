"""A mesh of virtual devices: same tokens as one device, no cache or weight gathered."""

import dataclasses
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxllama.config import EngineConfig, ModelConfig
from jaxllama.engine.adapters import LoadedAdapters
from jaxllama.engine.blueprints import PACKED
from jaxllama.engine.engine import Engine
from jaxllama.engine.prompt_store import PromptStore
from jaxllama.engine.state import empty_state, state_shardings
from jaxllama.errors import ConfigError
from jaxllama.kernels.body import PromptSpan
from jaxllama.kernels.cpu import CPU, library
from jaxllama.loading import choose_kernels
from jaxllama.model.adapters import empty_adapters
from jaxllama.request import Contrast
from jaxllama.sharding import make_mesh, parse_mesh
from jaxllama.testing import FAMILIES
from jaxllama.weights.lora import read_adapter
from tests.adapter_writer import random_adapter, write_adapter
from tests.support import ENGINE, KERNELS, QuickPrograms, new_engine, programs, request, run

MODEL = dataclasses.replace(FAMILIES["llama3"], kv_heads=4, max_context=512)
BASE = dataclasses.replace(ENGINE, slots=8)
MESHES = [(1, 2), (2, 4)]
# Biases everywhere; whole blocks of 32 on two devices.
WIDE = dataclasses.replace(
    FAMILIES["biased"], heads=4, head_dim=32, ffn_width=128, vocab_size=320, max_context=512
)
# Fewer key/value heads than devices along `model`; one norm for all heads.
NARROW = dataclasses.replace(MODEL, name="narrow", kv_heads=2, qk_norm=True, qk_norm_over="all")
built = pytest.mark.skipif(not library.available(), reason=library.why_not())


def sharded(data: int, model: int, base: EngineConfig = BASE) -> EngineConfig:
    return dataclasses.replace(base, data_parallel=data, model_parallel=model)


def quick_engine(shape: ModelConfig, engine: EngineConfig) -> Engine:
    """Return an engine with the one sampler that these tests use, compiled quickly."""
    return new_engine(shape, engine, samplers=("top_p",), kind=QuickPrograms)


def some_requests():
    return [
        request(
            range(i, i + 20 + i * 7),
            8,
            temperature=float(i % 2),
            seed=i,
            knobs={"top_p": 0.9},
            contrast=Contrast((7, i), 1.5) if i % 3 == 0 else None,
        )
        for i in range(10)
    ]


@pytest.mark.parametrize(("data", "model"), MESHES)
def test_mesh_gives_the_tokens_of_one_device(data, model):
    expected = run(quick_engine(MODEL, BASE), some_requests())
    answers = run(quick_engine(MODEL, sharded(data, model)), some_requests())
    assert [one.tokens for one in answers] == [one.tokens for one in expected]


@built
@pytest.mark.parametrize("kv_heads", [2, 1])
def test_kernels_on_a_mesh_give_the_tokens_of_one_device(kv_heads):
    shape = dataclasses.replace(WIDE, kv_heads=kv_heads)
    expected = run(quick_engine(shape, KERNELS), some_requests())
    answers = run(quick_engine(shape, sharded(2, 2, KERNELS)), some_requests())
    assert [one.tokens for one in answers] == [one.tokens for one in expected]


def test_every_device_has_a_key_head_if_there_are_more_devices_than_heads():
    expected = run(quick_engine(NARROW, BASE), some_requests())
    engine = quick_engine(NARROW, sharded(1, 4))
    answers = run(engine, some_requests())
    assert [one.tokens for one in answers] == [one.tokens for one in expected]
    keys = engine.programs.tree_of(engine.programs.empty()).cache[0][0]
    assert keys.shape[1] == 4 and keys.addressable_shards[0].data.shape[1] == 1


@built
def test_kernels_with_split_slots_give_the_bits_of_one_device():
    expected = run(quick_engine(WIDE, KERNELS), some_requests())
    packing = dataclasses.replace(KERNELS, pack_prompts=True)  # short prompts together
    engine = quick_engine(WIDE, sharded(2, 1, packing))
    engine.programs.compiled(PACKED)
    answers = run(engine, some_requests())
    assert [one.tokens for one in answers] == [one.tokens for one in expected]
    assert [one.logprobs for one in answers] == [one.logprobs for one in expected]


@pytest.mark.parametrize(
    ("shape", "engine"),
    [
        (MODEL, sharded(2, 4)),
        pytest.param(WIDE, sharded(2, 2, KERNELS), marks=built),
    ],
)
def test_prefixes_come_back_from_the_prompt_store_on_a_mesh(shape, engine):
    ready = programs(shape, engine, samplers=(), kind=QuickPrograms)
    runs = Engine(ready, prompt_store=PromptStore(1 << 20, 1 << 10))
    asked = [request([i, *range(150)], 4) for i in range(engine.slots + 2)]
    first, again = ([run(runs, [one])[0] for one in asked] for _ in range(2))
    assert [one.tokens for one in again] == [one.tokens for one in first]
    assert [one.finished.usage.reused for one in again] == [150] * len(asked)
    assert runs.prompt_store.figures["prompt_cache_hits"] == len(asked)


@pytest.mark.parametrize("kv_heads", [pytest.param(2, marks=pytest.mark.slow), 1])
@pytest.mark.parametrize(
    "base", [pytest.param(ENGINE, id="xla"), pytest.param(KERNELS, marks=built)]
)
def test_adapters_on_a_mesh_give_the_tokens_of_one_device(
    base: EngineConfig, kv_heads: int, tmp_path: Path
):
    shape = dataclasses.replace(WIDE, kv_heads=kv_heads)
    folder = write_adapter(tmp_path, random_adapter(shape))
    base = dataclasses.replace(base, adapter_slots=2)

    def answers(engine: EngineConfig) -> list[list[int]]:
        made = programs(shape, engine, samplers=(), kind=QuickPrograms)
        adapters = LoadedAdapters(made, empty_adapters(shape, engine, made.mesh))
        adapters.load("one", read_adapter(folder, shape, engine))
        use = adapters.use("one", 1.0)
        asked = [
            request(range(number, number + 30), 8, adapter=use if number % 2 else None)
            for number in range(6)
        ]
        return [told.tokens for told in run(Engine(made, adapters=adapters), asked)]

    assert answers(sharded(2, 2, base)) == answers(base)


@built
@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("slot", [0, 3])
def test_prompt_is_attended_where_its_slot_lies(size, slot):
    prompt = CPU.attention.prompt
    rng = np.random.default_rng(0)
    parts = tuple(jnp.asarray(rng.random((8, heads, size), np.float32)) for heads in (4, 2, 2))
    turn = tuple(jnp.asarray(rng.random((8, size // 2), np.float32)) for _ in range(2))
    layer = tuple(jnp.asarray(rng.random((4, 2, 136, size), np.float32)) for _ in range(2))
    place = PromptSpan(*map(jnp.int32, (slot, 20, 6)))

    def attend(layer):
        return prompt(parts, turn, layer, place, None)

    out, after = jax.jit(attend)(layer)
    mesh = make_mesh(sharded(2, 1), MODEL)
    over = {"in_specs": P("data"), "out_specs": (P(), P("data")), "check_vma": False}
    spread, changed = jax.jit(jax.shard_map(attend, mesh=mesh, **over))(layer)
    assert np.allclose(out[:6], spread[:6], rtol=1e-6)
    for one, other in zip(after, changed, strict=True):
        assert np.array_equal(one[:, :, :128], other[:, :, :128])


def moved(text: str) -> set[tuple[int, ...]]:
    """Shapes of everything that travels between devices whole."""
    found = re.findall(r"= \w+\[([\d,]+)\]\S* (?:all-gather|all-to-all|collective-permute)", text)
    return {tuple(int(size) for size in shape.split(",")) for shape in found}


@pytest.mark.parametrize(
    ("shape", "engine"),
    [
        *((MODEL, sharded(*mesh)) for mesh in MESHES),
        pytest.param(WIDE, sharded(2, 2, KERNELS), marks=built),
    ],
)
@pytest.mark.parametrize("name", ["decode", "prefill", "copy", "restore"])
def test_neither_cache_nor_weights_travel(shape, engine, name):
    ready = programs(shape, engine)
    large = {leaf.shape for leaf in jax.tree.leaves(ready.params) if leaf.size > 1024}
    cache = math.prod(ready.blueprints.state.cache[0][0].shape)
    for each in moved(ready.compiled(name).as_text()):
        assert each not in large
        assert math.prod(each) < cache // (2 * engine.data_parallel * engine.model_parallel), each


def test_gathered_shapes_are_noticed():
    assert moved("%x = f32[4,2,264,16]{3,2} all-gather(%y), dims={0}") == {(4, 2, 264, 16)}


def test_weights_and_cache_lie_in_parts():
    ready = programs(MODEL, sharded(2, 4))
    q = ready.params["blocks"][0]["attention"]["q"]["weight"]
    assert q.array.addressable_shards[0].data.shape == (MODEL.width, MODEL.width // 4)
    keys = ready.tree_of(ready.empty()).cache[0][0]
    assert keys.addressable_shards[0].data.shape[:2] == (4, 1)


def test_scales_of_the_cache_lie_with_their_numbers():
    small = dataclasses.replace(sharded(2, 4), cache_dtype="int8")
    bank = programs(MODEL, BASE).bank
    state = jax.eval_shape(lambda: empty_state(MODEL, small, bank, 8))
    for where in jax.tree.leaves(state_shardings(make_mesh(small, MODEL), state).cache):
        assert where.spec[:2] == ("data", "model")


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        (None, (1, 1, 1)),
        ("data=2", (2, 1, 1)),
        ("model=4, data=2", (2, 4, 1)),
        ("stage=2,data=4", (4, 1, 2)),
    ],
)
def test_mesh_text_is_understood(text, sizes):
    assert parse_mesh(text) == sizes


@pytest.mark.parametrize("text", ["data", "data=0", "rows=2", "data=2;model=2", "data=-1"])
def test_bad_mesh_text_is_refused(text):
    with pytest.raises(ConfigError, match="data=2,model=4"):
        parse_mesh(text)


@pytest.mark.parametrize(
    ("data", "model", "word"),
    [
        (8, 2, "needs 16 devices"),
        (1, 3, "divide over model=3; choose a divisor of 4, or a multiple that divides the 4"),
        (1, 8, "divide over model=8"),
    ],
)
def test_mesh_that_does_not_fit_is_refused(data, model, word):
    with pytest.raises(ConfigError, match=word):
        make_mesh(sharded(data, model), MODEL)


def test_kernels_without_whole_blocks_are_refused():
    with pytest.raises(ConfigError, match=r"attention 64 wide .* blocks of 32.*--kernels xla"):
        choose_kernels("cpu", "model=4", dataclasses.replace(WIDE, head_dim=32, heads=2))


def test_slots_must_divide_over_the_mesh():
    with pytest.raises(ConfigError, match="multiple"):
        EngineConfig(slots=3, data_parallel=2)


def test_config_is_hashable():
    assert hash(MODEL) == hash(dataclasses.replace(MODEL))
    assert isinstance(MODEL, ModelConfig)
