"""Loading: make the parts of an LLM from a model's files and the caller's settings.

Used by `LLM.load`, and by inspection and benchmarks, which need the same decisions. Decides and
reads; owns nothing.
"""

import hashlib
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxllama.config import (
    KEY_BLOCK,
    RANK_STEP,
    SAMPLING_DEFAULTS,
    EngineConfig,
    ModelConfig,
)
from jaxllama.engine.adapters import LoadedAdapters, check_adapter_name, loaded
from jaxllama.engine.choosing.knobs import check_knob
from jaxllama.engine.draft_model import DRAFT
from jaxllama.engine.program_key import digest_code, program_key
from jaxllama.engine.prompt_store import PromptStore
from jaxllama.errors import BadTokenizer, ConfigError, InvalidParameter, JaxLlamaError
from jaxllama.formats import ModelText, PromptFormat, choose_format
from jaxllama.kernels import body_named, choose_body
from jaxllama.kernels.body import Body
from jaxllama.limits import LIMITS, check
from jaxllama.model import rope
from jaxllama.model.cache import column_bytes
from jaxllama.model.key_heads import with_copies
from jaxllama.model.params import Leaf, Tree, abstract_params, loading_order
from jaxllama.model.prepare import Preparation
from jaxllama.model.stages import choose_layers, paths_in_stages, stage_configs
from jaxllama.registry import FORMATS, load_plugins
from jaxllama.sampling import KnobSpec, Sampler, token_sets_of
from jaxllama.sharding import MeshSizes, make_meshes, parse_mesh
from jaxllama.startup import Progress
from jaxllama.text.opening import open_tokenizer
from jaxllama.text.tokenizer import Tokenizer
from jaxllama.text.vocabulary import TokenKind
from jaxllama.weights import open_checkpoint
from jaxllama.weights.base import Checkpoint, fill
from jaxllama.weights.lora import digest_of, rank_of, read_adapter
from jaxllama.weights.store import recommended_for, resolve

logger = logging.getLogger(__name__)

MEMORY, GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")

DEFAULT_SLOTS = 16
DEFAULT_CONTEXT = 4096
PART_OF_MEMORY = 8  # the prompt cache takes one part in so many of the free memory
MIB = 1 << 20
LEAST_OF_VOCABULARY = 0.9  # models have more places than tokens, to fill blocks
CANDIDATES = 256  # tokens that a filter sees before the bank widens the list
DRAFT_TOKENS = 4  # of a step with a draft model


def choose_kernels(asked: str, mesh: str | None, model: ModelConfig) -> str:
    """Return the name of the kernels to run: `asked`, or for "auto" the fastest that can run.

    `mesh` is the mesh setting, such as "data=2,model=4"; None: one device. Logs a warning if the
    CPU has to run without C++ kernels.
    """
    parts = parse_mesh(mesh).model
    body, passed_over = choose_body(asked, with_copies(model, parts), parts)
    if passed_over and jax.default_backend() == "cpu":
        logger.warning("no C++ kernels, so plain XLA, several times slower: %s", passed_over)
    return body.name


def engine_config(  # noqa: PLR0913 - the settings of `load` that size the engine
    model: ModelConfig,
    body: str,
    *,
    slots: int | None = None,
    context: int | None = None,
    dtype: str | None = None,
    cache_dtype: str | None = None,
    mesh: str | None = None,
    stage_layers: str | None = None,
    packed: bool = False,
    prefill_chunk: int | None = None,
    pack_prompts: bool | None = None,
    steps_per_sync: int | None = None,
    sync_ms: float | None = None,
    adapter_slots: int = 0,
    adapter_rank: int = RANK_STEP,
    draft_tokens: int | None = None,
    draft: Checkpoint | None = None,
) -> EngineConfig:
    """Return the engine's sizes and types, with defaults for this model, kernels and machine.

    `body` is the name of the kernels, `draft` the draft model; the others are the arguments of
    `LLM.load` of the same name, None: the default. `adapter_slots` and `adapter_rank` bound the
    number and rank of LoRA adapters. Rounds `prefill_chunk` up to whole prompt tiles, the tokens
    that the kernels compute together. Raises InvalidParameter or ConfigError for a value that
    the model or the kernels do not support.
    """
    sizes = parse_mesh(mesh)
    data, parts, stages = sizes
    if context is not None and context > model.max_context:
        raise InvalidParameter(
            f"context is {context}; this model was trained for at most {model.max_context}",
            "context",
        )
    on_cpu = jax.default_backend() == "cpu"
    chosen = body_named(body)
    if dtype is not None and dtype not in chosen.dtypes:
        raise ConfigError(
            f"dtype is {dtype!r}; kernels {body!r} take one of {', '.join(chosen.dtypes)}"
        )
    if draft_tokens is None:
        draft_tokens = 0 if draft is None else DRAFT_TOKENS
    chosen.check_drafts(draft_tokens, data * parts * stages)
    if pack_prompts is None:
        pack_prompts = stages == 1 and chosen.packs_prompts()
    chosen.check_packing(pack=pack_prompts)
    engine = EngineConfig(
        slots=-(-DEFAULT_SLOTS // data) * data if slots is None else slots,
        context=min(model.max_context, DEFAULT_CONTEXT) if context is None else context,
        prefill_chunk=chosen.prefill_chunk if prefill_chunk is None else prefill_chunk,
        pack_prompts=pack_prompts,
        steps_per_sync=chosen.steps_per_sync if steps_per_sync is None else steps_per_sync,
        sync_ms=chosen.sync_ms if sync_ms is None else sync_ms,
        candidates=min(CANDIDATES, model.vocab_size),
        kernels=chosen.name,
        dtype=dtype or chosen.default_dtype(),
        packed=packed,
        cache_dtype=cache_dtype or ("float16" if on_cpu else "bfloat16"),
        data_parallel=data,
        model_parallel=parts,
        stage_layers=choose_layers(stage_layers, stages, model, memory_of_stages(sizes)),
        adapter_slots=adapter_slots,
        adapter_rank=adapter_rank,
        draft_tokens=draft_tokens,
        row_cost=1.0 if chosen.row_cost is None else chosen.row_cost(),
    )
    return replace(
        engine,
        prefill_chunk=chosen.whole_tiles(engine.prefill_chunk, engine.slots),
        draft_model=None if draft is None else draft_config(draft, chosen, engine.context),
    )


def memory_of_stages(sizes: MeshSizes) -> list[int | None]:
    """Return the bytes of memory of all devices of each pipeline stage; None: they do not say.

    The devices of a stage have equal parts, so the result is the least memory of one of them, times
    their number. The list is empty for a single stage, and if several hosts run the model.
    """
    found: list[int | None] = []
    if sizes.stage == 1 or jax.process_count() > 1:
        return found
    size, devices = sizes.data * sizes.model, jax.devices()
    for stage in range(sizes.stage):
        stats = [each.memory_stats() for each in devices[stage * size : (stage + 1) * size]]
        limits = [each.get("bytes_limit") if each else None for each in stats]
        known = [limit for limit in limits if limit]
        found.append(min(known) * size if len(known) == size else None)
    return found


def draft_config(draft: Checkpoint, body: Body, context: int) -> ModelConfig:
    """Return the config of a draft model for slots of `context` tokens.

    Raises ConfigError if the kernels `body` cannot run it.
    """
    if complaint := body.refuses(draft.config, 1):
        raise ConfigError(
            f"kernels {body.name!r} cannot run the draft model {draft.config.name}: {complaint}"
        )
    return rope.fitted(draft.config, context)


@contextmanager
def open_draft(
    model: str | Path | None, progress: Progress | None = None
) -> Iterator[Checkpoint | None]:
    """Open the files of a draft model for a `with` block, downloading it if needed.

    `model` is its name, file or folder; None gives None.
    """
    if model is None:
        yield None
        return
    with open_checkpoint(resolve(model, progress=progress)) as checkpoint:
        yield checkpoint


def check_vocabulary(tokenizer: Tokenizer, draft: Checkpoint) -> None:
    """Raise ConfigError unless the tokens of a draft model are those of the model's tokenizer.

    Unused tokens at the end may differ: files fill up their tables with them.
    """
    own, other = used_texts(tokenizer), used_texts(draft.tokenizer())
    for token, (text, drafts) in enumerate(zip_longest(own, other)):
        if text != drafts:
            raise ConfigError(
                f"the draft model {draft.config.name} has other tokens than the model: token "
                f"{token} is {text!r:.80} in the model and {drafts!r:.80} in the draft model (they "
                f"have {len(own)} and {len(other)}); expected a draft model with the same "
                f"vocabulary, such as a smaller model of the same family"
            )


def used_texts(tokenizer: Tokenizer) -> list[str]:
    """Return the text of each token by id, without the unused ones at the end."""
    vocabulary = tokenizer.vocabulary
    return list(vocabulary.texts[: len(vocabulary.kinds.rstrip(bytes((TokenKind.UNUSED,))))])


def adapter_sizes(
    lora: Mapping[str, str | Path], slots: int | None, rank: int | None
) -> dict[str, int]:
    """Return a dict with `adapter_slots` and `adapter_rank`, arguments of `engine_config`.

    `lora` maps names of LoRA adapters to their folders. `slots`: how many can be loaded together;
    None: as many as `lora` has. `rank`: the highest rank of an adapter; None: the highest in
    `lora`. The rank is rounded up to a multiple of 16. Raises InvalidParameter for fewer slots than
    adapters.
    """
    for name in lora:
        check_adapter_name(name)
    if slots is not None and slots < len(lora):
        raise InvalidParameter(
            f"lora_slots is {slots}, and {len(lora)} adapters are given; expected at least as many",
            "lora_slots",
        )
    ranks = [rank_of(Path(folder)) for folder in lora.values()] if rank is None else [rank]
    highest = max((RANK_STEP, *ranks))
    return {
        "adapter_slots": len(lora) if slots is None else slots,
        "adapter_rank": -(-highest // RANK_STEP) * RANK_STEP,
    }


def load_adapters(
    adapters: LoadedAdapters | None,
    lora: Mapping[str, str | Path],
    model: ModelConfig,
    engine: EngineConfig,
    *,
    only_now: bool,
) -> str:
    """Load the LoRA adapters in `lora`, which maps names to folders; return a digest of all.

    The digest covers names and weights. `adapters` takes the loaded ones; None: no adapter can be
    loaded, so `lora` must be empty. `only_now`: refuse to load others later.
    """
    digest = hashlib.sha256()
    for name, folder in lora.items():
        weights = read_adapter(Path(folder), model, engine)
        loaded(adapters).load(name, weights)
        digest.update(name.encode() + digest_of(weights))
    if adapters is not None and only_now:
        adapters.fix()
    return digest.hexdigest()


def prompt_store_for(model: ModelConfig, engine: EngineConfig, mib: float | None) -> PromptStore:
    """Return the host-memory store of prompts' KV caches, with room for `mib` MiB.

    `mib` None: with room for an eighth of the free memory.
    """
    if mib is not None and not 0 <= mib < math.inf:
        raise InvalidParameter(
            f"prompt_cache_mib is {mib}; expected 0 or more (0: no cache)", "prompt_cache_mib"
        )
    most = free_memory() // PART_OF_MEMORY if mib is None else int(mib * MIB)
    return PromptStore(most, KEY_BLOCK * column_bytes(model, engine))


def check_prompt_folder(folder: str | Path, store: PromptStore) -> None:
    """Raise InvalidParameter if the store has no room for a prompt, or if `folder` is a file."""
    if not store.is_on:
        raise InvalidParameter(
            "prompt_cache_dir is given, and the prompt cache has no room for any prompt; expected "
            "a larger prompt_cache_mib, or no folder",
            "prompt_cache_dir",
        )
    if Path(folder).exists() and not Path(folder).is_dir():
        raise InvalidParameter(
            f"prompt_cache_dir is {str(folder)!r}, which is a file; expected a folder",
            "prompt_cache_dir",
        )


def check_host_settings(
    prompt_cache_mib: float | None,
    prompt_cache_dir: str | Path | None,
    draft_model: str | Path | None,
) -> None:
    """Raise ConfigError for settings that a model on several hosts does not support.

    The parameters are arguments of `LLM.load`; each must be None, 0 or empty.
    """
    given = {
        "prompt_cache_mib": bool(prompt_cache_mib),
        "prompt_cache_dir": prompt_cache_dir is not None,
        "draft_model": draft_model is not None,
    }
    wrong = [name for name, is_given in given.items() if is_given]
    if wrong:
        raise ConfigError(
            f"{', '.join(wrong)}: not supported with several hosts; leave out or run on one host"
        )


def free_memory() -> int:
    """Return how many bytes of memory this process can still use; 0 if that is unknown.

    It is the smaller one of the machine's free memory and the rest of the cgroup's limit.
    """
    found = []
    try:
        lines = MEMORY.read_text().splitlines()
        found += [int(each.split()[1]) * 1024 for each in lines if each.startswith("MemAvailable")]
        most, used = (int((GROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        found.append(max(0, most - used))
    except (OSError, ValueError):  # no such system, or no limit ("max")
        pass
    return min(found, default=0)


def placed_weights(
    checkpoint: Checkpoint,
    engine: EngineConfig,
    progress: Progress | None,
    draft: Checkpoint | None = None,
) -> tuple[list[Mesh], Tree]:
    """Read every weight and place it on its devices; return the meshes and the tree of weights.

    With pipeline stages there is a mesh for each stage, the tree has the weights of each stage by
    its index, and `draft` is ignored. Without stages there is one mesh, and the weights of a
    `draft` model are a branch of the tree. `progress` is called with ("weights", weights done,
    weights in total); None: no calls.
    """
    meshes = make_meshes(engine, checkpoint.config)
    if engine.stages > 1:
        return meshes, read_stages(checkpoint, engine, meshes, progress)
    return meshes, read_weights(checkpoint, engine, meshes[0], progress, draft)


def read_weights(
    checkpoint: Checkpoint,
    engine: EngineConfig,
    mesh: Mesh,
    progress: Progress | None,
    draft: Checkpoint | None = None,
) -> Tree:
    """Read every weight, one at a time, and place it on its devices; return the tree of weights.

    On a `mesh` of several devices, only the parts of matrices that this machine's devices hold are
    read. `progress` is called with ("weights", weights done, weights in total); None: no calls. The
    weights of a `draft` model are a branch of the tree.
    """

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress("weights", done, total)

    started = time.perf_counter()
    abstract = abstract_params(checkpoint.config)
    preparation = Preparation(checkpoint.config, engine, mesh)
    leaves, in_parts = loading_order(abstract), mesh.size > 1
    fill(leaves, checkpoint, preparation.add, report, in_parts=in_parts)
    logger.info("weights of %s in %.2f s", checkpoint.config.name, time.perf_counter() - started)
    tree = preparation.tree()
    return tree if draft is None else {**tree, DRAFT: read_weights(draft, engine, mesh, progress)}


def read_stages(
    checkpoint: Checkpoint, engine: EngineConfig, meshes: Sequence[Mesh], progress: Progress | None
) -> Tree:
    """Read every weight, one at a time, and place it on the devices of its pipeline stage.

    `meshes` has the mesh of each stage. Returns a dict from the index of a stage to its tree of
    weights. `progress` is called with ("weights", weights done, weights in total); None: no calls.
    """

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress("weights", done, total)

    model, layers = checkpoint.config, engine.stage_layers
    preparations = [
        Preparation(config, engine, mesh)
        for config, mesh in zip(stage_configs(model, layers), meshes, strict=True)
    ]
    places = paths_in_stages(model, layers)

    def place(path: str, leaf: Leaf, value: Any) -> None:
        for stage, own in places[path].items():
            preparations[stage].add(own, leaf, value)

    started = time.perf_counter()
    leaves, in_parts = loading_order(abstract_params(model)), meshes[0].size > 1
    fill(leaves, checkpoint, place, report, in_parts=in_parts)
    seconds, division = time.perf_counter() - started, ", ".join(map(str, layers))
    logger.info("weights of %s in %.2f s, stages of %s layers", model.name, seconds, division)
    return {stage: each.tree() for stage, each in enumerate(preparations)}


def stored_as(params: Tree) -> list[str]:
    """Return texts that describe the structure, dtypes and shapes of the weights.

    They are a part of the key under which the compiled programs are kept.
    """
    leaves, tree = jax.tree.flatten(params)
    return [str(tree), *(f"{leaf.dtype}{leaf.shape}" for leaf in leaves)]


def tokenizer_for(
    checkpoint: Checkpoint, path: Path | str | None, draft: Checkpoint | None = None
) -> Tokenizer:
    """Return the tokenizer in the file or folder `path`; None: the tokenizer of the checkpoint.

    Raises BadTokenizer if its size shows that it belongs to another model, ConfigError if the
    `draft` model has other tokens.
    """
    tokenizer = checkpoint.tokenizer() if path is None else tokenizer_at(checkpoint, path)
    if draft is not None:
        check_vocabulary(tokenizer, draft)
    return tokenizer


def tokenizer_at(checkpoint: Checkpoint, path: Path | str) -> Tokenizer:
    """Return the tokenizer in the file or folder `path`, for the model of the checkpoint.

    Raises BadTokenizer if its size shows that it belongs to another model.
    """
    tokenizer = open_tokenizer(path)
    found, places = tokenizer.vocab_size, checkpoint.config.vocab_size
    if not LEAST_OF_VOCABULARY * places <= found <= places:
        raise BadTokenizer(
            f"the tokenizer {path} has {found} tokens; the model {checkpoint.config.name} has "
            f"{places}: expected as many, or up to a tenth fewer (use the model's own tokenizer)"
        )
    return tokenizer


def with_template(text: ModelText, path: Path) -> ModelText:
    """Return a copy of `text`, the facts about a model, with the chat template in the file `path`.

    Raises InvalidParameter if the file cannot be read.
    """
    try:
        template = path.read_text(encoding="utf-8")
        return replace(text, template=template, is_users_template=True)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidParameter(
            f"the chat template {path} cannot be read: {error}; expected a Jinja file in UTF-8",
            "prompt_format",
        ) from error


def named_or_suiting(name: str | None, text: ModelText) -> PromptFormat:
    """Return the prompt format with this name, or without a name the one that suits the model.

    `text` has the chat template and the control tokens of the model.
    """
    formats = load_plugins(FORMATS, PromptFormat)  # type: ignore[type-abstract]
    if name is not None:
        return formats.one(name).for_model(text)
    return choose_format(formats.loaded, text)


def other_formats(chosen: PromptFormat, text: ModelText) -> list[PromptFormat]:
    """Return all installed formats but `chosen` that fit the model, for requests that name one.

    `text` has the chat template and the control tokens of the model.
    """
    others = []
    for name, kind in load_plugins(FORMATS, PromptFormat).loaded.items():  # type: ignore[type-abstract]
        if name == chosen.name:
            continue
        try:
            others.append(kind.for_model(text))
        except JaxLlamaError as error:
            # As a text: a record that is kept must not keep the frames that load the model.
            logger.info("prompt format %s is not for this model: %s", name, str(error))
    return others


def sampling_defaults_of(
    choice: str, path: Path, checkpoint: Checkpoint, specs: Mapping[str, KnobSpec]
) -> dict[str, object]:
    """Return the values of knobs that a request does not set.

    With the `choice` "auto" these are the values that the model's maker recommends, in the
    checkpoint or beside it at `path`; with "none" there are none. `specs` are the knobs of the
    installed samplers. A recommendation for an unknown knob, or out of the knob's bounds, is logged
    and left out.
    """
    if choice not in SAMPLING_DEFAULTS:
        raise InvalidParameter(
            f"sampling_defaults is {choice!r}; expected one of {', '.join(SAMPLING_DEFAULTS)}",
            "sampling_defaults",
        )
    if choice == "none":
        return {}
    taken: dict[str, object] = {}
    left: list[str] = []
    for name, value in {**recommended_for(path), **checkpoint.recommended}.items():
        try:
            if not is_off(name, value, specs, checkpoint.config.vocab_size):
                taken[name] = value
        except InvalidParameter as error:
            left.append(f"{error!s:.200}")
    if left:
        logger.warning("recommended for %s and not used: %s", path.name, "; ".join(left))
    if taken:
        listed = ", ".join(f"{name} {value}" for name, value in taken.items())
        logger.info("recommended for %s, used where a request sets nothing: %s", path.name, listed)
    return taken


def is_off(name: str, value: object, specs: Mapping[str, KnobSpec], vocab: int) -> bool:
    """Say whether a recommended value of the knob `name` changes nothing.

    `specs` are the knobs of the installed samplers; `vocab` is the number of tokens. Raises
    InvalidParameter if the value cannot be used.
    """
    if name == "temperature":
        return check(name, value) == LIMITS[name].default
    if name not in specs:
        raise InvalidParameter(f"no installed sampler has {name} ({value!r:.60})", name)
    check_knob(name, value, specs[name], vocab)
    return value == specs[name].off


def describe(samplers: Mapping[str, type[Sampler]]) -> list[tuple[str, str, str]]:
    """List the samplers and the versions of their code, to notice when one of them changes.

    Returns ("class", sampler, class) for each sampler and ("code", package, digest or version) for
    the code that they run. The list is a part of the key of the compiled programs on disk.
    """
    classes = [(name, f"{kind.__module__}.{kind.__qualname__}") for name, kind in samplers.items()]
    code = digest_code(kind.__module__ for kind in samplers.values())
    return [("class", *each) for each in classes] + [("code", *each) for each in code]


def key_of(
    config: ModelConfig,
    engine: EngineConfig,
    params: Tree,
    samplers: Mapping[str, type[Sampler]],
    vocabulary: str,
) -> str:
    """Return the key under which the compiled programs are kept.

    `params` are the weights: structure, dtypes and shapes count, but not values. The name of the
    model does not change the key, nor do the settings that only the host uses. `vocabulary`, a
    digest of the tokens, counts if a sampler declares sets of tokens.
    """
    unnamed = replace(config, name="")
    draft_model = engine.draft_model and replace(engine.draft_model, name="")
    sized = replace(engine, queue_limit=1, sync_ms=1.0, draft_model=draft_model)
    has_sets = any(map(token_sets_of, samplers.values()))
    vocabulary = vocabulary if has_sets else ""
    tile = body_named(engine.kernels).prompt_tile(engine.slots)  # it may depend on the processor
    return program_key((unnamed, sized, tile, stored_as(params), describe(samplers), vocabulary))
