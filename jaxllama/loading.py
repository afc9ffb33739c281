"""Loading: from a model's files and what people ask for to the parts an LLM is composed of.

Used by `LLM.load` and whoever needs the same decisions (inspection, benchmarks). Decides and reads;
owns nothing.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import jax
from jax.sharding import Mesh

from jaxllama.config import EngineConfig, ModelConfig
from jaxllama.engine.bank import SamplerBank
from jaxllama.engine.program_key import code_behind, program_key
from jaxllama.errors import ConfigError, InvalidParameter, JaxLlamaError
from jaxllama.formats import ModelText, PromptFormat, choose_format
from jaxllama.kernels import cpu, cpu_attention
from jaxllama.model.params import Tree, abstract_params, loading_order
from jaxllama.model.prepare import Preparation
from jaxllama.registry import FORMATS, load_plugins
from jaxllama.sampling import Sampler
from jaxllama.sharding import parse_mesh, why_no_kernels
from jaxllama.weights.base import Checkpoint, fill

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]  # what, done, total

DEFAULT_SLOTS = 16
DEFAULT_CONTEXT = 4096
PLAIN_CHUNK = 32  # prompt tokens between two decode steps
KERNEL_CHUNK = 128
CANDIDATES = 256  # tokens a filter sees before the bank widens


def choose_kernels(asked: str, mesh: str | None, model: ModelConfig) -> str:
    """Which body runs: the C++ library on CPU, where it loads and the mesh suits, or plain JAX."""
    if asked == "cpu":
        platform = jax.default_backend()
        if platform != "cpu":
            raise ConfigError(
                f"kernels is 'cpu', but JAX runs on {platform} devices here, and the C++ kernels "
                f"run on processors only; choose --kernels xla, or set JAX_PLATFORMS=cpu"
            )
        if complaint := cpu.why_not() or why_no_attention(model):
            raise ConfigError(f"kernels is 'cpu', but {complaint}")
    if asked != "auto":
        return asked
    if jax.default_backend() != "cpu":
        return "xla"
    parts = parse_mesh(mesh)[1]
    complaint = cpu.why_not() or why_no_attention(model) or why_no_kernels(model, parts)
    if complaint:
        logger.warning("no C++ kernels, so plain XLA, several times slower: %s", complaint)
        return "xla"
    return "cpu"


def why_no_attention(model: ModelConfig) -> str:
    """Why the C++ kernels cannot attend with this model's heads; empty if they can.

    Plain attention beside the other kernels would give a row other bits in other company.
    """
    sizes = cpu_attention.SIZES
    if model.head_dim in sizes:
        return ""
    return (
        f"the model's head size is {model.head_dim}; the C++ kernels take {sizes[0]} to "
        f"{sizes[-1]} in steps of {sizes.step}: choose --kernels xla"
    )


def engine_config(  # noqa: PLR0913 - the settings of `load` that size the engine
    model: ModelConfig,
    body: str,
    *,
    slots: int | None = None,
    context: int | None = None,
    dtype: str | None = None,
    cache_dtype: str | None = None,
    mesh: str | None = None,
    packed: bool = False,
) -> EngineConfig:
    """The engine's size, with defaults for this model and machine."""
    data, parts = parse_mesh(mesh)
    if context is not None and context > model.max_context:
        raise InvalidParameter(
            f"context is {context}; this model was trained for at most {model.max_context}",
            "context",
        )
    on_cpu = jax.default_backend() == "cpu"
    own = "stored" if body == "cpu" else "float32" if on_cpu else "bfloat16"
    return EngineConfig(
        slots=-(-DEFAULT_SLOTS // data) * data if slots is None else slots,
        context=min(model.max_context, DEFAULT_CONTEXT) if context is None else context,
        prefill_chunk=KERNEL_CHUNK if body == "cpu" else PLAIN_CHUNK,
        candidates=min(CANDIDATES, model.vocab_size),
        kernels=body,
        dtype=dtype or own,
        packed=packed,
        cache_dtype=cache_dtype or ("float16" if on_cpu else "bfloat16"),
        data_parallel=data,
        model_parallel=parts,
    )


def read_weights(
    checkpoint: Checkpoint, engine: EngineConfig, mesh: Mesh, progress: Progress | None
) -> Tree:
    """Every weight, read one at a time and placed on its devices."""

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress("weights", done, total)

    started = time.perf_counter()
    abstract = abstract_params(checkpoint.config)
    preparation = Preparation(abstract, engine, mesh)
    fill(loading_order(abstract), checkpoint, preparation.add, report)
    logger.info("weights of %s in %.2f s", checkpoint.config.name, time.perf_counter() - started)
    return preparation.tree()


def stored_as(params: Tree) -> list[str]:
    """What a program depends on of the weights: how each is stored."""
    leaves, tree = jax.tree.flatten(params)
    return [str(tree), *(f"{leaf.dtype}{leaf.shape}" for leaf in leaves)]


def with_template(text: ModelText, path: Path) -> ModelText:
    """What the model says of its text, with the user's template in place of its own."""
    try:
        return replace(text, template=path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidParameter(
            f"the chat template {path} cannot be read: {error}; expected a Jinja file in UTF-8",
            "prompt_format",
        ) from error


def named_or_suiting(name: str | None, text: ModelText) -> PromptFormat:
    """The prompt format asked for, or the one that suits the model."""
    formats = load_plugins(FORMATS, PromptFormat)  # type: ignore[type-abstract]
    if name is not None:
        return formats.one(name).for_model(text)
    return choose_format(formats.loaded, text)


def other_formats(chosen: PromptFormat, text: ModelText) -> list[PromptFormat]:
    """Every other installed format that can be built for the model, for requests that name it."""
    others = []
    for name, kind in load_plugins(FORMATS, PromptFormat).loaded.items():  # type: ignore[type-abstract]
        if name == chosen.name:
            continue
        try:
            others.append(kind.for_model(text))
        except JaxLlamaError as error:
            logger.info("prompt format %s is not for this model: %s", name, error)
    return others


def describe(samplers: Mapping[str, type[Sampler]]) -> list[tuple[str, str, str]]:
    """What a compiled program depends on of each sampler: which code it is."""
    classes = [(name, f"{kind.__module__}.{kind.__qualname__}") for name, kind in samplers.items()]
    code = code_behind(kind.__module__ for kind in samplers.values())
    return [("class", *each) for each in classes] + [("code", *each) for each in code]


def key_of(
    config: ModelConfig,
    engine: EngineConfig,
    params: Tree,
    samplers: Mapping[str, type[Sampler]],
    bank: SamplerBank,
) -> str:
    """The key of the compiled programs; the name of a model changes none of them."""
    unnamed = replace(config, name="")
    return program_key((unnamed, engine, stored_as(params), describe(samplers), bank.learned))
