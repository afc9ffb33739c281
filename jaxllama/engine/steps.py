"""Steps: the programs as pure functions of the weights and the state.

Compiled by `programs.py`, which lists them. Each consumes its state and returns the next one. Knows
rows and tokens, not requests.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxllama.config import KEY_BLOCK, EngineConfig, ModelConfig
from jaxllama.engine.choosing.bank import SamplerBank
from jaxllama.engine.choosing.chooser import ChosenTokens, TokenChooser
from jaxllama.engine.draft_model import (
    DraftModel,
    RowTokens,
    after_copy,
    split_weights,
)
from jaxllama.engine.drafts import (
    SHORTEST,
    SURE,
    Drafts,
    chances,
    find_drafts,
    least_chance,
    pay_together,
    updated_trust,
    worth_checking,
)
from jaxllama.engine.forced import ForcedTokens, StepInput, after_given, input_of, masks_at
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
from jaxllama.sampling import NO_TOKEN
from jaxllama.scopes import scoped
from jaxllama.shapes import Array, Bool, Float, Int32, UInt32


class StepOutput(NamedTuple):
    """The output of a decode call; [k, s] belongs to slot s and to step k, or to place k.

    A program that drafts has several places for each step, one after the other: a row takes the
    first, and each further one whose draft was accepted.
    """

    token: Int32[Array, "steps S"]  # -1: the row was inert
    choice: ChosenTokens  # every leaf [steps, S, ...]
    # Tokens drafted, forced ones left out; at the first place of a step.
    drafted: Int32[Array, "steps S"] | None = None


class Peek(NamedTuple):
    """The logits after given tokens, and the log-probabilities of given targets."""

    logprob: Float[Array, " R"]  # of each target
    logits: Float[Array, "R V"]  # after each row


class Pooled(NamedTuple):
    """The hidden states of some tokens after the final norm, pooled."""

    total: Float[Array, " D"]  # summed over the tokens
    last: Float[Array, " D"]  # of the last token


# Draws one token for each of the given rows, from their logits.
Draw = Callable[[DecodeState, Array, Array, Array], tuple[DecodeState, StepOutput]]


class Runs(NamedTuple):
    """Short runs of tokens in one slot, and the targets whose log-probability is requested."""

    ids: Int32[Array, " R"] | Float[Array, "R D"]
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
        *,
        draft_cost: float = 1.0,
    ) -> None:
        """Prepare the programs (prefill, decode and others) for one model and one engine size.

        `bank` has the samplers. `where` says how the weights are split over devices; None on one
        device, or if the kernels leave the split to the compiler. `draft_cost` is the time of a
        step of the draft model, if there is one, relative to a step of the model.
        """
        self.model, self.engine, self.bank, self.where = model, engine, bank, where
        body = body_named(engine.kernels)
        # Where calls often run the lean program, it has nothing but the common samplers.
        self._whole = TokenChooser(bank)
        self._lean = TokenChooser(bank, bank.common, lists=not body.prefers_lean)
        body.check_drafts(engine.draft_tokens, engine.devices)
        body.check_packing(pack=engine.pack_prompts)
        self.places = 1 + engine.draft_tokens  # tokens that a row may draw in one step
        self._for_prompts = body.for_prompts
        self.tile = body.prompt_tile(engine.slots)
        self.score_rows = body.score_rows or self.tile
        self.chunk = body.whole_tiles(engine.prefill_chunk, engine.slots)
        # The spans of several prompts that share one tile; 0: each prompt has its own calls.
        span = body.span_rows if engine.pack_prompts else None
        self.spans = self.tile // span if span else 0
        self._draft_model = None
        if engine.draft_model is not None:
            self._draft_model = DraftModel(engine.draft_model, engine, self.tile, draft_cost)

    def _model(self, params: Tree, *, for_prompts: bool = False) -> Llama | SpreadLlama:
        """Return the model with the weights `params`.

        With `for_prompts`, the weights have the form in which the kernels compute prompts, which
        may differ from the form for decode steps.
        """
        where, (params, _) = self.where, split_weights(params)
        if for_prompts:
            params = self._with_blocks_for_prompts(params)
            where = where and where._replace(params=self._with_blocks_for_prompts(where.params))
        if where is not None:
            return SpreadLlama(self.model, self.engine, params, where)
        return model_of(self.model, params, self.engine.kernels)

    def _with_blocks_for_prompts(self, tree: Tree) -> Tree:
        return {**tree, "blocks": self._for_prompts(tree["blocks"])}

    def empty(self) -> DecodeState:
        """Make a state with all rows inactive."""
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
        """Compute the first `count` tokens of `ids`; write their keys and values to a slot's cache.

        `ids` is padded to whole tiles of `self.tile` tokens. The first token goes to cache column
        `start`; columns after the last token may be overwritten, too. `adapter` is the slot's LoRA
        adapter; None: no adapter is applied.
        """
        adapters = of_rows(adapter, self.tile)

        def tile(index: Array, cache: KVCache) -> KVCache:
            at = index * self.tile
            tokens = lax.dynamic_slice_in_dim(ids, at, self.tile)
            real = jnp.minimum(count - at, self.tile)
            model = self._model(params, for_prompts=True)
            return model.prompt(tokens, cache, slot, start + at, real, adapters)[1]

        tiles = (count + self.tile - 1) // self.tile
        cache = lax.fori_loop(0, tiles, tile, state.cache)
        return dataclasses.replace(state, cache=cache)

    def prefill_packed(
        self,
        params: Tree,
        state: DecodeState,
        ids: Int32[Array, " R"],
        places: Int32[Array, "3 G"],
    ) -> DecodeState:
        """Compute spans of several prompts together; write their keys and values to the cache.

        `ids` is one tile, cut into spans of equal size. `places` has the slot, the first cache
        column and the number of real tokens of each span; columns after a span may be overwritten,
        too. The spans of a prompt follow one another.
        """
        cache = self._model(params, for_prompts=True).spans(ids, state.cache, places)[1]
        return dataclasses.replace(state, cache=cache)

    def decode(
        self,
        params: Tree,
        state: DecodeState,
        steps: Array,
        allowed: UInt32[Array, "S W"],
        forced: Int32[Array, "2 S N"] | None = None,
    ) -> tuple[DecodeState, StepOutput]:
        """Draw up to `steps` tokens for every active row; stop early when no row is active.

        `allowed` has a bit per token for each row; a row whose bits are all 0 draws nothing in this
        call, because its mask is still being computed. `forced` has the tokens that each row's
        constraint dictates (the two arrays of ForcedTokens, stacked); `allowed` is for the token
        after them. `forced` None: no speculation. Both are the same in all steps, so `steps` must
        be 1 if a row has a constraint.
        """
        return self._decode(self._whole, params, state, steps, allowed, forced)

    def decode_adapted(
        self,
        params: Tree,
        state: DecodeState,
        steps: Array,
        allowed: UInt32[Array, "S W"],
        adapters: AdapterBlocks,
        forced: Int32[Array, "2 S N"] | None = None,
    ) -> tuple[DecodeState, StepOutput]:
        """Draw up to `steps` tokens for every active row, when some row has a LoRA adapter.

        Rows without adapter get tokens bit-identical to those of `decode`. `allowed` has a bit per
        token for each row; `adapters` are the device arrays of all adapters. `forced` has the
        tokens that each row's constraint dictates (the two arrays of ForcedTokens, stacked);
        `allowed` is for the token after them. `forced` None: no speculation.
        """
        return self._decode(self._whole, params, state, steps, allowed, forced, adapters)

    def decode_lean(
        self, params: Tree, state: DecodeState, steps: Array, allowed: UInt32[Array, "S W"]
    ) -> tuple[DecodeState, StepOutput]:
        """Draw up to `steps` tokens for every active row, with the common samplers alone.

        Only for rows that use no other samplers; the results are bit-identical to those of
        `decode`. `allowed` has a bit per token for each row. With kernels that prefer this program,
        no row may have guidance or log-probabilities. Never drafts tokens, so that this program,
        the first one of a fresh installation, compiles fast.
        """
        return self._decode(self._lean, params, state, steps, allowed)

    def _decode(  # noqa: PLR0913, PLR0917 - a chooser, and the arguments of a compiled program
        self,
        chooser: TokenChooser,
        params: Tree,
        state: DecodeState,
        steps: Array,
        allowed: UInt32[Array, "S W"],
        forced: Int32[Array, "2 S N"] | None = None,
        adapters: AdapterBlocks | None = None,
    ) -> tuple[DecodeState, StepOutput]:
        places = 1 if forced is None else self.places
        draw = partial(self._draw, chooser)
        logits = jnp.zeros((self.engine.slots, self.model.vocab_size), jnp.float32)
        blank = self._blank(draw, state, allowed, self.engine.steps_per_sync * places)
        if forced is not None:
            blank = blank._replace(drafted=jnp.zeros_like(blank.token))

        def one(carry: tuple[Array, DecodeState, StepOutput, Array | None]) -> Any:
            done, state, output, room = carry
            active = state.active & jnp.any(allowed != 0, axis=-1)
            if room is not None and forced is not None:
                given = (draw, params, state, active, allowed, ForcedTokens(*forced), adapters)
                return done + 1, *self._step_with_drafts(*given, done * places, output, room)
            model, own = self._model(params), adapters_of(adapters, state)
            hidden, cache = model.step(state.pending, state.cache, state.length, active, own)
            logits = model.head(hidden, active)
            state, now = draw(dataclasses.replace(state, cache=cache), logits, active, allowed)
            return done + 1, state, written(output, done, now, lists=chooser.lists), None

        def more(carry: tuple[Array, DecodeState, StepOutput, Array | None]) -> Array:
            done, state, *_ = carry
            return (done < steps) & jnp.any(state.active)

        room = None if forced is None else logits
        _, state, output, _ = lax.while_loop(more, one, (jnp.int32(0), state, blank, room))
        return state, output

    def _blank(self, draw: Draw, state: DecodeState, allowed: Any, most: int) -> StepOutput:
        """Return an output with room for `most` tokens per row, none of which is drawn yet.

        `draw` chooses tokens from logits; of `state` and of the masks `allowed`, only shapes count.
        """
        logits = jax.ShapeDtypeStruct((self.engine.slots, self.model.vocab_size), jnp.float32)
        active = jax.ShapeDtypeStruct((self.engine.slots,), jnp.bool_)
        shapes = jax.eval_shape(draw, state, logits, active, allowed)[1]
        blank = jax.tree.map(lambda x: jnp.zeros((most, *x.shape), x.dtype), shapes)
        return blank._replace(token=blank.token - 1)

    def _step_with_drafts(  # noqa: PLR0913, PLR0917 - what a step reads, and where it writes
        self,
        draw: Draw,
        params: Tree,
        state: DecodeState,
        active: Bool[Array, " S"],
        allowed: UInt32[Array, "S W"],
        forced: ForcedTokens,
        adapters: AdapterBlocks | None,
        place: Array,
        output: StepOutput,
        room: Float[Array, "S V"],
    ) -> tuple[DecodeState, StepOutput, Float[Array, "S V"]]:
        """Draw a token for every active row, and further ones as long as each equals its draft.

        `draw` chooses tokens from logits; `allowed` has a bit per token for each row. `forced` has
        the tokens that constraints dictate: those in `forced.given` are appended to the row before
        the first drawn token; those in `forced.drawn` are drafts, and no other token is allowed in
        their places. `adapters` are the arrays of all LoRA adapters or None. Drawn tokens go into
        `output` from index `place` on; `room` is memory for logits, returned as the third result.
        Each token is bit-identical to the one drawn without drafts: logits, random numbers and
        sampler state are the same. The cache columns of refused drafts are overwritten before they
        are read.
        """
        fed = input_of(state, active, forced.given)
        state = after_given(state, fed)
        state, guesses, drafts = self._drafts(params, state, active, fed, forced.drawn)
        state, logits = self._logits_of(params, (state, room), active, fed, drafts, adapters)
        assert output.drafted is not None
        output = output._replace(drafted=output.drafted.at[place].set(guesses))

        def one(carry: tuple[Array, DecodeState, StepOutput, Array, Array]) -> Any:
            index, state, output, logits, going = carry
            state, now = draw(state, logits, going, masks_at(index, allowed, forced.drawn))
            output = written(output, place + index, now, lists=True)
            drafted = drafts.tokens[:, jnp.minimum(index, self.places - 2)]
            going &= state.active & (index < drafts.length) & (now.token == drafted)

            def following(turn: Array, logits: Array) -> Array:
                del logits
                # `turn` is 0; without it XLA reads the logits in every step, outside this loop.
                place = index + 1 + turn
                slots, room = self.engine.slots, state.draft_logits
                assert room is not None
                found: Array = lax.dynamic_slice_in_dim(room, place * slots, slots)
                return found

            logits = lax.fori_loop(0, jnp.any(going).astype(jnp.int32), following, logits)
            return index + 1, state, output, logits, going

        before = state.length
        _, state, output, room, _ = lax.while_loop(
            lambda carry: jnp.any(carry[-1]), one, (jnp.int32(0), state, output, logits, active)
        )
        accepted = jnp.where(guesses > 0, jnp.maximum(state.length - before - 1, 0), 0)
        trust = updated_trust(state.draft_trust, guesses, accepted)
        draft = state.draft and state.draft._replace(
            filled=jnp.minimum(state.draft.filled, state.length)  # not those of refused drafts
        )
        return dataclasses.replace(state, draft_trust=trust, draft=draft), output, room

    def _logits_of(
        self,
        params: Tree,
        before: tuple[DecodeState, Float[Array, "S V"]],
        active: Bool[Array, " S"],
        fed: StepInput,
        drafts: Drafts,
        adapters: AdapterBlocks | None,
    ) -> tuple[DecodeState, Float[Array, "S V"]]:
        """Compute the logits of each active row's next token, and the logits after each draft.

        The logits after drafts go to `draft_logits` of the state. `before` is the state and an
        array for the logits of the next tokens; returns both with new values. `fed` are the tokens
        that come before the drafts: logits are computed only after the last of them. `drafts` are
        the drafted tokens of each row; `adapters` are the arrays of all LoRA adapters or None.
        Loops that run once or never replace conditionals, because XLA would copy the cache in a
        conditional.
        """
        model = self._model(params)
        assert isinstance(model, Llama)

        def alone(_: Array, before: tuple[DecodeState, Array]) -> tuple[DecodeState, Array]:
            state, _ = before
            own = adapters_of(adapters, state)
            hidden, cache = model.step(state.pending, state.cache, state.length, active, own)
            return dataclasses.replace(state, cache=cache), model.head(hidden, active)

        def ahead(_: Array, before: tuple[DecodeState, Array]) -> tuple[DecodeState, Array]:
            state, _ = before
            depth = jnp.arange(self.places, dtype=jnp.int32)[:, None]
            later = jnp.where((depth[1:] <= fed.length).T, fed.given, drafts.tokens)
            tokens = jnp.concatenate([fed.pending[None], later.T])
            rows = active & (depth <= fed.length + drafts.length)
            own = adapters_of(adapters, state, self.places)
            hidden, cache = model.runs(tokens, state.cache, fed.column, rows, own)
            # The first token that is drawn comes after the given ones.
            place = jnp.minimum(depth + fed.length, self.places - 1)
            hidden = hidden[place, jnp.arange(place.shape[1])]
            drawn = active & (depth <= drafts.length)
            logits = model.head(hidden.reshape(drawn.size, -1), drawn.reshape(-1))
            first = logits[: self.engine.slots]
            return dataclasses.replace(state, cache=cache, draft_logits=logits), first

        has_drafts = jnp.any((drafts.length > 0) | (fed.length > 0)).astype(jnp.int32)
        found = lax.fori_loop(0, 1 - has_drafts, alone, before)
        return lax.fori_loop(0, has_drafts, ahead, found)

    def _drafts(
        self,
        params: Tree,
        state: DecodeState,
        active: Bool[Array, " S"],
        fed: StepInput,
        forced: Int32[Array, "S N"],
    ) -> tuple[DecodeState, Int32[Array, " S"], Drafts]:
        """Draft the next tokens of every active row, as many as are likely enough to save time.

        Returns the state, the number of guessed tokens of each row, and the drafts. The drafts of a
        row are guesses, or the tokens in `forced`, which its constraint dictates. `fed` are the
        tokens that the step computes before the drafts. Guesses are looked up in the row's earlier
        tokens. With a draft model, they are looked up only after a long match, and the draft model
        guesses for the other rows; the returned state has its new cache. A row drafts no more
        tokens than it may still generate, so drafts need no columns beyond those of the slot.
        """
        asked = active & (state.draft_limit > 0)
        left = jnp.where(asked, jnp.minimum(state.draft_limit, state.budget - 1), 0)
        have_to = active[:, None] & (forced != NO_TOKEN)
        count = jnp.sum(have_to, axis=1, dtype=jnp.int32)
        rows = jnp.sum(jnp.where(active, 1 + fed.length + count, 0)).astype(jnp.float32)
        drafts = self._looked_up(state, left, rows)
        if self._draft_model is not None:
            state, drafts = self._computed(params, state, left, rows, drafts)
        tokens, length = jnp.where(have_to, forced, drafts.tokens), drafts.length + count
        speaker = state.speaker
        return state, drafts.length[speaker], Drafts(tokens[speaker], length[speaker])

    def _looked_up(
        self, state: DecodeState, left: Int32[Array, " S"], rows: Float[Array, ""]
    ) -> Drafts:
        """Draft at most `left` tokens for each row by looking them up in the row's earlier tokens.

        `rows` is the number of tokens that the step computes without these drafts.
        """
        most = self.places - 1
        least = least_chance(self.engine.row_cost, rows)
        wants = (left > 0) & ((state.draft_trust >= 1) | (least < 1))

        def find() -> Drafts:
            tokens, match = find_drafts(state.tokens, state.length + 1, most)
            if self._draft_model is not None:
                match = jnp.where(match >= SURE, match, 0)
            trust = state.draft_trust
            count = worth_checking(trust, match, least, most)
            count = jnp.where(wants, jnp.minimum(count, left), 0)
            adapted = jnp.where(trust < 1, count, 0)
            pay = pay_together(chances(trust, match, most), adapted, rows, self.engine.row_cost)
            return Drafts(tokens, jnp.where((trust >= 1) | pay, count, 0))

        def none() -> Drafts:
            return Drafts(jnp.zeros((left.shape[0], most), jnp.int32), jnp.zeros_like(left))

        return lax.cond(jnp.any(wants), find, none)

    def _computed(
        self,
        params: Tree,
        state: DecodeState,
        left: Int32[Array, " S"],
        rows: Float[Array, ""],
        found: Drafts,
    ) -> tuple[DecodeState, Drafts]:
        """Let the draft model draft at most `left` tokens for each row without drafts in `found`.

        Returns the state with the new cache of the draft model, and the drafts of all rows, those
        in `found` included. `rows` is how many tokens the step computes besides drafts.
        """
        assert self._draft_model is not None and state.draft is not None
        trust, cost = state.draft_trust, self._draft_model.cost
        left = jnp.where((found.length == 0) & (state.leader < 0), left, 0)
        drafting = jnp.maximum(jnp.sum(left > 0), 1).astype(jnp.float32)
        least = least_chance(self.engine.row_cost, rows, cost, drafting)
        missing = state.length - state.draft.filled
        pays = (least < 1) & (missing * cost <= state.budget)  # its columns have to be computed
        count = worth_checking(trust, jnp.full_like(left, SHORTEST), least, self.places - 1)
        wanted = jnp.where((trust >= 1) | pays, jnp.minimum(count, left), 0)
        known = RowTokens(state.tokens, state.length)
        made = self._draft_model.draft(params, state.draft, known, wanted)
        tokens = jnp.minimum(made.tokens, self.model.vocab_size - 1)  # its table may be longer
        drafts = Drafts(
            jnp.where((found.length > 0)[:, None], found.tokens, tokens),
            jnp.maximum(found.length, made.length),
        )
        return dataclasses.replace(state, draft=made.cache), drafts

    def _draw(
        self,
        chooser: TokenChooser,
        state: DecodeState,
        logits: Float[Array, "S V"],
        active: Bool[Array, " S"],
        allowed: UInt32[Array, "S W"],
    ) -> tuple[DecodeState, StepOutput]:
        """Draw one token for each active row from `logits`, the logits after its newest token.

        `chooser` applies the samplers; `allowed` has a bit per token for each row. Returns the
        state with the drawn tokens appended, and the tokens.
        """
        rows = state.rows()
        rows = rows._replace(active=rows.active & active, allowed=allowed)
        if chooser.lists:
            logits = apply_guidance(logits, state, active)
        bank, choice = chooser.choose(state.bank, logits, rows)
        length = jnp.where(active, state.length + 1, state.length)
        token, finite = choice.token[state.speaker], choice.finite[state.speaker]
        place = jnp.where(active, length, state.tokens.shape[1])  # inert rows: out of bounds
        tokens = state.tokens.at[jnp.arange(token.shape[0]), place].set(token, mode="drop")
        ended = jnp.any(token[:, None] == state.stop_ids, axis=1) | ~finite
        left = jnp.where(ended, 0, state.budget - 1)
        after = dataclasses.replace(
            state,
            tokens=tokens,
            length=length,
            pending=jnp.where(active, token, state.pending),
            budget=jnp.where(active, left, jnp.where(state.active, state.budget, 0)),
            bank=bank,
        )
        return after, StepOutput(jnp.where(active, token, -1), choice)

    def admit(self, state: DecodeState, slot: Array, row: RowStart) -> DecodeState:
        """Return the state with a slot's row replaced, so that this row decodes."""
        return write_row(state, slot, row, self.bank)

    def release(self, state: DecodeState, mask: Bool[Array, " S"]) -> DecodeState:
        """Return the state in which the rows in `mask` are inactive: they draw no more tokens."""
        return dataclasses.replace(state, budget=jnp.where(mask, 0, state.budget))

    def scrub(self, state: DecodeState, slot: Array) -> DecodeState:
        """Fill a slot's KV cache with zeros, in case it holds NaN.

        A mask of the slot's columns would not help, because NaN times zero is NaN.
        """
        cache, draft = jax.tree.map(lambda side: side.at[slot].set(0), (state.cache, state.draft))
        return dataclasses.replace(state, cache=cache, draft=draft)

    def copy(self, state: DecodeState, source: Array, target: Array, count: Array) -> DecodeState:
        """Copy the first `count` cache columns of slot `source` to slot `target`.

        They are copied in whole blocks. With a draft model, the columns of its cache are copied,
        too, with the tokens that they belong to.
        """
        blocks = (count + KEY_BLOCK - 1) // KEY_BLOCK
        caches = (state.cache, None if state.draft is None else state.draft.layers)

        def block(index: Array, caches: Any) -> Any:
            at = index * KEY_BLOCK

            def move(side: Array) -> Array:
                part = read_columns(side, source, at, KEY_BLOCK)
                return write_columns(side, part, target, at)

            return jax.tree.map(move, caches)

        cache, layers = lax.fori_loop(0, blocks, block, caches)
        state = dataclasses.replace(state, cache=cache)
        if state.draft is None:
            return state
        copied = jnp.arange(state.tokens.shape[1]) < count
        tokens = jnp.where(copied, state.tokens[source], state.tokens[target])
        draft = after_copy(state.draft._replace(layers=layers), source, target, count)
        return dataclasses.replace(state, tokens=state.tokens.at[target].set(tokens), draft=draft)

    def save(self, state: DecodeState, slot: Array, start: Array) -> Columns:
        """Return the block of a slot's cache columns from `start` on; the state stays as it is."""
        return read_block(state.cache, slot, start)

    def restore(
        self, state: DecodeState, columns: Columns, slot: Array, start: Array
    ) -> DecodeState:
        """Overwrite the block of a slot's cache columns from `start` on with `columns`.

        `columns` is a block as `save` returns it.
        """
        cache = write_block(state.cache, columns, slot, start)
        return dataclasses.replace(state, cache=cache)

    def peek(  # noqa: PLR0913, PLR0917 - arguments of a compiled program
        self,
        params: Tree,
        state: DecodeState,
        slot: Array,
        pairs: Int32[Array, "2 R"] | tuple[Float[Array, "R D"], Int32[Array, " R"]],
        start: Array,
        last: Array,
        adapter: SlotAdapter | None = None,
    ) -> tuple[DecodeState, Peek]:
        """Run given tokens through the model; return log-probabilities of targets, and all logits.

        `pairs` has R token ids (in the last of several pipeline stages: hidden states), and for
        each of them a target: the token whose log-probability after it is requested. Entries after
        index `last` are padding. Keys and values go to the slot's cache from column `start` on.
        `adapter` None: no LoRA adapter is applied.
        """
        ids, targets = pairs
        model = self._model(params, for_prompts=True)
        adapters = of_rows(adapter, ids.shape[0])
        hidden, cache = model.prompt(ids, state.cache, slot, start, last + 1, adapters)
        logits = model.head(hidden, jnp.arange(ids.shape[0]) <= last)
        total = jax.nn.logsumexp(logits, axis=-1)
        chosen = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
        state = dataclasses.replace(state, cache=cache)
        return state, Peek(chosen - total, logits)

    def score(
        self,
        params: Tree,
        state: DecodeState,
        slot: Array,
        runs: Runs,
        adapter: SlotAdapter | None = None,
    ) -> tuple[DecodeState, Float[Array, " B"]]:
        """Return the state and the log-probabilities of targets after short sequences of one slot.

        `runs` holds the sequences, their cache columns, and the targets: tokens whose
        log-probability after a certain token of a sequence is requested. `adapter` None: no LoRA
        adapter is applied.
        """
        model = self._model(params, for_prompts=True)
        adapters = of_rows(adapter, runs.ids.shape[0])
        places = in_slot(slot, runs.places)
        hidden, cache = model.spans(runs.ids, state.cache, places, adapters)
        logits = model.head(hidden[runs.rows])
        row, token = runs.pairs
        logprob = logits[row, token] - jax.nn.logsumexp(logits, axis=-1)[row]
        return dataclasses.replace(state, cache=cache), logprob

    def embed(
        self,
        params: Tree,
        state: DecodeState,
        slot: Array,
        ids: Int32[Array, " R"] | Float[Array, "R D"],
        start: Array,
        last: Array,
    ) -> tuple[DecodeState, Pooled]:
        """Run tokens through the model; return the sum of hidden states and the last hidden state.

        The hidden states are those after the final norm. Tokens after index `last` are padding and
        do not count. `ids` are token ids, or in the last of several pipeline stages hidden states.
        Keys and values go to the slot's cache from column `start` on.
        """
        model = self._model(params, for_prompts=True)
        hidden, cache = model.prompt(ids, state.cache, slot, start, last + 1)
        normed = model.final_norm(hidden)
        real = jnp.arange(ids.shape[0]) <= last
        total = jnp.sum(jnp.where(real[:, None], normed, 0.0), axis=0)
        return dataclasses.replace(state, cache=cache), Pooled(total, normed[last])

    def adapt(
        self, adapters: AdapterBlocks, number: Int32[Array, ""], weights: AdapterWeights
    ) -> AdapterBlocks:
        """Return the arrays of all adapters, with adapter `number` replaced by `weights`."""
        return write_adapter(adapters, number, weights)


def in_slot(slot: Array, places: Int32[Array, "2 G"]) -> Int32[Array, "3 G"]:
    """Add the slot, the same for all, to the first columns and lengths of several spans."""
    return jnp.concatenate([jnp.broadcast_to(slot, (1, places.shape[1])), places])


@scoped
def apply_guidance(
    logits: Float[Array, "S V"], state: DecodeState, active: Bool[Array, " S"]
) -> Float[Array, "S V"]:
    """Move the logits of each guided row away from the logits of its guidance row.

    A guidance row decodes the negative prompt of a request. Rows are changed one at a time, in
    place: the logits of other rows are not touched, and without guidance rows nothing runs.
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


def adapters_of(
    blocks: AdapterBlocks | None, state: DecodeState, places: int = 1
) -> Adapters | None:
    """Return the LoRA adapter of each token that the model computes, with all adapters' arrays.

    `blocks` are these arrays; None gives None. `state` says which adapter each row has. The model
    computes `places` tokens per row: first one of every row, then the next of every row.
    """
    if blocks is None:
        return None
    number, scale = (jnp.tile(each, places) for each in (state.adapter, state.adapter_scale))
    return Adapters(blocks, AdapterRows(number, scale))


def written(output: StepOutput, place: Array, now: StepOutput, *, lists: bool) -> StepOutput:
    """Return `output` with the tokens of `now`, one per row, stored at index `place`.

    `now` is the output of one step, or with drafts that of the n-th token of a step. Without
    `lists`, log-probabilities and lists of likely tokens stay blank.
    """

    def put(every: Array, new: Array) -> Array:
        return every.at[place].set(new)

    token = put(output.token, now.token)
    if lists:
        return output._replace(token=token, choice=jax.tree.map(put, output.choice, now.choice))
    finite = put(output.choice.finite, now.choice.finite)
    return output._replace(token=token, choice=output.choice._replace(finite=finite))
