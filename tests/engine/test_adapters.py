"""Low-rank adapters: many in one batch, each row with its own or none, changed while it runs."""

import dataclasses
from functools import cache

import numpy as np
import pytest

from jaxllama.config import EngineConfig
from jaxllama.engine.adapters import LoadedAdapters
from jaxllama.engine.engine import Engine
from jaxllama.engine.probes import finish
from jaxllama.engine.programs import Programs
from jaxllama.errors import InvalidParameter
from jaxllama.model.adapters import empty_adapters
from jaxllama.request import AdapterUse, Contrast
from jaxllama.testing import random_params
from jaxllama.weights.lora import read_adapter
from tests.adapter_writer import merged, random_adapter, write_adapter
from tests.support import (
    BODIES,
    KERNELS,
    MODEL,
    QuickPrograms,
    Told,
    closed,
    drive,
    new_engine,
    place_all,
    programs,
    request,
    run,
)

NAMES = ("one", "two", "half")
PROMPT = [5, 17, 200, 8, 91, 4, 77, 13, 13, 60]


def with_adapters(engine: EngineConfig) -> EngineConfig:
    return dataclasses.replace(engine, adapter_slots=4, adapter_rank=16)


def quick_programs(engine: EngineConfig) -> Programs:
    """Return programs with the one sampler that these tests use, compiled quickly."""
    return programs(MODEL, engine, samplers=("top_k",), kind=QuickPrograms)


@cache
def adapted_programs(engine: EngineConfig) -> Programs:
    return quick_programs(with_adapters(engine))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory):
    root, found = tmp_path_factory.mktemp("adapters"), {}
    for seed, name in enumerate(NAMES):
        targets = ("q", "v", "down") if name == "half" else None
        more = {} if targets is None else {"targets": targets}
        found[name] = write_adapter(root / name, random_adapter(MODEL, seed=seed, **more))
    return found


def new_adapted_engine(engine: EngineConfig, folders, names=NAMES) -> Engine:
    made = adapted_programs(engine)
    adapters = LoadedAdapters(made, empty_adapters(MODEL, made.engine, made.mesh))
    for name in names:
        adapters.load(name, read_adapter(folders[name], MODEL, made.engine))
    return Engine(made, adapters=adapters)


def use(engine: Engine, name: str, scale: float = 1.0) -> AdapterUse:
    assert engine.adapters is not None
    return engine.adapters.use(name, scale)


def of(engine: Engine, name: str | None, prompt=PROMPT, tokens: int = 12, **more):
    adapter = None if name is None else use(engine, name)
    return request(prompt, tokens, adapter=adapter, **more)


@pytest.mark.origin("ExLlama: LoRA adapters by request")
@pytest.mark.parametrize("body", BODIES)
def test_rows_of_one_batch_equal_the_models_they_were_merged_into(body: EngineConfig, folders):
    engine = new_adapted_engine(body, folders)
    together = run(engine, [of(engine, name) for name in (*NAMES, None)])
    texts = set()
    for name, told in zip((*NAMES, None), together, strict=True):
        expected = merged_answer(body, name)
        assert told.tokens == expected.tokens
        np.testing.assert_allclose(told.logprobs, expected.logprobs, rtol=0, atol=2e-4)
        texts.add(tuple(told.tokens))
    assert len(texts) == len(together)  # the adapters do change the text
    assert closed(engine)


def merged_answer(body: EngineConfig, name: str | None) -> Told:
    """The answer of a model with the adapter in its weights, and no adapter loaded."""
    made = quick_programs(body)
    if name is not None:
        more = {"targets": ("q", "v", "down")} if name == "half" else {}
        tensors = random_adapter(MODEL, seed=NAMES.index(name), **more)
        tree = merged(random_params(MODEL), MODEL, tensors)
        weights = place_all(MODEL, body, tree=tree)
        made = QuickPrograms(
            MODEL, body, made.bank, weights, made.mesh, executables=made.executables
        )
    (told,) = run(Engine(made), [request(PROMPT, 12)])
    return told


@pytest.mark.parametrize("body", BODIES)
def test_rows_without_an_adapter_keep_their_bits(body: EngineConfig, folders):
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, 256, 20).tolist() for _ in range(2)]
    knobs = {"temperature": 0.8, "seed": 3, "knobs": {"top_k": 5}}
    asked = [request(prompt, 12, **knobs) for prompt in prompts]
    plain = run(Engine(quick_programs(body)), asked)
    engine = new_adapted_engine(body, folders)
    others = [of(engine, "one"), of(engine, "half", temperature=1.0)]
    mixed = run(engine, [*asked, *others])
    tolerance = 0.0 if body.kernels == "cpu" else 1e-5
    for one, other in zip(plain, mixed, strict=False):
        assert one.tokens == other.tokens
        np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("body", BODIES)
def test_company_order_and_prefixes_change_nothing(body: EngineConfig, folders):
    rng = np.random.default_rng(2)
    engine = new_adapted_engine(body, folders)
    stem = rng.integers(0, 256, 90).tolist()
    asked = []
    for index in range(24):
        prompt = [*stem[: rng.integers(1, 90)], *rng.integers(0, 256, 3).tolist()]
        name = [None, *NAMES][rng.integers(4)]
        adapter = name and use(engine, name, float(rng.choice([0.5, 1.0])))
        contrast = Contrast(tuple(stem[:5]), 2.0) if index % 6 == 0 else None
        asked.append(
            request(prompt, 6, adapter=adapter, temperature=0.9, seed=index, contrast=contrast)
        )
    alone = [run(new_adapted_engine(body, folders), [one])[0] for one in asked[:6]]
    told: dict[int, Told] = {}
    crowd = []
    for each in rng.permutation(len(asked)):
        crowd.append((each, engine.submit(asked[each])))
        drive(engine, told, steps=int(rng.integers(0, 4)))
    drive(engine, told)
    again = run(engine, asked)
    tolerance = 0.0 if body.kernels == "cpu" else 1e-5
    for each, generation in crowd:
        for other in (again[each], *alone[each : each + 1]):
            assert told[generation.id].tokens == other.tokens
            np.testing.assert_allclose(
                told[generation.id].logprobs, other.logprobs, rtol=0, atol=tolerance
            )
    assert closed(engine)


def test_a_prefix_belongs_to_its_adapter_and_scale(folders):
    engine = new_adapted_engine(KERNELS, folders)
    prompt = list(range(100))

    def reused(adapter: AdapterUse | None) -> int:
        (told,) = run(engine, [request(prompt, 1, adapter=adapter)])
        assert told.finished is not None
        return told.finished.usage.reused

    assert reused(None) == 0
    assert reused(use(engine, "one")) == 0
    assert reused(use(engine, "one", 0.5)) == 0
    assert reused(None) == reused(use(engine, "one")) == reused(use(engine, "one", 0.5)) == 99
    assert engine.adapters is not None
    engine.adapters.load("one", read_adapter(folders["two"], MODEL, engine.config))
    assert reused(use(engine, "one")) == 0  # another adapter of the same name


def test_changing_adapters_compiles_nothing_and_lets_running_requests_finish(folders):
    engine = new_adapted_engine(KERNELS, folders, ["one"])
    adapters = engine.adapters
    assert adapters is not None
    expected = run(engine, [of(engine, "one", tokens=30)])[0].tokens
    again = run(engine, [of(engine, "one", tokens=30)])[0].tokens  # makes the program copy
    assert again == expected
    before = dict(engine.programs.traces)
    told: dict[int, Told] = {}
    running = engine.submit(of(engine, "one", tokens=30))
    drive(engine, told, steps=3)
    adapters.unload("one")
    with pytest.raises(InvalidParameter, match="expected the name of a loaded adapter: none"):
        use(engine, "one")
    for name in ("a", "b", "c"):  # the place of the running one is not free
        adapters.load(name, read_adapter(folders["two"], MODEL, engine.config))
    with pytest.raises(InvalidParameter, match="4 adapters are loaded or still in use"):
        adapters.load("d", read_adapter(folders["two"], MODEL, engine.config))
    drive(engine, told)
    assert told[running.id].tokens == expected
    adapters.load("d", read_adapter(folders["half"], MODEL, engine.config))
    assert adapters.names == ("a", "b", "c", "d")
    assert run(engine, [of(engine, "d")])[0].tokens != expected[:12]
    assert dict(engine.programs.traces) == before
    assert closed(engine)


def test_a_request_whose_adapter_was_unloaded_meanwhile_is_refused(folders):
    engine = new_adapted_engine(KERNELS, folders, ["one"])
    late = of(engine, "one")
    assert engine.adapters is not None
    engine.adapters.unload("one")
    with pytest.raises(InvalidParameter, match="unloaded while the request waited"):
        engine.submit(late)
    with pytest.raises(InvalidParameter, match="no adapter can be loaded here"):
        new_engine(MODEL, KERNELS).submit(late)


def test_adapters_of_several_hosts_are_fixed_after_the_start(folders):
    engine = new_adapted_engine(KERNELS, folders, names=("one",))
    engine.adapters.fix()
    with pytest.raises(InvalidParameter, match="start all hosts with --lora NAME=PATH"):
        engine.adapters.load("two", read_adapter(folders["two"], MODEL, engine.config))
    (told,) = run(engine, [of(engine, "one", tokens=2)])
    assert len(told.tokens) == 2


def test_a_replay_after_a_fault_keeps_the_adapter(folders, monkeypatch):
    engine = new_adapted_engine(KERNELS, folders)
    expected = run(engine, [of(engine, "one")])[0].tokens
    told: dict[int, Told] = {}
    running = engine.submit(of(engine, "one"))
    drive(engine, told, steps=2)
    decode = engine.programs.decode
    with monkeypatch.context() as patch:
        patch.setattr(engine.programs, "decode", lambda *_, **__: 1 / 0)
        engine.step()
    assert engine.programs.decode == decode
    drive(engine, told)
    assert told[running.id].tokens == expected
    assert closed(engine)


@pytest.mark.parametrize("body", BODIES)
def test_probes_use_the_adapter(body: EngineConfig, folders):
    engine = new_adapted_engine(body, folders)
    ids = [*PROMPT, *range(40, 60)]
    for adapter in (None, use(engine, "one")):
        (told,) = run(engine, [request(ids[:-1], 1, adapter=adapter)])
        peeked, logits = finish(engine.probes.peek(ids[:-1], 5, adapter=adapter))
        assert int(logits.argmax()) == told.tokens[0]
        scored = finish(engine.probes.score([(ids, 28), (ids[:-1], 27)], adapter=adapter))
        np.testing.assert_allclose(scored[1], peeked[-2:], rtol=0, atol=2e-5)
    assert closed(engine)
