"""The memory that a model takes at given settings, without loading it.

Called by `jaxllama inspect`, and by `jaxllama serve` before it loads one of several models. Of each
kind of matrix, a few outputs are read and laid out as in loading; the result counts for all of it.
So padding, scales and matrices that a body widens count.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxllama.config import EngineConfig, ModelConfig
from jaxllama.kernels import body_named
from jaxllama.kernels.packed import Packed
from jaxllama.loading import adapter_sizes, choose_kernels, engine_config
from jaxllama.model import rope
from jaxllama.model.adapters import adapter_shapes
from jaxllama.model.cache import cache_bytes
from jaxllama.model.key_heads import copies_of_heads
from jaxllama.model.params import Leaf, abstract_params
from jaxllama.model.prepare import Preparation
from jaxllama.sharding import make_mesh
from jaxllama.weights.base import Checkpoint, check_tensors
from jaxllama.weights.convert import canonical

FLOAT32_BYTES = 4
TILE = 128  # outputs: whole tiles of the C++ kernels (32) and of TPUs, which pad to 128
MANY = 100  # tiles, of which the padding of the last one is less than a hundredth
EMBEDDING = "embed.weight"
ROPE = ("rope_scale", "rope_alpha", "rope_theta")
SIZES = (
    *("slots", "context", "dtype", "cache_dtype", "mesh", "stage_layers", "packed"),
    *("prefill_chunk", "pack_prompts", "steps_per_sync", "sync_ms", "draft_tokens"),
)


def describe_memory(
    checkpoint: Checkpoint,
    engine: EngineConfig,
    draft: Checkpoint | None = None,
    *,
    keeps_float8: bool = True,
) -> dict[str, Any]:
    """Return the bytes on the device: of weights, of the KV cache and so on, and in total.

    The result also has the settings that they depend on, such as the number of slots. `draft` is
    the draft model, None without one. Without `keeps_float8`, the device needs float8 weights
    expanded.
    """
    weights = weight_bytes(checkpoint, engine, keeps_float8=keeps_float8)
    cache = cache_bytes(checkpoint.config, engine)
    unpacked = unpacked_bytes(checkpoint, engine)
    adapters = adapter_bytes(checkpoint.config, engine)
    draft_weights = 0
    if draft is not None:
        draft_weights = weight_bytes(draft, engine, keeps_float8=keeps_float8)
    draft_cache = 0 if draft is None else cache_bytes(draft.config, engine)
    return {
        "slots": engine.slots,
        "context": engine.context,
        "dtype": engine.dtype,
        "cache_dtype": engine.cache_dtype,
        "weights": weights,
        "cache": cache,
        "unpacked": unpacked,
        "adapters": adapters,
        "draft_weights": draft_weights,
        "draft_cache": draft_cache,
        "total": weights + cache + unpacked + adapters + draft_weights + draft_cache,
    }


def engine_for(
    checkpoint: Checkpoint, loading: Mapping[str, Any], draft: Checkpoint | None = None
) -> EngineConfig:
    """Return the sizes of the engine that `LLM.load(**loading)` would make.

    `draft` is the draft model, None without one.
    """
    config = rope.overridden(checkpoint.config, *(loading.get(name) for name in ROPE))
    body = choose_kernels(loading.get("kernels", "auto"), loading.get("mesh"), config)
    sizes = {name: value for name, value in loading.items() if name in SIZES}
    lora, slots, rank = (loading.get(name) for name in ("lora", "lora_slots", "lora_rank"))
    sizes |= adapter_sizes(lora or {}, slots, rank)
    return engine_config(config, body, **sizes, draft=draft)


def weight_bytes(checkpoint: Checkpoint, engine: EngineConfig, *, keeps_float8: bool = True) -> int:
    """Return the bytes of all weights in the layout that they have after loading.

    `keeps_float8`: the device can have float8 weights as they are; otherwise they are expanded.
    """
    leaves = abstract_params(checkpoint.config)
    check_tensors(leaves, checkpoint)
    known: dict[tuple[Any, ...], int] = {}
    total = 0
    for layers in groups_of(checkpoint, engine):
        members = {path: leaf for path, leaf in leaves.items() if layer_of(path) in layers}
        key = tuple(
            (path.rpartition(".")[2], leaf, kind_of(checkpoint, path))
            for path, leaf in members.items()
        )
        if key not in known:
            known[key] = sampled_bytes(checkpoint, engine, members, keeps_float8=keeps_float8)
        # The first and the last stage have an embedding that is the output head, too.
        is_twice = engine.stages > 1 and checkpoint.config.tied and EMBEDDING in members
        total += known[key] * (2 if is_twice else 1)
    return total


def groups_of(checkpoint: Checkpoint, engine: EngineConfig) -> list[tuple[str, ...]]:
    """Return the paths of the model's layers in groups; a group is stored as one in memory.

    For example, the projections of queries, keys and values can form a group. A layer that is
    stored alone is a group of one path.
    """
    preparation = preparation_of(checkpoint, engine)
    layers = map(layer_of, abstract_params(checkpoint.config))
    return list(dict.fromkeys(preparation.group_of(layer) for layer in layers))


def preparation_of(checkpoint: Checkpoint, engine: EngineConfig) -> Preparation:
    """Return a `Preparation`, which lays out weights in memory; it has no weights yet.

    The caller adds weights, or asks which layers are stored together. `engine` has the settings.
    """
    config = checkpoint.config
    mesh = make_mesh(engine, config)
    return Preparation(config, engine, mesh)


def layer_of(path: str) -> str:
    """Return the path of a weight's layer: the weight's path without its last part."""
    return path.rpartition(".")[0]


def kind_of(checkpoint: Checkpoint, path: str) -> str:
    """Return the storage type of the weight `path` in the file, such as "F32".

    If the file format does not tell the type, the result is the weight's own name in the file.
    """
    name = checkpoint.table[path].names[0]
    return checkpoint.kinds.get(name, (name, 0))[0]


@dataclass(frozen=True)
class WeightSample:
    """A part of one weight, and how many such parts the weight has."""

    index: tuple[slice, ...]
    count: int


def sampled_bytes(
    checkpoint: Checkpoint,
    engine: EngineConfig,
    members: Mapping[str, Leaf],
    *,
    keeps_float8: bool,
) -> int:
    """Return the bytes of a group of weights on the device, estimated from a part of each weight.

    `members` are the weights of the group by path. Every weight is cut into the same number of
    equal shares. One share of each is laid out in memory, and its bytes are multiplied by the
    number of shares. Without `keeps_float8`, float8 weights are expanded.
    """
    preparation = preparation_of(checkpoint, engine)
    has_copies = copies_of_heads(checkpoint.config, engine.model_parallel) > 1
    tile = TILE * engine.model_parallel  # each device has whole tiles
    parts = 1 if has_copies else share_of(members, tile)  # a share may be less than a head
    count = 1
    for path, leaf in members.items():
        sample = sample_of(path, leaf, parts, tile)
        value = checkpoint.read(path, leaf, sample.index)
        if isinstance(value, Packed) and value.is_float8 and not keeps_float8:
            value = canonical(path, value)
        preparation.add(path, leaf, value)
        count = sample.count
    # The order of sorted inputs, whole numbers, is one for all outputs.
    return sum(
        leaf.nbytes * (1 if leaf.dtype.name == "int32" else count)
        for leaf in jax.tree.leaves(preparation.tree())
    )


def share_of(members: Mapping[str, Leaf], tile: int) -> int:
    """Return the number of equal shares into which the outputs of every weight can be cut.

    A share consists of whole tiles of `tile` outputs. The result is 1 if the weights cannot be cut.
    `members` are the weights by path.
    """
    outputs = [outputs_of(path, leaf) for path, leaf in members.items()]
    is_vector = all(len(leaf.shape) == 1 for leaf in members.values())
    if is_vector or any(each % tile and each < MANY * tile for each in outputs):
        return 1
    return math.gcd(*(-(-each // tile) for each in outputs))


def outputs_of(path: str, leaf: Leaf) -> int:
    """Return the number of outputs of the matrix `leaf`, or the size of a vector.

    `path` is its path: an embedding has its outputs on the first axis, others on the last.
    """
    return leaf.shape[0 if path == EMBEDDING else -1]


def sample_of(path: str, leaf: Leaf, parts: int, tile: int) -> WeightSample:
    """Choose the part of a weight that is read to estimate the memory of the whole weight.

    The part is the first of `parts` equal shares of the outputs; of a stack of experts, that share
    of the first expert. The result has the part as slices, and the number of such parts in the
    weight. `path` is the weight's parameter path, `leaf` has its shape. A share has whole tiles of
    `tile` outputs.
    """
    outputs = outputs_of(path, leaf)
    most = -(-outputs // tile) // parts * tile
    cut = slice(0, min(outputs, most))
    if leaf.is_stack:
        return WeightSample((slice(0, 1), slice(0, leaf.shape[1]), cut), parts * leaf.shape[0])
    if leaf.is_matrix:
        inputs = slice(0, leaf.shape[1 if path == EMBEDDING else 0])
        return WeightSample((cut, inputs) if path == EMBEDDING else (inputs, cut), parts)
    return WeightSample((cut,), parts)


def adapter_bytes(config: ModelConfig, engine: EngineConfig) -> int:
    """Return the bytes reserved for LoRA adapters on the device; 0 without adapter slots."""
    dtype = body_named(engine.kernels).adapter_dtype or engine.dtype
    shapes = [each for block in adapter_shapes(config, engine).values() for each in block.values()]
    values = sum(math.prod(part) for shape in shapes for part in (shape.a, *shape.b))
    return engine.adapter_slots * values * jnp.dtype(dtype).itemsize if engine.adapter_slots else 0


def unpacked_bytes(checkpoint: Checkpoint, engine: EngineConfig) -> int:
    """Return the bytes that the largest packed (quantized) matrix takes as unpacked float32.

    Matrices are unpacked one at a time, when they are used. The result is 0 if no matrix is packed
    or if the kernels multiply by packed matrices directly.
    """
    if not engine.packed or body_named(engine.kernels).keeps_packed:
        return 0
    config = checkpoint.config
    matrices = (
        path
        for path, leaf in abstract_params(config).items()
        if leaf.is_matrix
        # An embedding that is no output head is read row by row.
        and (config.tied or path != EMBEDDING)
    )
    leaves = abstract_params(config)
    sizes = (math.prod(leaves[path].shape) for path in packed_of(checkpoint, matrices))
    return FLOAT32_BYTES * max(sizes, default=0)


def packed_of(checkpoint: Checkpoint, paths: Iterable[str]) -> Iterator[str]:
    """Yield the paths in `paths` whose weights the file stores packed (quantized).

    Only a part of one weight of each storage type is read to find out.
    """
    leaves, known = abstract_params(checkpoint.config), dict[str, bool]()
    for path in paths:
        kind = kind_of(checkpoint, path)
        if kind not in known:
            share = share_of({path: leaves[path]}, TILE)
            index = sample_of(path, leaves[path], share, TILE).index
            known[kind] = isinstance(checkpoint.read(path, leaves[path], index), Packed)
        if known[kind]:
            yield path
