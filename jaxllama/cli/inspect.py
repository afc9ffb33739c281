"""`jaxllama inspect`: show what a model is, and the memory it will need, without loading it."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from jaxllama.chips import Chip, chip_named
from jaxllama.cli.memory import describe_memory
from jaxllama.cli.options import ModelCommand
from jaxllama.cli.terminal import as_json, startup_shown
from jaxllama.config import EngineConfig, ModelConfig
from jaxllama.engine.blueprints import purposes_of
from jaxllama.engine.choosing.knobs import catalogue
from jaxllama.engine.executables import PROGRAMS, Executables
from jaxllama.formats import PromptFormat, choose_format
from jaxllama.kernels import body_for, body_named
from jaxllama.loading import (
    adapter_sizes,
    choose_kernels,
    engine_config,
    key_of,
    open_draft,
    placed_weights,
    sampling_defaults_of,
    tokenizer_for,
)
from jaxllama.model import rope
from jaxllama.registry import FORMATS, SAMPLERS, load_plugins
from jaxllama.sampling import Sampler
from jaxllama.text.tokenizer import Tokenizer
from jaxllama.weights import open_checkpoint
from jaxllama.weights.base import Checkpoint
from jaxllama.weights.store import cache_folder, resolve

USABLE = 0.9  # of a chip's memory: the rest is for programs and their temporaries
NOT_LOADED = (
    "load_model",
    "load_platform",
    "load_mesh",
    "load_stage_layers",
    "load_prompt_format",
    "load_sampling_defaults",
    "load_compile_cache",
    "load_strict_compile",
)
ROPE = ("rope_scale", "rope_alpha", "rope_theta")
LORA = ("lora", "lora_slots", "lora_rank")
NO_SIZES = ("kernels", "threads", "tokenizer", "draft_model", *ROPE, *LORA)


@click.command("inspect", cls=ModelCommand, leave_out=NOT_LOADED)
@click.argument("model", required=False)
@click.option(
    "--programs",
    "wants_programs",
    is_flag=True,
    help="Also list the compiled programs: purpose, size, seconds to compile. Reads the weights.",
)
@click.option(
    "--platform",
    "chip_name",
    metavar="PLATFORM:CHIP",
    help="Say what fits into an accelerator, for example gpu:h100 or tpu:v5e.",
)
@click.option("--json", "wants_json", is_flag=True, help="Print one JSON object.")
def command(
    *,
    model: str | None,
    wants_programs: bool,
    chip_name: str | None,
    wants_json: bool,
    loading: dict[str, Any],
) -> None:
    """Show what MODEL is and how much memory it needs with these settings.

    MODEL is a name, file, folder, hf:owner/name or http address (default: smollm2-135m). A model
    that is not on this machine yet is downloaded. --programs also lists its compiled programs,
    --platform says what fits into an accelerator. With --json one JSON object is printed.
    """
    sizes = {name: value for name, value in loading.items() if name not in NO_SIZES}
    chip = None if chip_name is None else chip_named(chip_name)
    with startup_shown(keeps_programs=True) as report:
        path = resolve(model, progress=report)
    with (
        open_checkpoint(path) as checkpoint,
        open_draft(loading.get("draft_model")) as draft,
    ):
        config = rope.overridden(checkpoint.config, *(loading.get(name) for name in ROPE))
        if chip is None:
            body = choose_kernels(loading.get("kernels", "auto"), None, config)
        else:
            body = loading.get("kernels") or body_for(chip.platform, config).name
            sizes = {"dtype": "bfloat16", "cache_dtype": "bfloat16", **sizes}
        lora, slots, rank = (loading.get(name) for name in LORA)
        sizes |= adapter_sizes(lora or {}, slots, rank)
        engine = engine_config(config, body, **sizes, draft=draft)
        config = rope.fitted(config, engine.context)
        tokenizer = tokenizer_for(checkpoint, loading.get("tokenizer"), draft)
        keeps_float8 = chip is None or chip.keeps_float8
        memory = describe_memory(checkpoint, engine, draft, keeps_float8=keeps_float8)
        found = {
            "path": str(path),
            "reader": type(checkpoint).__name__,
            "config": dataclasses.asdict(config),
            "tensors": describe_tensors(checkpoint),
            "text": describe_text(tokenizer),
            "sampling_defaults": describe_sampling(path, checkpoint),
            "memory": memory,
            "engine": describe_engine(engine),
            "draft_model": draft and dataclasses.asdict(draft.config),
        }
        if chip is not None:
            found["chip"] = describe_fit(chip, memory)
        if wants_programs:
            found["programs"] = describe_programs(checkpoint, draft, config, engine, tokenizer)
    if wants_json:
        click.echo(as_json(found))
        return
    for line in lines(found):
        click.echo(line)


def describe_fit(chip: Chip, memory: Mapping[str, Any]) -> dict[str, Any]:
    """Return whether a model fits into a chip's memory, how many slots fit, and the fastest step.

    `memory` has the model's bytes by purpose, such as "weights" or "cache", and the number of slots
    in the cache. The fastest decode step is the time that the chip takes to read the weights, in
    milliseconds.
    """
    room = int(USABLE * chip.memory)
    slot = (memory["cache"] + memory["draft_cache"]) // memory["slots"]
    fixed = ("weights", "unpacked", "adapters", "draft_weights")
    left = room - sum(memory[name] for name in fixed)
    return {
        "chip": chip.kind,
        "memory": chip.memory,
        "usable": room,
        "fits": memory["total"] <= room,
        "slots": max(0, left // slot),
        "step_floor_ms": 1e3 * memory["weights"] / chip.bandwidth,
    }


def describe_tensors(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the number and bytes of a checkpoint's tensors, in total and by storage type."""
    kinds = checkpoint.kinds.values()
    count, held = Counter(kind for kind, _ in kinds), Counter[str]()
    for kind, size in kinds:
        held[kind] += size
    return {
        "count": len(checkpoint.shapes),
        "weights": sum(map(math.prod, checkpoint.shapes.values())),
        "bytes": held.total(),
        "kinds": {kind: {"tensors": count[kind], "bytes": held[kind]} for kind in sorted(count)},
    }


def describe_text(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return facts about the tokenizer, and the prompt format that suits the model."""
    formats = load_plugins(FORMATS, PromptFormat)  # type: ignore[type-abstract]
    return {
        "vocabulary": tokenizer.vocab_size,
        "begin_id": tokenizer.begin_id,
        "end_ids": list(tokenizer.end_ids),
        "chat_template": tokenizer.text.template is not None,
        "prompt_format": choose_format(formats.loaded, tokenizer.text).name,
    }


def describe_sampling(path: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the request parameters that the model's maker recommends, with their values.

    They are used where a request sets none. `path` is the model's file or folder.
    """
    specs = catalogue(load_plugins(SAMPLERS, Sampler).loaded)
    return sampling_defaults_of("auto", path, checkpoint, specs)


def describe_engine(engine: EngineConfig) -> dict[str, Any]:
    """Return the name of the kernels, and the limits on the work of one prefill or decode call."""
    return {
        "kernels": engine.kernels,
        "prompt_tile": body_named(engine.kernels).prompt_tile(engine.slots),
        "prefill_chunk": engine.prefill_chunk,
        "pack_prompts": engine.pack_prompts,
        "steps_per_sync": engine.steps_per_sync,
        "sync_ms": engine.sync_ms,
        "draft_tokens": engine.draft_tokens,
    }


def describe_programs(
    checkpoint: Checkpoint,
    draft: Checkpoint | None,
    config: ModelConfig,
    engine: EngineConfig,
    tokenizer: Tokenizer,
) -> dict[str, Any]:
    """Return the cache key and folder of the compiled programs, and which of them are on disk.

    The key identifies the model with these settings. All weights are read, because the key depends
    on their layout in memory. `draft` is the draft model, None without one.
    """
    params = placed_weights(checkpoint, engine, None, draft)[1]
    samplers = load_plugins(SAMPLERS, Sampler).loaded
    key = key_of(config, engine, params, samplers, tokenizer.digest)
    kept = Executables(cache_folder() / PROGRAMS, key)
    found = {}
    for name, purpose in purposes_of(engine, adapters=bool(engine.adapter_slots)).items():
        about = kept.about(name)
        found[name] = {"purpose": purpose, "kept": None if about is None else about._asdict()}
    return {"key": key, "folder": str(kept.folder), "list": found}


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the description of the model, `found`, as lines of text."""
    config, tensors, text, memory = (found[key] for key in ("config", "tensors", "text", "memory"))
    yield f"{config.pop('name') or 'model'}: {found['path']} ({found['reader']})"
    yield from config_lines(config)
    yield f"tensors  {tensors['count']}, {tensors['weights'] / 1e6:,.1f} M weights"
    for kind, each in tensors["kinds"].items():
        yield f"         {kind:6} {each['tensors']:5} tensors {size_text(each['bytes']):>10}"
    ends = ", ".join(map(str, text["end_ids"]))
    yield f"text     {text['vocabulary']} tokens, begin {text['begin_id']}, end {ends}"
    template = "yes" if text["chat_template"] else "no"
    yield f"         chat template: {template}; prompt format: {text['prompt_format']}"
    sampling = ", ".join(f"{name} {each}" for name, each in found["sampling_defaults"].items())
    yield f"sampling {sampling or 'none'} recommended by the maker: used where a request sets none"
    yield f"memory   {size_text(memory['total'])} and what the programs work with"
    yield f"         weights {size_text(memory['weights'])} ({memory['dtype']})"
    yield (
        f"         cache {size_text(memory['cache'])} ({memory['slots']} slots of "
        f"{memory['context']} tokens, {memory['cache_dtype']})"
    )
    if memory["adapters"]:
        yield f"         room for LoRA adapters {size_text(memory['adapters'])}"
    if found["draft_model"] is not None:
        yield (
            f"         draft model {found['draft_model']['name']}: weights "
            f"{size_text(memory['draft_weights'])}, cache {size_text(memory['draft_cache'])}"
        )
    if memory["unpacked"]:
        yield f"         one unpacked matrix at a time {size_text(memory['unpacked'])} (float32)"
    engine = found["engine"]
    together = ", short prompts together" if engine["pack_prompts"] else ""
    yield (
        f"engine   kernels {engine['kernels']}: up to {engine['prefill_chunk']} prompt tokens per "
        f"prefill call, in tiles of {engine['prompt_tile']}{together}"
    )
    yield (
        f"         up to {engine['steps_per_sync']} steps per decode call, about "
        f"{engine['sync_ms']:g} ms"
    )
    if "chip" in found:
        chip = found["chip"]
        verdict = "fits" if chip["fits"] else "does not fit"
        yield (
            f"chip     {chip['chip']}: {verdict} into {size_text(chip['usable'])} of its "
            f"{size_text(chip['memory'])}; room for {chip['slots']} slots of this context"
        )
        floor = chip["step_floor_ms"]
        yield f"         a decode step takes at least {floor:.2f} ms to read the weights"
    if engine["draft_tokens"]:
        yield f"         up to {engine['draft_tokens']} drafted tokens per step and answer"
    if "programs" in found:
        yield from program_lines(found["programs"])


def program_lines(programs: Mapping[str, Any]) -> Iterator[str]:
    """Yield the list of compiled programs as lines of text."""
    yield f"programs key {programs['key']}, in {programs['folder']}"
    for name, each in programs["list"].items():
        kept, state = each["kept"], "not kept"
        if kept is not None:
            state = f"{size_text(kept['size'])}, {kept['seconds']:.1f} s to compile"
        yield f"         {name:12} {state:30} {each['purpose']}"


def config_lines(config: dict[str, Any]) -> Iterator[str]:
    """Yield the shape of the model, its rotary embedding, the kinds of layers and the experts."""
    turned, local, pattern, experts = (
        config.pop(name) for name in ("rope", "local_rope", "pattern", "experts")
    )
    usual = {field.name: field.default for field in dataclasses.fields(ModelConfig)}
    stated = {key: each for key, each in config.items() if each and each != usual[key]}
    yield "config   " + ", ".join(f"{key} {each}" for key, each in stated.items())
    yield f"rope     {rope_text(turned)}"
    if local is not None:
        yield f"         {rope_text(local)} in layers with a window"
    if len(pattern) > 1:
        kinds = {"windowed": "have the window", "rotated": "rotate", "sparse": "have experts"}
        counts = {
            words: sum(spec[name] for spec in pattern)
            for name, words in kinds.items()
            if not all(spec[name] for spec in pattern)
        }
        yield "layers   " + ", ".join(
            f"{count} of {len(pattern)} {words}" for words, count in counts.items()
        )
    if experts is not None:
        yield (
            f"experts  {experts['count']} of width {experts['width']}, {experts['used']} used per "
            f"token"
        )


def rope_text(rope: Mapping[str, Any]) -> str:
    """Return as text the base of the rotary embedding `rope`, and its scaling for long contexts."""
    kind, factor = rope["kind"], rope["factor"]
    rules = {"none": "", "factors": f", {len(rope['factors'])} factors"}
    return f"theta {rope['theta']:g}{rules.get(kind, f', {kind} by {factor:g}')}"


def size_text(size: int) -> str:
    """Return a number of bytes as text, in MiB or GiB."""
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
