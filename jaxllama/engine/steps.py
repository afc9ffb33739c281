"""Steps: the programs as pure functions of the weights and the state.

Compiled by `programs.py`, which lists them. Each consumes its state and returns the next one. Knows
rows and tokens, not requests.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxllama.config import KEY_BLOCK, EngineConfig, ModelConfig
from jaxllama.engine.choosing.bank import SamplerBank
from jaxllama.engine.choosing.chooser import ChosenTokens, TokenChooser
from jaxllama.engine.state import DecodeState, RowStart, empty_state, write_row
from jaxllama.kernels import body_named
from jaxllama.kernels.body import AdapterRows
from jaxllama.kernels.storage import read_columns, write_columns
from jaxllama.model.adapters import AdapterWeights, write_adapter
from jaxllama.model.cache import Columns, KVCache, read_block, write_block
from jaxllama.model.llama import Llama
from jaxllama.model.params import Tree, model_of
from jaxllama.model.rows import AdapterBlocks, Adapters, SlotAdapter, of_rows
from jaxllama.model.spread import Partitions, SpreadLlama
from jaxllama.scopes import scoped
from jaxllama.shapes import Array, Bool, Float, Int32, UInt32


class StepOutput(NamedTuple):
    """The output of a decode call; [k, s] belongs to step k and slot s."""

    token: Int32[Array, "steps S"]  # -1: the row was inert
    choice: ChosenTokens  # every leaf [steps, S, ...]


class Peek(NamedTuple):
    """The logits after given tokens, and the log-probabilities of given targets."""

    logprob: Float[Array, " R"]  # of each target
    logits: Float[Array, "R V"]  # after each row


class Pooled(NamedTuple):
    """The hidden states of some tokens after the final norm, pooled."""

    total: Float[Array, " D"]  # summed over the tokens
    last: Float[Array, " D"]  # of the last token


class Runs(NamedTuple):
    """Short runs of tokens in one slot, and the targets whose log-probability is requested."""

    ids: Int32[Array, " R"]
    places: Int32[Array, "2 G"]  # first column and real length of each run
    rows: Int32[Array, " A"]  # rows of `ids` that have targets after them
    pairs: Int32[Array, "2 B"]  # of each target: its index in `rows`, its token


class Steps:
    """The programs of one model and one engine size, as functions."""

    def __init__(
        self,
        model: ModelConfig,
        engine: EngineConfig,
        bank: SamplerBank,
        where: Partitions | None = None,
    ) -> None:
        """Build the functions; `where` is the partition of every weight on several devices."""
        self.model, self.engine, self.bank, self.where = model, engine, bank, where
        body = body_named(engine.kernels)
        # Where calls often run the lean program, it has nothing but the common samplers.
        self._whole = TokenChooser(bank)
        self._lean = TokenChooser(bank, bank.common, lists=not body.prefers_lean)
        self.tile = body.prompt_tile(engine.slots)
        self.weigh_rows = body.weigh_rows or self.tile
        self.chunk = body.whole_tiles(engine.prefill_chunk, engine.slots)

    def _model(self, params: Tree) -> Llama | SpreadLlama:
        if self.where is not None:
            return SpreadLlama(self.model, self.engine, params, self.where)
        return model_of(self.model, params, self.engine.kernels)

    def empty(self) -> DecodeState:
        """Make a state with every row inert."""
        return empty_state(self.model, self.engine, self.bank, self.tile)

    def prefill(  # noqa: PLR0913, PLR0917 - arguments of a compiled program
        self,
        params: Tree,
        state: DecodeState,
        slot: Array,
        ids: Array,
        start: Array,
        count: Array,
        adapter: SlotAdapter | None = None,
    ) -> DecodeState:
        """Compute the cache of `count` tokens in a slot by tiles; may overwrite later columns."""
        adapters = of_rows(adapter, self.tile)

        def tile(index: Array, cache: KVCache) -> KVCache:
            at = index * self.tile
            tokens = lax.dynamic_slice_in_dim(ids, at, self.tile)
            real = jnp.minimum(count - at, self.tile)
            model = self._model(params)
            return model.prompt(tokens, cache, slot, start + at, real, adapters)[1]

        tiles = (count + self.tile - 1) // self.tile
        cache = lax.fori_loop(0, tiles, tile, state.cache)
        return dataclasses.replace(state, cache=cache)

    def decode(
        self, params: Tree, state: DecodeState, steps: Array, allowed: UInt32[Array, "S W"]
    ) -> tuple[DecodeState, StepOutput]:
        """Draw up to `steps` tokens for every active row; stop early when no row is active.

        `allowed` is the same for all steps, so with guided rows the engine asks for one step. A
        row without any allowed token skips the call: its mask is still being computed.
        """
        return self._decode(self._whole, params, state, steps, allowed)

    def decode_adapted(
        self,
        params: Tree,
        state: DecodeState,
        steps: Array,
        allowed: UInt32[Array, "S W"],
        adapters: AdapterBlocks,
    ) -> tuple[DecodeState, StepOutput]:
        """Decode rows of which some have an adapter: the same bits in rows that have none."""
        return self._decode(self._whole, params, state, steps, allowed, adapters)

    def decode_lean(
        self, params: Tree, state: DecodeState, steps: Array, allowed: UInt32[Array, "S W"]
    ) -> tuple[DecodeState, StepOutput]:
        """Decode with the common samplers alone: the same bits in rows that use no others.

        With a body that prefers this program, no row may have guidance or log-probabilities.
        """
        return self._decode(self._lean, params, state, steps, allowed)

    def _decode(
        self,
        chooser: TokenChooser,
        params: Tree,
        state: DecodeState,
        steps: Array,
        allowed: UInt32[Array, "S W"],
        adapters: AdapterBlocks | None = None,
    ) -> tuple[DecodeState, StepOutput]:
        most = self.engine.steps_per_sync

        def one(carry: tuple[Array, DecodeState, StepOutput]) -> Any:
            done, state, output = carry
            state, now = self._step(chooser, params, state, allowed, adapters)

            def put(every: Array, new: Array) -> Array:
                return every.at[done].set(new)

            if chooser.lists:
                output = jax.tree.map(put, output, now)
            else:
                finite = put(output.choice.finite, now.choice.finite)
                chosen = output.choice._replace(finite=finite)
                output = StepOutput(put(output.token, now.token), chosen)
            return done + 1, state, output

        def more(carry: tuple[Array, DecodeState, StepOutput]) -> Array:
            done, state, _ = carry
            return (done < steps) & jnp.any(state.active)

        step = partial(self._step, chooser)
        shapes = jax.eval_shape(step, params, state, allowed, adapters)[1]
        blank = jax.tree.map(lambda x: jnp.zeros((most, *x.shape), x.dtype), shapes)
        blank = blank._replace(token=blank.token - 1)
        _, state, output = lax.while_loop(more, one, (jnp.int32(0), state, blank))
        return state, output

    def _step(
        self,
        chooser: TokenChooser,
        params: Tree,
        state: DecodeState,
        allowed: UInt32[Array, "S W"],
        adapters: AdapterBlocks | None,
    ) -> tuple[DecodeState, StepOutput]:
        """Draw one token for every active row."""
        model = self._model(params)
        able = jnp.any(allowed != 0, axis=-1)
        active = state.active & able
        own = None
        if adapters is not None:
            own = Adapters(adapters, AdapterRows(state.adapter, state.adapter_scale))
        hidden, cache = model.step(state.pending, state.cache, state.length, active, own)
        rows = state.rows()
        rows = rows._replace(active=rows.active & able, allowed=allowed)
        logits = model.head(hidden, active)
        if chooser.lists:
            logits = apply_guidance(logits, state, active)
        bank, choice = chooser.choose(state.bank, logits, rows)
        length = jnp.where(active, state.length + 1, state.length)
        token, finite = choice.token[state.speaker], choice.finite[state.speaker]
        place = jnp.where(active, length, state.tokens.shape[1])  # inert rows: out of bounds
        tokens = state.tokens.at[jnp.arange(token.shape[0]), place].set(token, mode="drop")
        ended = jnp.any(token[:, None] == state.stop_ids, axis=1) | ~finite
        after = dataclasses.replace(
            state,
            cache=cache,
            tokens=tokens,
            length=length,
            pending=jnp.where(active, token, state.pending),
            budget=jnp.where(able, jnp.where(active & ~ended, state.budget - 1, 0), state.budget),
            bank=bank,
        )
        return after, StepOutput(jnp.where(active, token, -1), choice)

    def admit(self, state: DecodeState, slot: Array, row: RowStart) -> DecodeState:
        """Write one row, so that it starts to decode."""
        return write_row(state, slot, row, self.bank)

    def release(self, state: DecodeState, mask: Bool[Array, " S"]) -> DecodeState:
        """Stop the rows in `mask`: they decode no further."""
        return dataclasses.replace(state, budget=jnp.where(mask, 0, state.budget))

    def scrub(self, state: DecodeState, slot: Array) -> DecodeState:
        """Zero a slot's cache: a NaN times weight zero is still NaN, so a mask does not hide it."""
        cache = jax.tree.map(lambda side: side.at[slot].set(0), state.cache)
        return dataclasses.replace(state, cache=cache)

    def copy(self, state: DecodeState, source: Array, target: Array, count: Array) -> DecodeState:
        """Copy the first `count` columns of a cache row, rounded up to whole blocks."""

        def block(index: Array, cache: KVCache) -> KVCache:
            at = index * KEY_BLOCK

            def move(side: Array) -> Array:
                part = read_columns(side, source, at, KEY_BLOCK)
                return write_columns(side, part, target, at)

            return jax.tree.map(move, cache)

        blocks = (count + KEY_BLOCK - 1) // KEY_BLOCK
        return dataclasses.replace(state, cache=lax.fori_loop(0, blocks, block, state.cache))

    def save(self, state: DecodeState, slot: Array, start: Array) -> Columns:
        """Read a block of columns of a cache row; the state stays as it is."""
        return read_block(state.cache, slot, start)

    def restore(
        self, state: DecodeState, columns: Columns, slot: Array, start: Array
    ) -> DecodeState:
        """Replace a block of columns of a cache row."""
        cache = write_block(state.cache, columns, slot, start)
        return dataclasses.replace(state, cache=cache)

    def peek(  # noqa: PLR0913, PLR0917 - arguments of a compiled program
        self,
        params: Tree,
        state: DecodeState,
        slot: Array,
        pairs: Int32[Array, "2 R"],
        start: Array,
        last: Array,
        adapter: SlotAdapter | None = None,
    ) -> tuple[DecodeState, Peek]:
        """Compute the log-probability of each target after its id, and all logits up to `last`."""
        ids, targets = pairs
        model = self._model(params)
        adapters = of_rows(adapter, ids.shape[0])
        hidden, cache = model.prompt(ids, state.cache, slot, start, last + 1, adapters)
        logits = model.head(hidden, jnp.arange(ids.shape[0]) <= last)
        total = jax.nn.logsumexp(logits, axis=-1)
        chosen = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
        state = dataclasses.replace(state, cache=cache)
        return state, Peek(chosen - total, logits)

    def weigh(
        self,
        params: Tree,
        state: DecodeState,
        slot: Array,
        runs: Runs,
        adapter: SlotAdapter | None = None,
    ) -> tuple[DecodeState, Float[Array, " B"]]:
        """Compute the log-probabilities of the targets of short runs."""
        model = self._model(params)
        adapters = of_rows(adapter, runs.ids.shape[0])
        hidden, cache = model.branches(runs.ids, state.cache, slot, runs.places, adapters)
        logits = model.head(hidden[runs.rows])
        row, token = runs.pairs
        logprob = logits[row, token] - jax.nn.logsumexp(logits, axis=-1)[row]
        return dataclasses.replace(state, cache=cache), logprob

    def embed(
        self,
        params: Tree,
        state: DecodeState,
        slot: Array,
        ids: Int32[Array, " R"],
        start: Array,
        last: Array,
    ) -> tuple[DecodeState, Pooled]:
        """Pool the hidden states of ids up to row `last`, after the final norm."""
        model = self._model(params)
        hidden, cache = model.prompt(ids, state.cache, slot, start, last + 1)
        normed = model.final_norm(hidden)
        real = jnp.arange(ids.shape[0]) <= last
        total = jnp.sum(jnp.where(real[:, None], normed, 0.0), axis=0)
        return dataclasses.replace(state, cache=cache), Pooled(total, normed[last])

    def adapt(
        self, adapters: AdapterBlocks, number: Int32[Array, ""], weights: AdapterWeights
    ) -> AdapterBlocks:
        """Replace one adapter in the arrays of all."""
        return write_adapter(adapters, number, weights)


@scoped
def apply_guidance(
    logits: Float[Array, "S V"], state: DecodeState, active: Bool[Array, " S"]
) -> Float[Array, "S V"]:
    """Move the logits of each row that has a guidance row away from the guidance row's logits.

    One row at a time, in place: other rows keep their bits, and without guidance rows nothing runs.
    """
    guidance_rows = active & (state.leader >= 0)
    first = jnp.argsort(~guidance_rows, stable=True)

    def move(index: Array, logits: Array) -> Array:
        guidance = first[index]
        leader = state.leader[guidance]
        other = logits[guidance]
        moved = other + state.contrast[leader] * (logits[leader] - other)
        return logits.at[leader].set(moved)

    return lax.fori_loop(0, jnp.sum(guidance_rows), move, logits)
