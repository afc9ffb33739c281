"""Low-rank adapters: which weights they change, and their arrays for all blocks.

Used to make the arrays and to read an adapter for them. The arrays have a fixed number of adapters
and a fixed rank, so programs do not depend on the adapters that are loaded.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from jax.sharding import Mesh

from jaxllama.config import EngineConfig, ModelConfig
from jaxllama.kernels import body_named
from jaxllama.kernels.body import AdapterShape, Placement
from jaxllama.model.key_heads import with_copies
from jaxllama.model.params import Leaf, abstract_params
from jaxllama.model.rows import AdapterBlocks
from jaxllama.shapes import Array, Int32

# The groups of weights of a block: its layer in the model, and the weights in order.
ADAPTED: dict[str, tuple[str, tuple[str, ...]]] = {
    "qkv": ("attention", ("q", "k", "v")),
    "o": ("attention", ("o",)),
    "gate_up": ("ffn", ("gate", "up")),
    "down": ("ffn", ("down",)),
}
LAYERS = {name: layer for layer, names in ADAPTED.values() for name in names}  # of each weight


class AdapterMatrices(NamedTuple):
    """The matrices of one adapter for one group of weights, float32.

    A group is weights that multiply the same rows.
    """

    a: Any  # [inward, weights * rank]
    b: tuple[Any, ...]  # of each weight [rank, outward]


AdapterWeights = Mapping[int, Mapping[str, AdapterMatrices]]  # of one adapter


class AdaptedWeight(NamedTuple):
    """The sizes of one weight that adapters can change."""

    inward: int
    outward: int


class AdaptedGroup(NamedTuple):
    """Weights of one block that adapters can change and that multiply the same rows."""

    block: int
    name: str
    weights: dict[str, Leaf]  # by path, in order


def adapted_groups(config: ModelConfig) -> Iterator[AdaptedGroup]:
    """Yield the groups of weights that adapters can change, block by block.

    A group is weights of a block that multiply the same rows, such as those of queries, keys and
    values. Weights of experts are in no group.
    """
    leaves = abstract_params(config)
    for block in range(config.layers):
        for group, (layer, names) in ADAPTED.items():
            paths = [f"blocks.{block}.{layer}.{name}.weight" for name in names]
            if all(path in leaves and leaves[path].is_matrix for path in paths):
                yield AdaptedGroup(block, group, {path: leaves[path] for path in paths})


def adapted_weights(config: ModelConfig) -> dict[str, AdaptedWeight]:
    """Return the sizes of all weights that adapters can change, by dotted path."""
    return {
        path: AdaptedWeight(*leaf.shape)
        for group in adapted_groups(config)
        for path, leaf in group.weights.items()
    }


def adapter_shapes(config: ModelConfig, engine: EngineConfig) -> dict[int, dict[str, AdapterShape]]:
    """Return the sizes of the adapter arrays, by number of the block and name of the group.

    A group is weights of a block that multiply the same rows.
    """
    blocks: dict[int, dict[str, AdapterShape]] = {index: {} for index in range(config.layers)}
    for group in adapted_groups(with_copies(config, engine.model_parallel)):
        leaves = list(group.weights.values())
        inner, outer = leaves[0].axes
        blocks[group.block][group.name] = AdapterShape(
            leaves[0].shape[0],
            tuple(leaf.shape[1] for leaf in leaves),
            (inner, outer),
            engine.adapter_slots,
            engine.adapter_rank,
        )
    return blocks


def empty_adapters(config: ModelConfig, engine: EngineConfig, mesh: Mesh) -> AdapterBlocks:
    """Make the adapter arrays of all blocks on the devices of `mesh`, filled with zeros.

    `config` gives the sizes of the weights, `engine` the number and rank of adapters.
    """
    body = body_named(engine.kernels)
    to = Placement(mesh, engine.dtype, engine.packed)
    return {
        index: {name: body.adapter_group(shape, to) for name, shape in block.items()}
        for index, block in adapter_shapes(config, engine).items()
    }


def write_adapter(
    blocks: AdapterBlocks, number: Int32[Array, ""], weights: AdapterWeights
) -> AdapterBlocks:
    """Return the arrays of all adapters, with adapter `number` replaced by `weights`.

    `blocks` are the arrays of each block of the model, `weights` the matrices of one adapter.
    """
    return {
        index: {name: group.written(number, *weights[index][name]) for name, group in block.items()}
        for index, block in blocks.items()
    }
