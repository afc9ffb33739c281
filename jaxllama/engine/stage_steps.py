"""Stage steps: the programs of one stage of a pipeline, as pure functions.

Made by `stage_blueprints.py`. A stage has some of the model's layers and their KV cache. The last
stage has the head, the samplers and all row state besides the cache; it uses the functions of
`steps.py`, given hidden states in place of tokens. The other stages pass hidden states on. The
loops over steps and stages are the host's (`pipeline.py`).
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxllama.engine.choosing.chooser import TokenChooser
from jaxllama.engine.choosing.rows import every_token
from jaxllama.engine.state import DecodeState
from jaxllama.engine.steps import StepOutput, Steps, in_slot
from jaxllama.model.cache import KVCache, empty_cache
from jaxllama.model.params import Tree
from jaxllama.shapes import Array, Bool, Float, Int32, UInt32


class Fed(NamedTuple):
    """The input of one stage in a step of one microbatch."""

    x: Array  # tokens [S] for the first stage, hidden states [S D] for the others
    position: Int32[Array, " S"]  # cache column of each token
    active: Bool[Array, " S"]  # rows of the microbatch that decode


class StageSteps(Steps):
    """The programs of one stage as functions; a microbatch is a mask of rows."""

    def empty(self) -> DecodeState:
        """Make a state with all rows inactive.

        In all pipeline stages but the last, the state has only the KV cache; its other fields are
        None.
        """
        if self.model.gives_logits:
            return super().empty()
        nothing: Any = {field.name: None for field in dataclasses.fields(DecodeState)}
        return DecodeState(**{**nothing, "cache": empty_cache(self.model, self.engine, self.tile)})

    # Programs of the stages before the last one.

    def pass_prefill(
        self, params: Tree, state: DecodeState, slot: Array, x: Array, start: Array, count: Array
    ) -> tuple[DecodeState, Float[Array, "P D"]]:
        """Run a chunk of a prompt through this pipeline stage; return the hidden states after it.

        `x` has token ids (first stage) or the hidden states from the stage before; entries after
        the first `count` are padding. Keys and values go to the cache of `slot`, from column
        `start` on.
        """

        def tile(index: Array, carry: tuple[KVCache, Array]) -> tuple[KVCache, Array]:
            cache, hidden = carry
            at = index * self.tile
            rows = lax.dynamic_slice_in_dim(x, at, self.tile)
            real = jnp.minimum(count - at, self.tile)
            model = self._model(params, for_prompts=True)
            found, cache = model.prompt(rows, cache, slot, start + at, real)
            return cache, lax.dynamic_update_slice_in_dim(hidden, found, at, 0)

        tiles = (count + self.tile - 1) // self.tile
        blank = jnp.zeros((x.shape[0], self.model.width), jnp.float32)
        cache, hidden = lax.fori_loop(0, tiles, tile, (state.cache, blank))
        return dataclasses.replace(state, cache=cache), hidden

    def pass_prompt(
        self, params: Tree, state: DecodeState, slot: Array, x: Array, start: Array, last: Array
    ) -> tuple[DecodeState, Float[Array, "R D"]]:
        """Run tokens of one slot through this pipeline stage; return their hidden states after it.

        `x` has token ids (first stage) or the hidden states from the stage before; entries after
        index `last` are padding. Keys and values go to the cache of `slot`, from column `start` on.
        """
        model = self._model(params, for_prompts=True)
        hidden, cache = model.prompt(x, state.cache, slot, start, last + 1)
        return dataclasses.replace(state, cache=cache), hidden

    def pass_runs(
        self, params: Tree, state: DecodeState, slot: Array, x: Array, places: Int32[Array, "2 G"]
    ) -> tuple[DecodeState, Float[Array, "R D"]]:
        """Run short sequences of one slot through this pipeline stage; return their hidden states.

        `x` has the sequences one after the other, all padded to one size: token ids (first stage)
        or the hidden states from the stage before. `places` has the first cache column of each
        sequence, then the number of real tokens of each. A sequence sees all columns before its
        first one, also those that sequences before it in `x` have written. The result has a row for
        each token in `x`, padding included.
        """
        model = self._model(params, for_prompts=True)
        hidden, cache = model.spans(x, state.cache, in_slot(slot, places))
        return dataclasses.replace(state, cache=cache), hidden

    def pass_step(
        self, params: Tree, state: DecodeState, fed: Fed
    ) -> tuple[DecodeState, Float[Array, "S D"]]:
        """Compute one decode step of a microbatch in this pipeline stage; return the hidden states.

        `fed` has the input of this stage: one token or hidden state per row, its cache column, and
        the mask of rows that decode. Costs nothing if no row decodes.
        """

        def one(_: Array, carry: tuple[KVCache, Array]) -> tuple[KVCache, Array]:
            hidden, cache = self._model(params).step(fed.x, carry[0], fed.position, fed.active)
            return cache, hidden

        blank = jnp.zeros((self.engine.slots, self.model.width), jnp.float32)
        turns = jnp.any(fed.active).astype(jnp.int32)  # XLA copies what goes through a conditional
        cache, hidden = lax.fori_loop(0, turns, one, (state.cache, blank))
        return dataclasses.replace(state, cache=cache), hidden

    # Programs of the last stage.

    def feed(self, state: DecodeState, allowed: UInt32[Array, "S W"], group: Array) -> Fed:
        """Return the input of the first stage for the next step of microbatch number `group`.

        `allowed` has a bit per token for each row; a row whose bits are all 0 does not decode. A
        guidance row, which decodes a negative prompt, is in the same microbatch as the row that it
        guides.
        """
        own = state.speaker % microbatches(self.engine.stages, self.engine.slots) == group
        active = state.active & own & jnp.any(allowed != 0, axis=-1)
        return Fed(state.pending, state.length, active)

    def blank(self) -> StepOutput:
        """Return an empty output for a decode call: the arrays for its tokens, none drawn yet."""
        allowed = every_token(self.engine.slots, self.bank.vocab)
        state = jax.eval_shape(self.empty)
        draw = partial(self._draw, self._lean)  # of the same shapes, and sooner traced
        return self._blank(draw, state, allowed, self.engine.steps_per_sync)

    def draw(self, *arguments: Any) -> tuple[DecodeState, tuple[StepOutput, Fed]]:
        """End a step of a microbatch with all samplers: run the last layers and draw the tokens.

        `arguments` are the weights, the state, the output so far, the hidden states from the stage
        before, the index in the output, the index of the microbatch and the masks of allowed
        tokens. Returns the next state, and the output with the first stage's input for the next
        step.
        """
        return self._end_step(self._whole, *arguments)

    def draw_lean(self, *arguments: Any) -> tuple[DecodeState, tuple[StepOutput, Fed]]:
        """End a step of a microbatch with common samplers: run the last layers and draw the tokens.

        For a microbatch whose rows use no other samplers. `arguments` are the weights, the state,
        the output so far, the hidden states from the stage before, the index in the output, the
        index of the microbatch and the masks of allowed tokens. Returns the next state, and the
        output with the first stage's input for the next step.
        """
        return self._end_step(self._lean, *arguments)

    def _end_step(  # noqa: PLR0913, PLR0917 - a chooser, and the arguments of a compiled program
        self,
        chooser: TokenChooser,
        params: Tree,
        state: DecodeState,
        output: StepOutput,
        hidden: Float[Array, "S D"],
        place: Array,
        group: Array,
        allowed: UInt32[Array, "S W"],
    ) -> tuple[DecodeState, tuple[StepOutput, Fed]]:
        """End a step of a microbatch: run the last layers and draw a token for every active row.

        `chooser` applies the samplers; `hidden` comes from the stage before; `group` is the index
        of the microbatch. The tokens go into `output` at index `place`. `allowed` has a bit per
        token for each row. Returns the next state, the output, and the first stage's input for the
        microbatch's next step.
        """
        active = self.feed(state, allowed, group).active

        def one(_: Array, carry: tuple[DecodeState, StepOutput]) -> tuple[DecodeState, StepOutput]:
            state, output = carry
            model = self._model(params)
            found, cache = model.step(hidden, state.cache, state.length, active)
            logits = model.head(found, active)
            state = dataclasses.replace(state, cache=cache)
            state, now = self._draw(chooser, state, logits, active, allowed)
            return state, merged(output, place, now, active, lists=chooser.lists)

        turns = jnp.any(active).astype(jnp.int32)
        state, output = lax.fori_loop(0, turns, one, (state, output))
        return state, (output, self.feed(state, allowed, group))


def microbatches(stages: int, slots: int) -> int:
    """Return into how many microbatches the rows of a decode step are cut.

    There is one per stage, but never more than slots.
    """
    return min(stages, slots)


def merged(
    output: StepOutput, place: Array, now: StepOutput, active: Bool[Array, " S"], *, lists: bool
) -> StepOutput:
    """Return `output` with new tokens at index `place` in the rows of the mask `active`.

    `now` has the new tokens; other rows keep what they have at this index. Without `lists`,
    log-probabilities and lists of likely tokens stay blank.
    """

    def put(every: Array, new: Array) -> Array:
        rows = active.reshape(-1, *(1,) * (new.ndim - 1))
        return every.at[place].set(jnp.where(rows, new, every[place]))

    token = put(output.token, now.token)
    if lists:
        return output._replace(token=token, choice=jax.tree.map(put, output.choice, now.choice))
    finite = put(output.choice.finite, now.choice.finite)
    return output._replace(token=token, choice=output.choice._replace(finite=finite))
