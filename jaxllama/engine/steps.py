"""Steps: what each program means - pure functions of the weights and the state.

Compiled by `programs.py`, which lists them. Each consumes the state it is given and returns the
next. Knows rows and tokens, not requests.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxllama.config import KEY_BLOCK, EngineConfig, ModelConfig
from jaxllama.engine.choosing.bank import Choice, SamplerBank
from jaxllama.engine.state import DecodeState, RowStart, empty_state, write_row
from jaxllama.kernels import body_named
from jaxllama.kernels.storage import read_columns, write_columns
from jaxllama.model.cache import KVCache, LayerCache
from jaxllama.model.llama import Llama
from jaxllama.model.params import Tree, model_of
from jaxllama.model.spread import SpreadLlama
from jaxllama.shapes import Array, Bool, Float, Int32, UInt32


class StepOutput(NamedTuple):
    """What a decode call produced; step k of slot s is [k, s]."""

    token: Int32[Array, "steps S"]  # -1: the row was inert
    choice: Choice  # every leaf [steps, S, ...]


class Peek(NamedTuple):
    """What the model thinks of given tokens."""

    logprob: Float[Array, " R"]  # of each target
    logits: Float[Array, "R V"]  # after each row


class Pooled(NamedTuple):
    """What the model made of some tokens, behind its final norm."""

    total: Float[Array, " D"]  # summed over the tokens
    last: Float[Array, " D"]  # of the last one


class Runs(NamedTuple):
    """Short runs of tokens of one slot, and what is asked of them."""

    ids: Int32[Array, " R"]
    places: Int32[Array, "2 G"]  # first column and real length of each run
    asked: Int32[Array, " A"]  # rows whose following tokens are asked for
    pairs: Int32[Array, "2 B"]  # which asked row, which token


class Steps:
    """The programs of one model and one engine size, as functions."""

    def __init__(
        self,
        model: ModelConfig,
        engine: EngineConfig,
        bank: SamplerBank,
        where: Tree | None = None,
    ) -> None:
        """`where`: how every weight is split, if kernels run on several devices."""
        self.model, self.engine, self.bank, self.where = model, engine, bank, where
        self.tile = body_named(engine.kernels).prompt_tile(engine.slots)
        self.chunk = -(-engine.prefill_chunk // self.tile) * self.tile

    def _model(self, params: Tree) -> Llama | SpreadLlama:
        if self.where is not None:
            return SpreadLlama(self.model, self.engine, params, self.where)
        return model_of(self.model, params, self.engine.kernels)

    def empty(self) -> DecodeState:
        """Every row inert."""
        return empty_state(self.model, self.engine, self.bank, self.tile)

    def prefill(
        self, params: Tree, state: DecodeState, slot: Array, ids: Array, start: Array, count: Array
    ) -> DecodeState:
        """Compute `count` of `ids` into a slot, tile by tile; what lies past them is scratch."""

        def tile(index: Array, cache: KVCache) -> KVCache:
            at = index * self.tile
            tokens = lax.dynamic_slice_in_dim(ids, at, self.tile)
            real = jnp.minimum(count - at, self.tile)
            return self._model(params).prompt(tokens, cache, slot, start + at, real)[1]

        tiles = (count + self.tile - 1) // self.tile
        cache = lax.fori_loop(0, tiles, tile, state.cache)
        return dataclasses.replace(state, cache=cache)

    def decode(
        self, params: Tree, state: DecodeState, steps: Array, allowed: UInt32[Array, "S W"]
    ) -> tuple[DecodeState, StepOutput]:
        """Draw up to `steps` tokens for every active row; stops early when none is left.

        `allowed` holds for all steps: rows with a constraint are asked for one. A row without any
        allowed token sits the call out: its mask is still being computed.
        """
        most = self.engine.steps_per_sync

        def one(carry: tuple[Array, DecodeState, StepOutput]) -> Any:
            done, state, output = carry
            state, now = self._step(params, state, allowed)
            output = jax.tree.map(lambda all_, new: all_.at[done].set(new), output, now)
            return done + 1, state, output

        def more(carry: tuple[Array, DecodeState, StepOutput]) -> Array:
            done, state, _ = carry
            return (done < steps) & jnp.any(state.active)

        shapes = jax.eval_shape(self._step, params, state, allowed)[1]
        blank = jax.tree.map(lambda x: jnp.zeros((most, *x.shape), x.dtype), shapes)
        blank = blank._replace(token=blank.token - 1)
        _, state, output = lax.while_loop(more, one, (jnp.int32(0), state, blank))
        return state, output

    def _step(
        self, params: Tree, state: DecodeState, allowed: UInt32[Array, "S W"]
    ) -> tuple[DecodeState, StepOutput]:
        """One token for every active row."""
        model = self._model(params)
        able = jnp.any(allowed != 0, axis=-1)
        active = state.active & able
        hidden, cache = model.step(state.pending, state.cache, state.length, active)
        rows = state.rows()
        rows = rows._replace(active=rows.active & able, allowed=allowed)
        logits = contrasted(model.head(hidden, active), state, active)
        bank, choice = self.bank.choose(state.bank, logits, rows)
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
        """Let a row begin."""
        return write_row(state, slot, row, self.bank)

    def release(self, state: DecodeState, mask: Bool[Array, " S"]) -> DecodeState:
        """Make rows inert."""
        return dataclasses.replace(state, budget=jnp.where(mask, 0, state.budget))

    def scrub(self, state: DecodeState, slot: Array) -> DecodeState:
        """Zero a slot: a NaN times weight zero is still NaN, so masking would not hide it."""
        cache = jax.tree.map(lambda side: side.at[slot].set(0), state.cache)
        return dataclasses.replace(state, cache=cache)

    def copy(self, state: DecodeState, source: Array, target: Array, count: Array) -> DecodeState:
        """Copy the beginning of a cache row, in whole blocks."""

        def block(index: Array, cache: tuple[LayerCache, ...]) -> tuple[LayerCache, ...]:
            at = index * KEY_BLOCK

            def move(side: Array) -> Array:
                part = read_columns(side, source, at, KEY_BLOCK)
                return write_columns(side, part, target, at)

            return jax.tree.map(move, cache)

        blocks = (count + KEY_BLOCK - 1) // KEY_BLOCK
        return dataclasses.replace(state, cache=lax.fori_loop(0, blocks, block, state.cache))

    def peek(
        self,
        params: Tree,
        state: DecodeState,
        slot: Array,
        pairs: Int32[Array, "2 R"],
        start: Array,
        last: Array,
    ) -> tuple[DecodeState, Peek]:
        """Say how likely each target is after its id, and what follows; rows end with `last`."""
        ids, targets = pairs
        model = self._model(params)
        hidden, cache = model.prompt(ids, state.cache, slot, start, last + 1)
        logits = model.head(hidden, jnp.arange(ids.shape[0]) <= last)
        total = jax.nn.logsumexp(logits, axis=-1)
        chosen = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
        state = dataclasses.replace(state, cache=cache)
        return state, Peek(chosen - total, logits)

    def weigh(
        self, params: Tree, state: DecodeState, slot: Array, runs: Runs
    ) -> tuple[DecodeState, Float[Array, " B"]]:
        """Say how likely tokens are after some rows of short runs."""
        model = self._model(params)
        hidden, cache = model.branches(runs.ids, state.cache, slot, runs.places)
        logits = model.head(hidden[runs.asked])
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
        """Say what the model makes of ids up to row `last`."""
        model = self._model(params)
        hidden, cache = model.prompt(ids, state.cache, slot, start, last + 1)
        normed = model.final_norm(hidden)
        real = jnp.arange(ids.shape[0]) <= last
        total = jnp.sum(jnp.where(real[:, None], normed, 0.0), axis=0)
        return dataclasses.replace(state, cache=cache), Pooled(total, normed[last])


def contrasted(
    logits: Float[Array, "S V"], state: DecodeState, active: Bool[Array, " S"]
) -> Float[Array, "S V"]:
    """The logits, those of rows with a shadow moved away from what that expects.

    One row at a time, in place: the others keep their bits, and without shadows nothing is done.
    """
    shadows = active & (state.leader >= 0)
    first = jnp.argsort(~shadows, stable=True)

    def move(index: Array, logits: Array) -> Array:
        shadow = first[index]
        leader = state.leader[shadow]
        other = logits[shadow]
        moved = other + state.contrast[leader] * (logits[leader] - other)
        return logits.at[leader].set(moved)

    return lax.fori_loop(0, jnp.sum(shadows), move, logits)
