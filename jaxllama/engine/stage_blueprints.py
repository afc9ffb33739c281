"""Stage blueprints: the functions of `stage_steps.py` with the arguments of each.

Made by `pipeline.py`, one for each stage, on the stage's own mesh.
"""

from functools import cached_property
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxllama.engine.blueprints import BLANK, FEED, LEAN, WHOLE, Blueprints, output_of
from jaxllama.engine.stage_steps import Fed, StageSteps
from jaxllama.engine.steps import Steps
from jaxllama.sharding import sharding

PREFILL, PROMPT, RUNS, STEP = "pass_prefill", "pass_prompt", "pass_runs", "pass_step"
DRAW, DRAW_LEAN = "draw", "draw_lean"
# For each program that passes the model: the one of the early stages, and those of the last stage.
PASSING = {
    "prefill": (PREFILL, ("prefill",)),
    "peek": (PROMPT, ("peek",)),
    "embed": (PROMPT, ("embed",)),
    "score": (RUNS, ("score",)),
    WHOLE: (STEP, (FEED, BLANK, DRAW)),
    LEAN: (STEP, (FEED, BLANK, DRAW_LEAN)),
}
OF_LAST = ("admit", "release")  # they change the rows, not the cache
EVERYWHERE = ("empty", "scrub", "copy", "save", "restore")


class StageBlueprints(Blueprints):
    """Describes the programs of one stage of a pipeline, so that they can be compiled."""

    kind: ClassVar[type[Steps]] = StageSteps

    def outputs(self, name: str) -> Any:
        """Return the sharding of each result of the program `name`.

        Hidden states of a decode step are split by slots, like the state; those of prompts are
        replicated.
        """
        rows: Any = sharding(self.mesh, "slots")
        whole: Any = self.whole
        fed = Fed(rows, rows, rows)
        output = output_of(whole)
        special = {
            FEED: fed,
            BLANK: output,
            DRAW: (self._shardings, (output, fed)),
            DRAW_LEAN: (self._shardings, (output, fed)),
            STEP: (self._shardings, rows),
            **dict.fromkeys((PREFILL, PROMPT, RUNS), (self._shardings, whole)),
        }
        return special[name] if name in special else super().outputs(name)

    def _arguments(self, name: str) -> tuple[Any, ...]:
        """Return the arguments of the program `name`, with shapes and types in place of arrays.

        They are trees, as the method of `StageSteps` takes them.
        """
        if name in {*EVERYWHERE, *OF_LAST}:
            return super()._arguments(name)
        number, steps, fed = self._small(()), self.steps, self._fed()
        runs, allowed = self._runs(), super()._arguments(LEAN)[-1]
        of_runs, of_tile = (self._given(size) for size in (runs.ids.shape[0], steps.tile))
        own = (self.params, self.state)
        in_slot = (*own, number)
        if name in {DRAW, DRAW_LEAN}:
            return (*own, self._output, fed.x, number, number, allowed)
        targets = self._small((steps.tile,))
        return {
            **dict.fromkeys(
                (PREFILL, "prefill"), (*in_slot, self._given(steps.chunk), number, number)
            ),
            **dict.fromkeys((PROMPT, "embed"), (*in_slot, of_tile, number, number)),
            "peek": (*in_slot, (of_tile, targets), number, number),
            RUNS: (*in_slot, of_runs, runs.places),
            "score": (*in_slot, runs._replace(ids=of_runs)),
            STEP: (*own, fed),
            FEED: (self.state, allowed, number),
            BLANK: (),
        }[name]

    @cached_property
    def _output(self) -> Any:
        """Return the shapes and types of the output of a decode call."""
        assert isinstance(self.steps, StageSteps)
        blank = jax.eval_shape(self.steps.blank)
        return jax.tree.map(lambda x: self._small(x.shape, x.dtype), blank)

    def _given(self, count: int) -> Any:
        """Return shape and type of this stage's input for `count` tokens of a prompt.

        The input of the first stage is token ids, that of other stages is hidden states.
        """
        if self.model.reads_tokens:
            return self._small((count,))
        return self._small((count, self.model.width), jnp.float32)

    def _fed(self) -> Fed:
        """Return the shapes and types of this stage's input in a decode step."""
        slots, rows = self.engine.slots, sharding(self.mesh, "slots")

        def split(shape: tuple[int, ...], dtype: Any) -> Any:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=rows)

        number = split((slots,), jnp.int32)
        hidden = split((slots, self.model.width), jnp.float32)
        x = number if self.model.reads_tokens else hidden
        return Fed(x, number, split((slots,), jnp.bool_))
