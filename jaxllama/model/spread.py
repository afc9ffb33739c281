"""Llama over several devices with a body that XLA cannot split: each device runs its own part.

Made by `steps.py` in place of `Llama`, with the same methods. XLA cannot split a foreign call, so
the split is explicit: a device holds whole slots and whole heads, its columns of the feed-forward
and its part of the vocabulary; `linear.py` and the attention operation sum partial results over
devices. Knows no kernel.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import PartitionSpec

from jaxllama.config import EngineConfig, ModelConfig
from jaxllama.kernels.body import ActiveRows, AdapterRows
from jaxllama.model.cache import KVCache
from jaxllama.model.linear import Norm
from jaxllama.model.llama import Llama
from jaxllama.model.params import Tree, model_of
from jaxllama.model.rows import Adapters
from jaxllama.shapes import Array, Bool, Float, Int

WHOLE, SLOTS = PartitionSpec(), PartitionSpec("data")
CACHE = PartitionSpec("data", "model")  # of every leaf: slots and key heads


class Partitions(NamedTuple):
    """The partition of every leaf of the weights, and of the adapters."""

    params: Tree
    adapters: Any  # as AdapterBlocks


class SpreadLlama:
    """The methods of `Llama`, run by every device on its part of the weights (`shard_map`).

    Arguments and results are whole arrays.
    """

    def __init__(
        self, config: ModelConfig, engine: EngineConfig, params: Tree, where: Partitions
    ) -> None:
        """Keep the weights; `where` holds the partition of every array of `params` and adapters."""
        self.config, self.engine, self.params, self.where = config, engine, params, where.params
        self._adapter_parts = where.adapters
        self.own = part_of(config, engine.model_parallel)

    def step(
        self,
        tokens: Int[Array, " S"] | Float[Array, "S D"],
        cache: KVCache,
        position: Int[Array, " S"],
        active: Bool[Array, " S"],
        adapters: Adapters | None = None,
    ) -> tuple[Float[Array, "S D"], KVCache]:
        """Compute the hidden state of one new token per slot; return it with the new cache.

        Each device computes its slots. `tokens` are token ids, or hidden states from the previous
        pipeline stage. `position` is the cache column of each token. Inactive rows do not change
        the cache. `adapters` None: no row has one.
        """
        given = (SLOTS, CACHE, SLOTS, SLOTS, self._adapters(adapters, SLOTS))
        found: tuple[Array, KVCache] = self._everywhere(Llama.step, given, (SLOTS, CACHE))(
            tokens, cache, position, active, adapters
        )
        return found

    def prompt(
        self,
        tokens: Int[Array, " L"] | Float[Array, "L D"],
        cache: KVCache,
        slot: Int[Array, ""],
        start: Int[Array, ""],
        count: Int[Array, ""],
        adapters: Adapters | None = None,
    ) -> tuple[Float[Array, "L D"], KVCache]:
        """Compute the hidden states of consecutive tokens of one slot, from column `start` on.

        Returns them with the new cache. `tokens` are token ids, or hidden states from the previous
        pipeline stage. Only the first `count` tokens are real; the others are padding. Every device
        computes all tokens; only the device that has the slot stores keys and values. `adapters`
        None: no LoRA adapter.
        """
        given = (WHOLE, CACHE, WHOLE, WHOLE, WHOLE, self._adapters(adapters, WHOLE))
        found: tuple[Array, KVCache] = self._everywhere(Llama.prompt, given, (WHOLE, CACHE))(
            tokens, cache, slot, start, count, adapters
        )
        return found

    def spans(
        self,
        tokens: Int[Array, " L"] | Float[Array, "L D"],
        cache: KVCache,
        places: Int[Array, "3 G"],
        adapters: Adapters | None = None,
    ) -> tuple[Float[Array, "L D"], KVCache]:
        """Compute the hidden states of several short spans of consecutive tokens, each of a slot.

        Returns them with the new cache. `tokens` (ids, or hidden states from the previous pipeline
        stage) holds the spans one after the other, all padded to one size. `places` has the slot,
        the first cache column and the number of real tokens of each span. Every device computes
        all spans; only the device that has a span's slot stores its keys and values. `adapters`
        None: no LoRA adapter.
        """
        given = (WHOLE, CACHE, WHOLE, self._adapters(adapters, WHOLE))
        found: tuple[Array, KVCache] = self._everywhere(Llama.spans, given, (WHOLE, CACHE))(
            tokens, cache, places, adapters
        )
        return found

    def head(self, hidden: Float[Array, "L D"], active: ActiveRows = None) -> Float[Array, "L V"]:
        """Return the logits of the token after each hidden state, in float32.

        Only the rows in the mask `active` are valid in the result (None: all). Every device
        computes its rows and its part of the vocabulary.
        """
        rows = "data" if hidden.shape[0] % self.engine.data_parallel == 0 else None
        matrix = self.where["embed" if self.config.tied else "unembed"]["weight"]
        partitions = jax.tree.leaves(matrix, is_leaf=lambda each: isinstance(each, PartitionSpec))
        vocab = "model" if "model" in partitions[0] else None
        given = (hidden,) if active is None else (hidden, active)
        specs = (PartitionSpec(rows),) * len(given)
        logits: Array = self._everywhere(Llama.head, specs, PartitionSpec(rows, vocab))(*given)
        return logits

    @property
    def final_norm(self) -> Norm:
        """The final norm of the model; every device has all of it."""
        return model_of(self.own, self.params, self.engine.kernels).final_norm

    def _adapters(self, adapters: Adapters | None, rows: PartitionSpec) -> Any:
        """Return the partition of every array of `adapters` over the devices; None for None.

        `rows` is the partition of the arrays that have one number for each row.
        """
        parts: Any = rows
        return adapters and Adapters(self._adapter_parts, AdapterRows(parts, parts))

    def _everywhere(
        self, method: Callable[..., Any], given: tuple[Any, ...], result: Any
    ) -> Callable[..., Any]:
        """Wrap a method of `Llama` so that every device runs it on its own part of the weights.

        `given` are the partitions of its arguments over the devices, `result` those of its results.
        """

        def run(params: Tree, *arguments: Any) -> Any:
            return method(model_of(self.own, params, self.engine.kernels), *arguments)

        spread = jax.shard_map(
            run, in_specs=(self.where, *given), out_specs=result, check_vma=False
        )
        return lambda *arguments: spread(self.params, *arguments)


def part_of(config: ModelConfig, parts: int) -> ModelConfig:
    """Return the config of the part of the model that one of `parts` devices computes."""
    return dataclasses.replace(
        config,
        heads=config.heads // parts,
        kv_heads=config.kv_heads // parts,
        ffn_width=config.ffn_width // parts,
    )
