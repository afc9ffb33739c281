"""The cases of `accelerator.py`: what is checked and measured on the device."""

import argparse
import contextlib
import dataclasses
import functools
import importlib
import json
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from jaxllama.chips import chip_of
from jaxllama.config import EngineConfig, ModelConfig
from jaxllama.engine.choosing.bank import SamplerBank
from jaxllama.engine.engine import Engine
from jaxllama.engine.packing import PackedChunk
from jaxllama.engine.programs import Programs
from jaxllama.engine.state import row_start
from jaxllama.kernels import body_named, fastest_body
from jaxllama.kernels.body import GroupKind, MatrixGroup, Placement, PromptSpan
from jaxllama.kernels.packed import FLOAT8_TYPES, Packed, dense_of
from jaxllama.kernels.plain import PLAIN
from jaxllama.kernels.storage import CacheSize
from jaxllama.model.params import abstract_params
from jaxllama.model.prepare import Preparation
from jaxllama.request import GenerationRequest, Token
from tests.accelerators.subjects import MODELS, laid_out, least_step_bytes

ROOT = Path(__file__).resolve().parents[1]
STEPS, CALLS, RUNS, DEPTH = 8, 6, 3, 512
LAST_SECONDS = 40  # a case is not begun with less time left
MOST_ROWS_OF_PREFILL = 8  # engines with more slots measure decode alone


def installed_samplers() -> dict[str, Any]:
    """Import the samplers of this checkout, which need not be installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = {}
    for name, place in project["entry-points"]["jaxllama.samplers"].items():
        module, _, kind = place.partition(":")
        found[name] = getattr(importlib.import_module(module), kind)
    return found


class Lab:
    """The chip, what is asked for, and the time that is left."""

    def __init__(self, asked: argparse.Namespace) -> None:
        """Look at the device and say what it is."""
        self.asked = asked
        self.ends = time.monotonic() + asked.seconds
        self.device = jax.devices()[0]
        self.body = asked.kernels or fastest_body().name
        self.chip = chip_of(self.device.device_kind)
        self.bandwidth = self.flops = 0.0
        self.say(
            "machine",
            device=self.device.device_kind,
            platform=self.device.platform,
            kernels=self.body,
            jax=jax.__version__,
            chip=self.chip and self.chip._asdict(),
        )

    def say(self, case: str, **figures: Any) -> None:
        """Write one line of JSON at once."""
        left = round(self.ends - time.monotonic())
        rounded = {
            name: float(f"{value:.4g}") if isinstance(value, float) else value
            for name, value in figures.items()
        }
        print(json.dumps({"case": case, **rounded, "seconds_left": left}), flush=True)

    @contextlib.contextmanager
    def case(self, name: str) -> Iterator[None]:
        """Run one case; an error is written and does not end the others."""
        try:
            yield
        except Exception as error:  # the next case may work
            self.say(name, error=f"{type(error).__name__}: {error}"[:600])

    @property
    def has_time(self) -> bool:
        """Say whether another case may begin."""
        return self.ends - time.monotonic() > (0 if self.asked.tiny else LAST_SECONDS)


def seconds_of(run: Callable[[], Any], times: int = 5) -> float:
    """Return the least seconds of some runs, after one to warm up."""
    jax.block_until_ready(run())
    found = []
    for _ in range(times):
        started = time.perf_counter()
        jax.block_until_ready(run())
        found.append(time.perf_counter() - started)
    return min(found)


def limits(lab: Lab) -> None:
    """Measure the chip's own limits: the rates of a copy and of a matmul."""
    count = 1 << (20 if lab.asked.tiny else 28)
    x = jnp.ones(count, jnp.float32)
    add, dot = jax.jit(lambda x: x + 1.0), jax.jit(lambda a: a @ a)
    seconds = seconds_of(lambda: add(x))
    lab.bandwidth = 2 * x.nbytes / seconds
    size = 256 if lab.asked.tiny else 8192
    a = jnp.ones((size, size), jnp.bfloat16)
    seconds = seconds_of(lambda: dot(a))
    lab.flops = 2 * size**3 / seconds
    lab.say("limits", bytes_per_second=lab.bandwidth, flops=lab.flops)


def right_kernels(lab: Lab) -> None:
    """Compare the body's operations with their plain meaning, on the device."""
    body, random = body_named(lab.body), np.random.default_rng(0)
    for head_dim in (64,) if lab.asked.tiny else (64, 128):
        size = CacheSize(4, 2, 640, head_dim)

        def rows(count: int, size: CacheSize = size) -> Any:
            shapes = ((count, each, size.head_dim) for each in (8, 2, 2))
            angles = random.random((count, size.head_dim // 2), np.float32)
            given = tuple(jnp.asarray(random.standard_normal(s, np.float32)) for s in shapes)
            return given, (jnp.cos(angles), jnp.sin(angles))

        layers = [
            tuple(jnp.zeros(each.shape, each.dtype) for each in one.cache_arrays(size, "float32"))
            for one in (body, PLAIN)
        ]
        span = PromptSpan(*map(jnp.int32, (1, 0, 200)))
        given, errors = rows(256), {}
        found = [
            jax.jit(one.attention.prompt, static_argnums=4)(*given, layer, span, None)
            for one, layer in zip((body, PLAIN), layers, strict=True)
        ]
        errors["prompt"] = float(jnp.abs(found[0][0] - found[1][0])[:200].max())
        given, position = rows(4), jnp.array([0, 200, 3, 1], jnp.int32)
        active = jnp.array([False, True, False, False])
        steps = [
            jax.jit(one.attention.step, static_argnums=5)(*given, layer, position, active, None)[0]
            for one, (_, layer) in zip((body, PLAIN), found, strict=True)
        ]
        errors["step"] = float(jnp.abs(steps[0][1] - steps[1][1]).max())
        lab.say(
            f"attention, head size {head_dim}, float32", **errors, right=max(errors.values()) < 1e-3
        )
    mesh = jax.make_mesh((1, 1), ("data", "model"), (AxisType.Auto,) * 2)
    for name, packed in packed_matrices(random).items():
        x = random.standard_normal((8, 256), np.float32)
        to = Placement(mesh, body.dtypes[0] if lab.asked.tiny else "bfloat16", packed=True)
        (placed,) = body.lay_out(
            MatrixGroup(GroupKind.SINGLE, [packed], [None], ("width", "heads")), to
        )
        expected = x @ dense_of(packed)
        found_y = jax.jit(placed.weight.matmul)(jnp.asarray(x))
        error = float(np.abs(np.asarray(found_y) - expected).max() / np.abs(expected).max())
        lab.say(f"matmul, {name}", relative_error=error, right=error < 0.03)


def packed_matrices(random: np.random.Generator) -> dict[str, Packed]:
    """Return a random matrix of 256 inputs and 512 outputs in each kind of packing, by its name."""
    scales = random.random((512, 8), np.float32)
    half = scales.astype(np.float16)
    numbers = random.standard_normal((512, 256))
    return {
        "4 bits": Packed(random.integers(0, 256, (512, 128), np.uint8), half, None, 4, 32),
        "8 bits": Packed(random.integers(-127, 128, (512, 256), np.int8), half, None, 8, 32),
        **{kind.name: Packed(numbers.astype(kind), scales, None, 8, 32) for kind in FLOAT8_TYPES},
    }


def small_engine(device: Any, kernels: str, dtype: str) -> Any:
    """Make an engine of a small random model on a device."""
    model = ModelConfig(512, 256, 2, 4, 2, 64, 512, 2048, tied=True, name="small")
    engine = EngineConfig(
        slots=8,
        context=1024,
        kernels=kernels,
        dtype=dtype,
        candidates=64,
        cache_dtype=dtype,
        prefill_chunk=body_named(kernels).prefill_chunk,
        pack_prompts=body_named(kernels).packs_prompts(),
    )
    chunk = body_named(kernels).whole_tiles(engine.prefill_chunk, engine.slots)
    engine = dataclasses.replace(engine, prefill_chunk=chunk)
    mesh = jax.make_mesh((1, 1), ("data", "model"), (AxisType.Auto,) * 2, devices=[device])
    leaves, random = abstract_params(model), np.random.RandomState(0)
    preparation = Preparation(model, engine, mesh)
    for path, leaf in leaves.items():
        noise = random.standard_normal(leaf.shape).astype(np.float32)
        value = 1 + 0.1 * noise if len(leaf.shape) == 1 else 2 * noise / leaf.shape[0] ** 0.5
        preparation.add(path, leaf, value)
    names = ("top_k", "top_p", "min_p")
    kinds = {name: kind for name, kind in installed_samplers().items() if name in names}
    bank = SamplerBank(kinds, vocab=512, candidates=64, top_logprobs=20, body=kernels)
    return Engine(Programs(model, engine, bank, preparation.tree(), mesh))


def answers(engine: Any, requests: list[Any]) -> list[list[int]]:
    """Run requests together and return their tokens."""
    made = [engine.submit(each) for each in requests]
    found: dict[int, list[int]] = {each.id: [] for each in made}
    while not engine.idle:
        for event in engine.step():
            if isinstance(event, Token):
                found[event.id].append(event.token)
    return [found[each.id] for each in made]


def right_engine(lab: Lab) -> None:
    """Compare a small model with the CPU's exact path, and seeds alone with seeds in company."""

    def asked(seed: int, length: int, **more: Any) -> Any:
        prompt = tuple((7 * seed + 3 * i) % 512 for i in range(length))
        settings = {"temperature": 0.8, "top_logprobs": None, "seed": seed, "knobs": {"top_p": 0.9}}
        return GenerationRequest(prompt, 24, **{**settings, **more})

    greedy = [asked(i, 40 + i, temperature=0.0, knobs={}) for i in range(3)]
    device = small_engine(lab.device, lab.body, "float32")
    mine = answers(device, greedy)
    try:
        cpu = jax.devices("cpu")[0]
    except RuntimeError:
        lab.say("greedy text against the CPU", skipped="JAX has no CPU device here: JAX_PLATFORMS")
    else:
        exact = answers(small_engine(cpu, "xla", "float32"), greedy)
        lab.say("greedy text against the CPU", right=mine == exact)
    kind = "float32" if lab.asked.tiny else "bfloat16"
    drawn = [asked(seed, 20 + 31 * seed) for seed in range(8)]
    alone = [answers(small_engine_of(lab, kind), [each])[0] for each in drawn[:3]]
    together = answers(small_engine_of(lab, kind), drawn)
    lab.say("seeds alone and in company", right=alone == together[:3])
    if programs_of(lab, kind).spans:
        right_short_prompts(lab, programs_of(lab, kind))


def right_short_prompts(lab: Lab, programs: Programs) -> None:
    """Compare the bits that prompts leave in the cache, computed together and alone."""
    lengths = (programs.span_rows + 6, 9)
    prompts = [tuple(range(seed, seed + length)) for seed, length in enumerate(lengths)]
    state, chunk = programs.empty(), PackedChunk(programs.spans, programs.span_rows)
    for slot, ids in enumerate(prompts):
        padded = np.zeros(programs.chunk, np.int32)
        padded[: len(ids)] = ids
        numbers = np.int32(slot), padded, np.int32(0), np.int32(len(ids))
        state = programs.prefill(state, *numbers)
        chunk.add(slot, ids, 0)
    other = programs.prefill_packed(programs.empty(), *chunk.arrays())
    one, two = (columns_of(programs, each, prompts) for each in (state, other))
    lab.say("short prompts alone and together", right=all(map(np.array_equal, one, two)))


def columns_of(programs: Programs, state: Any, prompts: list[tuple[int, ...]]) -> list[Any]:
    """Return the cache columns of prompts, the first of which is in slot 0."""
    cache = jax.tree.leaves(programs.tree_of(state).cache)
    return [
        np.asarray(part[slot, :, : len(ids)]) for part in cache for slot, ids in enumerate(prompts)
    ]


@functools.cache
def programs_of(lab: Lab, kind: str) -> Any:
    """Compile the small model's programs once."""
    return small_engine(lab.device, lab.body, kind).programs


def small_engine_of(lab: Lab, kind: str) -> Any:
    """Make another engine on the same programs."""
    return Engine(programs_of(lab, kind))


def random_weights(tree: Any) -> Any:
    """Fill abstract weights with random numbers, on the device."""

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def make(shape: tuple[int, ...], dtype: Any, seed: Any) -> Any:
        key = jax.random.key(seed)
        if jnp.issubdtype(dtype, jnp.integer):
            return jax.random.randint(key, shape, 0, 127, jnp.int32).astype(dtype)
        noise = jax.random.uniform(key, shape, jnp.bfloat16)
        return (1 + 0 * noise if len(shape) == 1 else (noise - 0.5) * 0.02).astype(dtype)

    leaves, structure = jax.tree.flatten(tree)
    made = [make(each.shape, each.dtype, index) for index, each in enumerate(leaves)]
    return jax.tree.unflatten(structure, made)


def fast(lab: Lab, name: str, form: str, rows: int) -> None:
    """Measure decode and, with few rows, prefill of one shape."""
    model = MODELS[name]
    if lab.asked.tiny:
        model = ModelConfig(512, 128, 1, 2, 1, 64, 256, 8192, tied=model.tied, name="tiny")
    engine = engine_of(model, lab, rows, packed=form != "bf16")
    one = laid_out(dataclasses.replace(model, layers=1), engine, form)
    mesh = jax.make_mesh((1, 1), ("data", "model"), (AxisType.Auto,) * 2, devices=[lab.device])
    blocks = dict.fromkeys(range(model.layers), one["blocks"][0])
    params = random_weights({**one, "blocks": blocks})
    kinds = installed_samplers() if lab.asked.sampling else {}
    bank = SamplerBank(
        {each: kind for each, kind in kinds.items() if kind.common},
        vocab=model.vocab_size,
        candidates=engine.candidates,
        top_logprobs=20,
        body=lab.body,
    )
    programs = Programs(model, engine, bank, params, mesh)
    state = fast_decode(lab, programs, f"{name} {form}")
    if rows <= MOST_ROWS_OF_PREFILL:
        state = fast_prefill(lab, programs, state, f"{name} {form}")
        if programs.spans and rows >= programs.spans:
            fast_short_prompts(lab, programs, state, f"{name} {form}")
    jax.clear_caches()


def fast_decode(lab: Lab, programs: Programs, name: str) -> Any:
    """Measure decode with all slots in use; return the state."""
    model, engine, rows = programs.model, programs.engine, programs.engine.slots
    depth = 16 if lab.asked.tiny else DEPTH
    state, prompt = programs.empty(), tuple(range(1, depth + 1))
    for slot in range(rows):
        request = GenerationRequest(prompt, engine.context - depth, temperature=0.0)
        start = row_start(request, prompt, engine, programs.bank)
        state = programs.admit(state, np.int32(slot), start)
    state, output = programs.decode(state, np.int32(STEPS), lean=True)
    jax.block_until_ready(output)
    started, sent = time.perf_counter(), []
    for _ in range(CALLS):
        before = time.perf_counter()
        state, output = programs.decode(state, np.int32(STEPS), lean=True)
        sent.append(time.perf_counter() - before)
    jax.block_until_ready((state, output))
    seconds = (time.perf_counter() - started) / (CALLS * STEPS)
    blueprints = programs.blueprints
    least = least_step_bytes(blueprints, depth + STEPS + STEPS * CALLS // 2)
    lab.say(
        f"decode {name}, {rows} rows",
        ms_per_step=1e3 * seconds,
        tokens_per_second=rows / seconds,
        gigabytes=least / 1e9,
        share_of_bandwidth=least / seconds / lab.bandwidth if lab.bandwidth else None,
        host_us_per_step=1e6 * min(sent) / STEPS,
        model=model.name,
    )
    if lab.asked.trace and not any(Path(lab.asked.trace).glob("**/*.pb")):
        with jax.profiler.trace(lab.asked.trace):
            state, output = programs.decode(state, np.int32(STEPS), lean=True)
            jax.block_until_ready(output)
    return state


def fast_prefill(lab: Lab, programs: Programs, state: Any, name: str) -> Any:
    """Measure prompts of one slot; return the state."""
    model, chunk = programs.model, programs.chunk
    ids = np.ones(chunk, np.int32)
    for tokens in (16,) if lab.asked.tiny else (512, 4096):
        if tokens > programs.engine.columns:
            continue

        def prompt(state: Any, tokens: int = tokens) -> Any:
            for at in range(0, tokens, chunk):
                count = np.int32(min(chunk, tokens - at))
                state = programs.prefill(state, np.int32(0), ids, np.int32(at), count)
            return state

        seconds, state = timed(prompt, state)
        inner = model.parameters - model.vocab_size * model.width * (1 if model.tied else 2)
        scores = 2 * model.layers * model.heads * model.head_dim * tokens**2  # causal: half of all
        flops = 2 * inner * tokens + scores
        lab.say(
            f"prefill {name}, {tokens} tokens",
            tokens_per_second=tokens / seconds,
            share_of_flops=flops / seconds / lab.flops if lab.flops else None,
            share_of_data_sheet=lab.chip and flops / seconds / lab.chip.flops,
        )
    return state


def fast_short_prompts(lab: Lab, programs: Programs, state: Any, name: str) -> None:
    """Measure short prompts, one for each span of a tile: in one call together, and alone."""
    spans, rows = programs.spans, programs.span_rows
    tokens = rows // 2
    places = np.stack([np.arange(spans), np.zeros(spans), np.full(spans, tokens)]).astype(np.int32)
    tile, alone = np.ones(programs.tile, np.int32), np.ones(programs.chunk, np.int32)

    def together(state: Any) -> Any:
        return programs.prefill_packed(state, tile, places)

    def one_by_one(state: Any) -> Any:
        for slot in range(spans):
            numbers = np.int32(slot), alone, np.int32(0), np.int32(tokens)
            state = programs.prefill(state, *numbers)
        return state

    packed, state = timed(together, state)
    apart, _ = timed(one_by_one, state)
    lab.say(
        f"{spans} prompts of {tokens} tokens {name}",
        tokens_per_second_together=spans * tokens / packed,
        tokens_per_second_alone=spans * tokens / apart,
    )


def timed(call: Callable[[Any], Any], state: Any) -> tuple[float, Any]:
    """Return the mean seconds of RUNS runs of `call`, after one to warm up, and the last state."""
    state = jax.block_until_ready(call(state))
    started = time.perf_counter()
    for _ in range(RUNS):
        state = call(state)
    jax.block_until_ready(state)
    return (time.perf_counter() - started) / RUNS, state


def engine_of(model: Any, lab: Lab, rows: int, *, packed: bool) -> Any:
    """Return the size of an engine with so many slots."""
    body = body_named(lab.body)
    kind = "float32" if lab.asked.tiny else "bfloat16"
    engine = EngineConfig(
        slots=rows, context=256 if lab.asked.tiny else 4096 if rows <= 32 else 1024,
        steps_per_sync=STEPS, candidates=min(256, model.vocab_size), kernels=body.name, dtype=kind,
        packed=packed, cache_dtype=kind, prefill_chunk=body.prefill_chunk,
        pack_prompts=body.packs_prompts(),
    )  # fmt: skip
    return dataclasses.replace(engine, prefill_chunk=body.whole_tiles(engine.prefill_chunk, rows))


def run(asked: argparse.Namespace) -> None:
    """Run all cases that fit into the time."""
    lab = Lab(asked)
    with lab.case("limits"):
        limits(lab)
    checks = {"kernels": right_kernels, "engine": right_engine}
    for name in filter(None, asked.checks.split(",")):
        with lab.case(name):
            checks[name](lab)
    for name in asked.models.split(","):
        for form in asked.forms.split(","):
            for rows in map(int, asked.rows.split(",")):
                case = f"{name} {form}, {rows} rows"
                if not lab.has_time:
                    lab.say(case, skipped="no time left")
                    continue
                with lab.case(case):
                    fast(lab, name, form, rows)
