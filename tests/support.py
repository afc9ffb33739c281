"""Helpers of many tests: engines on tiny random models, compiled once per run and size."""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jax._src import compiler
from jax.sharding import Mesh

from jaxllama import llm
from jaxllama.config import EngineConfig, ModelConfig
from jaxllama.engine.choosing.bank import SamplerBank
from jaxllama.engine.engine import Engine
from jaxllama.engine.executables import Executables
from jaxllama.engine.generation import Generation
from jaxllama.engine.pipeline import Pipeline
from jaxllama.engine.program_key import program_key
from jaxllama.engine.programs import Programs
from jaxllama.kernels.cpu import library
from jaxllama.loading import describe
from jaxllama.model.adapters import empty_adapters
from jaxllama.model.params import Tree, abstract_params
from jaxllama.model.prepare import Preparation
from jaxllama.model.stages import paths_in_stages, stage_configs
from jaxllama.registry import SAMPLERS, Plugins, load_plugins
from jaxllama.request import Event, Finished, GenerationRequest, Token
from jaxllama.sampling import Sampler
from jaxllama.sharding import make_mesh, make_meshes
from jaxllama.testing import FAMILIES, random_params
from jaxllama.testing.tryout import QUICKLY

MODEL = dataclasses.replace(FAMILIES["smollm2"], head_dim=32, max_context=512)
ENGINE = EngineConfig(slots=4, context=200, candidates=32, cache_dtype="float32")
KERNELS = dataclasses.replace(ENGINE, kernels="cpu", dtype="stored", prefill_chunk=64)
OTHER = {"slots": 7, "steps_per_sync": 1, "prefill_chunk": 8}  # settings that change no text
SEVEN = dataclasses.replace(ENGINE, **OTHER)
BODIES = [
    pytest.param(ENGINE, id="xla"),
    pytest.param(
        KERNELS,
        id="cpu",
        marks=pytest.mark.skipif(not library.available(), reason=library.why_not()),
    ),
]


COMPILE_OPTIONS = compiler.get_compile_options
# In the environment of another process: it compiles without optimisation, too.
QUICK_FLAGS = "--xla_cpu_use_fusion_emitters=false"
QUICK_PROCESS = {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {QUICK_FLAGS}",
}
# The folder of compiled programs, shared by all test processes of this run and of later ones.
KEPT = Path(tempfile.gettempdir()) / f"jaxllama-tests-{os.getuid()}"
# The samplers that most tests need; every further one slows down each compilation of a decode step.
FEW = (
    *("constraint", "logit_bias", "min_p", "min_tokens"),
    *("mirostat", "repetition", "top_k", "top_p"),
)
# What requests at random ask for.
CHAIN = ("min_p", "repetition", "top_k", "top_p")
MOST_AT_ONCE = 6  # requests of a random schedule


@dataclasses.dataclass
class Told:
    """The events of one generation: its tokens, their log-probabilities and its end."""

    tokens: list[int]
    logprobs: list[float]
    finished: Finished | None = None


@cache
def installed_samplers() -> dict[str, type[Sampler]]:
    return load_plugins(SAMPLERS, Sampler).loaded


class QuickPrograms(Programs):
    """Programs compiled without optimisation: for tests of the meaning, not of bits or copies."""

    def _compiler_options(self) -> dict[str, Any]:
        return {**(super()._compiler_options() or {}), **QUICKLY}


class QuickPipeline(QuickPrograms, Pipeline):
    """The same for a model in stages."""


PIPELINES: dict[type[Programs], type[Pipeline]] = {
    Programs: Pipeline,
    QuickPrograms: QuickPipeline,
}


@contextlib.contextmanager
def only(names: Iterable[str], *, kind: type[Programs] = Programs) -> Iterator[None]:
    """Within the context, LLM.load finds only these samplers and uses the tests' program folder.

    `kind` is the class of the programs; each has a folder of its own.
    """
    chosen = tuple(names)

    def load(group: str, base: type) -> Plugins:
        found = load_plugins(group, base)
        if group != SAMPLERS:
            return found
        return dataclasses.replace(found, loaded={name: found.loaded[name] for name in chosen})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llm, "load_plugins", load)
        patch.setattr(llm, "cache_folder", lambda: KEPT / kind.__name__)
        patch.setattr(llm, "Programs", kind)
        patch.setattr(llm, "Pipeline", PIPELINES[kind])
        yield


@contextlib.contextmanager
def quick_operations() -> Iterator[None]:
    """Within the context, JAX compiles operations without optimisation: each runs a few times.

    Not for the engine's programs: other tests read them, and find them on disk.
    """

    def quickly(*given: Any, env_options_overrides: dict[str, Any], **named: Any) -> Any:
        overrides = {**QUICKLY, **env_options_overrides}
        return COMPILE_OPTIONS(*given, env_options_overrides=overrides, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "get_compile_options", quickly)
        yield


@contextlib.contextmanager
def usual_options() -> Iterator[None]:
    """Within the context, JAX compiles as in production, also inside `quick_operations`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "get_compile_options", COMPILE_OPTIONS)
        yield


def place_all(
    model: ModelConfig, engine: EngineConfig, mesh: Mesh | None = None, tree: Tree | None = None
) -> Tree:
    """Lay out and place weights for an engine: a canonical tree, or random weights."""
    tree, leaves = tree or random_params(model), abstract_params(model)
    mesh = mesh or make_mesh(engine, model)
    preparation = Preparation(model, engine, mesh)
    for path, leaf in leaves.items():
        preparation.add(path, leaf, at(tree, path))
    return preparation.tree()


def place_stages(
    model: ModelConfig, engine: EngineConfig, meshes: Sequence[Mesh], tree: Tree | None = None
) -> Tree:
    """Lay out and place the weights of each stage: of a canonical tree, or random weights."""
    tree, leaves = tree or random_params(model), abstract_params(model)
    configs = stage_configs(model, engine.stage_layers)
    stages = [Preparation(*given) for given in zip(configs, repeat(engine), meshes, strict=False)]
    for path, places in paths_in_stages(model, engine.stage_layers).items():
        for stage, own in places.items():
            stages[stage].add(own, leaves[path], at(tree, path))
    return {index: stage.tree() for index, stage in enumerate(stages)}


def at(tree: Tree, path: str) -> np.ndarray:
    for key in path.split("."):
        tree = tree[int(key)] if key.isdigit() and int(key) in tree else tree[key]
    return tree


@cache
def programs(
    model: ModelConfig = MODEL,
    engine: EngineConfig = ENGINE,
    *,
    samplers: tuple[str, ...] | None = FEW,
    kind: type[Programs] = Programs,
) -> Programs:
    """Return compiled programs, cached on disk for other test processes.

    `samplers` names the samplers; None means all installed ones.
    """
    installed = installed_samplers()
    chosen = {name: installed[name] for name in (installed if samplers is None else samplers)}
    bank = SamplerBank(
        chosen,
        vocab=model.vocab_size,
        candidates=engine.candidates,
        top_logprobs=engine.max_top_logprobs,
        body=engine.kernels,
    )
    meshes = make_meshes(engine, model)
    root = KEPT / f"{model.name}-{engine.kernels}"  # each folder keeps a limited number
    kept = Executables(root, program_key((model, engine, describe(chosen), kind)))
    if engine.stages > 1:
        staged = place_stages(model, engine, meshes)
        return PIPELINES[kind](model, engine, bank, staged, meshes, executables=kept)
    weights = place_all(model, engine, meshes[0])
    adapters = empty_adapters(model, engine, meshes[0]) if engine.adapter_slots else None
    return kind(model, engine, bank, weights, meshes[0], executables=kept, adapters=adapters)


def new_engine(
    model: ModelConfig = MODEL,
    engine: EngineConfig = ENGINE,
    *,
    samplers: tuple[str, ...] | None = FEW,
    kind: type[Programs] = Programs,
) -> Engine:
    return Engine(programs(model, engine, samplers=samplers, kind=kind))


def request(prompt: Iterable[int], max_tokens: int = 8, **more: object) -> GenerationRequest:
    """Return a request, by default greedy and with log-probabilities."""
    settings = {"temperature": 0.0, "top_logprobs": 0, **more}
    return GenerationRequest(tuple(int(i) for i in prompt), max_tokens, **settings)


def drive(engine: Engine, told: dict[int, Told], steps: int | None = None) -> None:
    """Step the engine until it is idle (or `steps` times) and collect the events in `told`."""
    done = 0
    while not engine.idle and (steps is None or done < steps):
        for event in engine.step():
            take(told, event)
        done += 1
        assert done < 100_000, "the engine does not come to an end"


def take(told: dict[int, Told], event: Event) -> None:
    record = told.setdefault(event.id, Told([], []))
    assert record.finished is None, "an event after the end"
    if isinstance(event, Token):
        record.tokens.append(event.token)
        if event.logprobs is not None:
            record.logprobs.append(event.logprobs.logprob)
    else:
        record.finished = event


def run(engine: Engine, requests: Sequence[GenerationRequest]) -> list[Told]:
    """Submit all requests at once, step until the engine is idle, and return the events of each."""
    told: dict[int, Told] = {}
    generations: list[Generation] = [engine.submit(one) for one in requests]
    drive(engine, told)
    return [told[generation.id] for generation in generations]


def random_schedule(
    engine: Engine, pool: Sequence[GenerationRequest], rng: np.random.Generator, least: int = 1
) -> list[tuple[int, Told, bool]]:
    """Submit up to six requests of a pool, each while others run, and cancel a few.

    They come from two clients, of which one sends most. Returns the index of each request in the
    pool, its events, and whether it was cancelled.
    """
    told: dict[int, Told] = {}
    submitted: dict[int, int] = {}
    cancelled = set()
    engine.is_shared = rng.random() < 0.5  # by both clients
    for index in rng.choice(len(pool), rng.integers(least, least + MOST_AT_ONCE), replace=False):
        generation = engine.submit(pool[index], client="one" if rng.random() < 0.7 else "other")
        submitted[generation.id] = int(index)
        drive(engine, told, int(rng.integers(0, 4)))
        if rng.random() < 0.15:
            engine.cancel(generation)
            cancelled.add(generation.id)
    drive(engine, told)
    return [(index, told[id_], id_ in cancelled) for id_, index in submitted.items()]


def closed(engine: Engine) -> bool:
    """Say whether the engine is idle, no slot is claimed, and the ledger's counts add up."""
    ledger = engine.ledger
    ended = ledger["finished"] + ledger["cancelled"] + ledger["failed"]
    return engine.idle and engine.slots.claimed == 0 and ledger["accepted"] == ended
