"""A model in stages on virtual devices: same tokens as on one, and nothing large moves."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxllama.config import EngineConfig, LayerSpec
from jaxllama.engine.blueprints import NAMES, leaves_of
from jaxllama.engine.engine import Engine
from jaxllama.engine.pipeline import parts_of
from jaxllama.engine.probes import finish
from jaxllama.engine.prompt_store import PromptStore
from jaxllama.errors import ConfigError
from jaxllama.kernels.cpu import library
from jaxllama.llm import LLM
from jaxllama.loading import engine_config
from jaxllama.model.params import abstract_params
from jaxllama.model.stages import choose_layers, divided, paths_in_stages, stage_configs
from jaxllama.request import Contrast, FinishReason
from jaxllama.sharding import make_meshes
from jaxllama.testing import FAMILIES, random_params
from tests.support import ENGINE, KERNELS, QuickPrograms, closed, new_engine, programs, request, run
from tests.support import MODEL as SMALL
from tests.test_compiles import cache_sized, not_in_place
from tests.test_llm import TOKENIZER
from tests.weights.writers import flatten, write_gguf

# Layers of two kinds, so that a stage with another stage's layers would be noticed.
MODEL = dataclasses.replace(
    FAMILIES["biased"],
    name="staged",
    heads=4,
    head_dim=32,
    kv_heads=2,
    ffn_width=128,
    vocab_size=320,
    max_context=512,
    layers=3,
    tied=True,
    window=12,
    pattern=(LayerSpec(windowed=False), LayerSpec()),
)
SAMPLERS = ("top_p",)
built = pytest.mark.skipif(not library.available(), reason=library.why_not())
BASES = [pytest.param(ENGINE, id="xla"), pytest.param(KERNELS, id="cpu", marks=built)]


def staged(base: EngineConfig, *layers: int, data: int = 1, model: int = 1) -> EngineConfig:
    return dataclasses.replace(base, stage_layers=layers, data_parallel=data, model_parallel=model)


def quick_engine(engine: EngineConfig) -> Engine:
    return new_engine(MODEL, engine, samplers=SAMPLERS, kind=QuickPrograms)


def some_requests(*, guided: bool = True):
    return [
        request(
            range(i, i + 20 + i * 17),
            8,
            temperature=float(i % 2),
            seed=i,
            top_logprobs=2,
            knobs={"top_p": 0.9},
            contrast=Contrast((7, i), 1.5) if guided and i % 3 == 0 else None,
        )
        for i in range(7)
    ]


def check_answers(engine: EngineConfig, base: EngineConfig, *, exactly: bool) -> None:
    # XLA may round the logits of a guided row in another way where it splits slots.
    asked = some_requests(guided=engine.data_parallel == 1)
    expected = run(quick_engine(base), asked)
    running = quick_engine(engine)
    answers = run(running, asked)
    assert [one.tokens for one in answers] == [one.tokens for one in expected]
    for one, other in zip(answers, expected, strict=True):
        assert one.finished.reason is other.finished.reason is FinishReason.LENGTH
        if exactly:
            assert one.logprobs == other.logprobs
        else:
            assert np.allclose(one.logprobs, other.logprobs, atol=1e-5)
    assert closed(running)


@pytest.mark.parametrize("base", BASES)
def test_stages_give_the_tokens_of_one_device(base):
    check_answers(staged(base, 1, 2), base, exactly=base.kernels == "cpu")


@built
def test_stages_with_split_slots_give_the_bits_of_one_device():
    """There are more stages than slots: with as many microbatches as slots, some stages rest."""
    few = dataclasses.replace(KERNELS, slots=2)
    check_answers(staged(few, 1, 1, 1, data=2), KERNELS, exactly=True)


@built
def test_stages_with_split_layers_give_the_tokens_of_one_device():
    check_answers(staged(KERNELS, 2, 1, model=2), KERNELS, exactly=False)


@built
def test_probes_pass_all_stages():
    engines = [quick_engine(each) for each in (KERNELS, staged(KERNELS, 1, 2))]
    ids = list(range(3, 120))
    tails = [([*ids[:40], *tail], 40) for tail in ([5, 6], [9], [7, 1, 2])]
    expected, found = (
        [
            *finish(each.probes.peek(ids, 5)),
            *finish(each.probes.score(tails)),
            *finish(each.probes.embed(ids)),
        ]
        for each in engines
    )
    for one, other in zip(expected, found, strict=True):
        assert np.array_equal(one, other)


def test_prefixes_are_copied_and_come_back_from_the_prompt_store():
    engine = staged(ENGINE, 1, 2)
    ready = programs(MODEL, engine, samplers=SAMPLERS, kind=QuickPrograms)
    running = Engine(ready, prompt_store=PromptStore(1 << 20, 1 << 10))
    asked = [request([i, *range(150)], 4) for i in range(engine.slots + 2)]
    first, again = ([run(running, [one])[0] for one in asked] for _ in range(2))
    assert [one.tokens for one in again] == [one.tokens for one in first]
    assert [one.finished.usage.reused for one in again] == [150] * len(asked)
    both = run(running, [asked[0], dataclasses.replace(asked[0], seed=9)])
    assert [one.tokens for one in both] == [first[0].tokens] * 2


@pytest.mark.parametrize("name", ["pass_step.0", "draw.1", "prefill.1"])
def test_a_fault_in_any_stage_is_recovered_from(name, monkeypatch):
    running = quick_engine(staged(ENGINE, 1, 2))
    expected = run(running, some_requests())
    compiled, calls = running.programs.compiled, []

    def failing(part):
        def fail(*args):
            calls.append(part)
            if len(calls) == 3:
                raise RuntimeError("a device is lost")
            return compiled(part)(*args)

        return fail if part == name else compiled(part)

    monkeypatch.setattr(running.programs, "compiled", failing)
    answers = run(running, some_requests())
    assert len(calls) > 3
    assert [one.tokens for one in answers] == [one.tokens for one in expected]
    assert closed(running)


def test_rows_without_numbers_fail_alone():
    """The columns of all stages are cleared, or a later request would meet the NaN."""
    running = quick_engine(staged(ENGINE, 1, 2))
    weights, stages = running.programs._weights_of, running.programs.stages
    leaves = jax.tree.leaves(stages[1].params)
    assert len(leaves) == len(weights[1])
    good = list(weights[1])
    weights[1] = tuple(leaf * np.nan if leaf.ndim == 1 else leaf for leaf in good)
    try:
        answers = run(running, [request([i], 5) for i in range(6)])
    finally:
        weights[1] = tuple(good)
    assert all(one.finished.reason is FinishReason.FAILED for one in answers)
    sound = run(running, some_requests())
    assert all(one.finished.reason is FinishReason.LENGTH for one in sound)


# Where things lie.


@pytest.mark.parametrize("base", BASES)
def test_a_device_holds_the_weights_and_the_cache_of_its_stage_alone(base):
    ready = programs(MODEL, staged(base, 1, 2), samplers=SAMPLERS, kind=QuickPrograms)
    state = ready.empty()
    whole = programs(MODEL, base, samplers=SAMPLERS, kind=QuickPrograms)
    layers = [jax.tree.leaves(whole.params["blocks"][index]) for index in range(MODEL.layers)]
    first, second = (ready.params[stage] for stage in range(2))
    assert sizes_of(first["blocks"]) == sizes_of(layers[:1])
    assert sizes_of(second["blocks"]) == sizes_of(layers[1:])
    assert set(first) == {"blocks", "embed"}
    assert set(second) == {"blocks", "embed", "final_norm"}  # the head is the embedding
    caches = [sizes_of(ready.stages[stage].state.cache) for stage in range(2)]
    assert caches[1] == 2 * caches[0] == sizes_of(whole.blueprints.state.cache) * 2 // 3
    assert len(state.early[0]) == len(
        jax.tree.leaves(ready.stages[0].state.cache)
    )  # no other array
    for stage, held in enumerate(zip(ready.params.values(), state[:2], strict=True)):
        devices = {device for leaf in jax.tree.leaves(held) for device in leaf.devices()}
        assert devices == {jax.devices()[stage]}


def sizes_of(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("part", "base"),
    [
        *((part, ENGINE) for part in ("pass_step.0", "pass_prefill.0", "copy.1")),
        *(
            pytest.param(part, KERNELS, marks=built)
            for part in ("pass_step.0", "draw.1", "prefill.1", "restore.0")
        ),
    ],
)
def test_no_stage_copies_its_cache_or_weights_and_states_change_in_place(part, base):
    ready = programs(MODEL, staged(base, 1, 2), samplers=())
    stage = ready.stages[int(part[-1])]
    text = ready.compiled(part).as_text()
    for array in jax.tree.leaves(stage.state.cache[0]):
        assert cache_sized(text, array.shape, "parameter")
        moves = "copy|convert|copy-start|select|transpose|concatenate"
        assert not cache_sized(text, array.shape, moves)
    for array in jax.tree.leaves(stage.params):
        assert array.ndim == 1 or not cache_sized(text, array.shape, "copy|copy-start|concatenate")
    argument = 0 if part.startswith(("copy", "restore")) else 1
    assert not_in_place(text, len(jax.tree.leaves(stage.state)), argument) == []


def test_only_hidden_states_and_rows_move_between_stages(monkeypatch):
    running = quick_engine(staged(ENGINE, 1, 2))
    moved = []
    put = jax.device_put

    def counted(x, where):
        moved.extend(leaf.shape for leaf in jax.tree.leaves(x))
        return put(x, where)

    monkeypatch.setattr(jax, "device_put", counted)
    run(running, some_requests())
    slots, chunk = ENGINE.slots, running.programs.chunk
    assert set(moved) == {(slots,), (slots, MODEL.width), (chunk, MODEL.width)}


def test_microbatches_take_turns(monkeypatch):
    """A stage has one microbatch to compute while the next stage has the other."""
    ready = programs(MODEL, staged(ENGINE, 1, 2), samplers=SAMPLERS, kind=QuickPrograms)
    compiled, calls = ready.compiled, []

    def recording(part):
        def record(*args):
            active = args[2].active if part == "pass_step.0" else ()
            calls.append((part, np.flatnonzero(active).tolist()))
            return compiled(part)(*args)

        return record

    state = ready.empty()
    last = ready.stages[1].state
    place = [leaf is last.budget for leaf in leaves_of(last)].index(True)
    rows = state.last
    budget = jax.device_put(np.full(ENGINE.slots, 9, np.int32), rows[place].sharding)
    state = state._replace(last=(*rows[:place], budget, *rows[place + 1 :]))
    monkeypatch.setattr(ready, "compiled", recording)
    state, _ = ready.decode(state, 1)
    ready.decode(state, 1)
    step = [("pass_step.0", [0, 2]), ("draw.1", []), ("pass_step.0", [1, 3]), ("draw.1", [])]
    feeds = [("feed.1", [])] * 2  # of the first call alone: the second one need not wait for them
    assert [each for each in calls if each[0] != "blank.1"] == [*feeds, *step * 2]


def test_names_of_parts_are_programs_of_their_stage():
    ready = programs(MODEL, staged(ENGINE, 1, 2), samplers=SAMPLERS, kind=QuickPrograms)
    for name in NAMES:
        for part in ready.parts(name):
            blueprints, own = ready._described(part)
            assert blueprints.called(own) is not None and hasattr(blueprints.steps, own)
    assert parts_of("peek", 3) == ("pass_prompt.0", "pass_prompt.1", "peek.2")


# Which layers.


def test_every_weight_has_a_stage_and_its_own_path_there():
    places = paths_in_stages(MODEL, (1, 2))
    assert places.keys() == abstract_params(MODEL).keys()
    assert places["blocks.0.attention.q.weight"] == {0: "blocks.0.attention.q.weight"}
    assert places["blocks.2.attention.q.weight"] == {1: "blocks.1.attention.q.weight"}
    assert places["embed.weight"] == {0: "embed.weight", 1: "embed.weight"}
    assert places["final_norm.weight"] == {1: "final_norm.weight"}
    untied = paths_in_stages(dataclasses.replace(MODEL, tied=False), (1, 2))
    assert untied["embed.weight"] == {0: "embed.weight"}
    assert untied["unembed.weight"] == {1: "unembed.weight"}


def test_stages_have_the_kinds_of_their_layers():
    stages = stage_configs(MODEL, (1, 2))
    assert [spec for stage in stages for spec in stage.specs] == list(MODEL.specs)


DEEP = dataclasses.replace(MODEL, layers=32, vocab_size=64)


@pytest.mark.parametrize(
    ("text", "stages", "memory", "layers"),
    [
        (None, 1, [None], ()),
        ("20,12", 2, [None, None], (20, 12)),
        (None, 2, [None, None], (16, 16)),
        (None, 4, [None] * 4, (8, 8, 8, 8)),
        (None, 2, [24 << 30, 8 << 30], (24, 8)),
        (None, 2, [24 << 30, None], (16, 16)),
        ("24GB, 8GB", 2, [None, None], (24, 8)),
        ("1GiB,1GiB,2GiB", 3, [8, 8, 8], (8, 8, 16)),
    ],
)
def test_layers_are_given_or_in_proportion_to_memory(text, stages, memory, layers):
    assert choose_layers(text, stages, DEEP, memory) == layers


def test_embedding_and_head_count_as_weights_of_their_stages():
    large = dataclasses.replace(DEEP, vocab_size=32_000)
    first, *middle, last = divided(large, [1, 1, 1, 1])
    assert first == last and first < min(middle)
    assert divided(dataclasses.replace(DEEP, layers=2), [1000, 1]) == (1, 1)  # none is empty


@pytest.mark.parametrize("text", ["20", "20,13", "32,0", "20,12,0", "a,b", "16GB", "0GB,1GB", ""])
def test_division_that_does_not_fit_is_refused(text):
    with pytest.raises(ConfigError, match=r"2 numbers of layers that add up to 32, or 2 sizes"):
        choose_layers(text, 2, DEEP, [None, None])


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"stage_layers": "1,2"}, "--mesh stage=2"),
        ({"mesh": "stage=4"}, "this model has 3 layers"),
        ({"mesh": "stage=2", "adapter_slots": 1}, "LoRA adapters need a mesh without"),
        ({"mesh": "stage=2", "draft_tokens": 4}, "draft_tokens is 4; expected 0"),
    ],
)
def test_what_stages_do_not_support_is_refused(given, word):
    with pytest.raises(ConfigError, match=word):
        engine_config(MODEL, "xla", **given)


def test_more_stages_than_devices_are_refused():
    with pytest.raises(ConfigError, match=r"data=2,model=4,stage=2 needs 16 devices"):
        make_meshes(staged(ENGINE, 1, 2, data=2, model=4), MODEL)


def test_stages_on_several_hosts_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"stage=2 has stages on 2 hosts; .*--mesh model=8"):
        make_meshes(staged(ENGINE, 1, 2), MODEL)


def test_config_of_one_stage_is_refused():
    with pytest.raises(ConfigError, match="expected two stages or more"):
        EngineConfig(stage_layers=(3,))
    with pytest.raises(ConfigError, match="at least one layer each"):
        EngineConfig(stage_layers=(3, 0))


# From file to text.


@pytest.mark.usefixtures("quick_loads")
def test_a_file_is_loaded_in_stages_and_its_programs_are_kept(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, SMALL, flatten(random_params(SMALL)), metadata=TOKENIZER)
    settings = {"slots": 4, "context": 200, "kernels": "xla", "prompt_cache_mib": 1}
    settings["compile_behind"] = False
    with LLM.load(path, **settings) as one:
        expected = one.generate(["hello", "world"], max_tokens=9, seed=1)
        vector = one.embed("hello")
    in_stages = {"mesh": "stage=2", "stage_layers": "1GB,1GB", "prompt_cache_dir": tmp_path / "p"}
    for is_first in (True, False):
        with LLM.load(path, **settings, **in_stages) as llm:
            answers = llm.generate(["hello", "world"], max_tokens=9, seed=1)
            assert [each.text for each in answers] == [each.text for each in expected]
            assert np.allclose(llm.embed("hello"), vector, atol=1e-5)
            made = llm.engine.programs.made.values()
            assert is_first or not any(each.is_compiled for each in made)
