"""The pipeline: the programs of a model whose layers lie on several groups of devices, in stages.

Made by `llm.py` in place of `Programs` for a mesh with the axis `stage`, with the same calls. A
stage has programs of its own on its own devices (`stage_steps.py`); here is the loop over steps and
stages. Nothing in it waits for a device: programs and copies of hidden states between devices are
sent in an order in which each finds its inputs, and every device runs its own as they come.

A step's rows are cut into as many microbatches as there are stages, so that each stage has one to
compute while the others have theirs:

    stage 0   a b a b a b        a, b: microbatches; each round of a and b is one step
    stage 1     a b a b a b      which ends with the choice of a token

A microbatch is a mask of rows: shapes, and so the bits of a row, are those of a step with all rows.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxllama.config import EngineConfig, ModelConfig
from jaxllama.engine.blueprints import BLANK, FEED, SAVE, WHOLE, Blueprints, leaves_of
from jaxllama.engine.choosing.bank import SamplerBank
from jaxllama.engine.executables import Executables
from jaxllama.engine.parcel import pack
from jaxllama.engine.programs import Programs
from jaxllama.engine.stage_blueprints import (
    DRAW,
    DRAW_LEAN,
    EVERYWHERE,
    PASSING,
    PREFILL,
    PROMPT,
    RUNS,
    STEP,
    StageBlueprints,
)
from jaxllama.engine.stage_steps import Fed, microbatches
from jaxllama.engine.state import DecodeState, StateLeaves
from jaxllama.engine.steps import Runs, StepOutput
from jaxllama.model.key_heads import with_copies
from jaxllama.model.params import Tree
from jaxllama.model.stages import stage_configs
from jaxllama.sharding import place, sharding


class StageStates(NamedTuple):
    """The states of all stages: for each, the leaves of its `DecodeState`."""

    early: tuple[StateLeaves, ...]
    last: StateLeaves
    # What the first stage gets of each microbatch in the next step; () if rows have changed since.
    fed: tuple[Fed, ...] = ()


class Pipeline(Programs):
    """The compiled programs of all stages of one model, and the weights they run on."""

    def __init__(
        self,
        model: ModelConfig,
        engine: EngineConfig,
        bank: SamplerBank,
        params: Tree,
        meshes: Sequence[Mesh],
        *,
        executables: Executables | None = None,
    ) -> None:
        """Prepare to compile or load the programs of all pipeline stages; nothing is compiled yet.

        `params[i]` holds the weights of stage i, `meshes[i]` its devices. `bank` has the samplers.
        `executables` are compiled programs on disk, None to keep none.
        """
        configs = stage_configs(with_copies(model, engine.model_parallel), engine.stage_layers)
        self.stages = [
            StageBlueprints(config, engine, bank, params[config.index], mesh)
            for config, mesh in zip(configs, meshes, strict=True)
        ]
        self.last = len(self.stages) - 1
        last = self.stages[-1]
        given = (model, engine, bank, params, last.mesh)
        super().__init__(*given, executables=executables, blueprints=last)
        self._weights_of = [leaves_of(params[stage]) for stage in range(len(self.stages))]
        self._rows = [sharding(each.mesh, "slots") for each in self.stages]
        self._groups = microbatches(engine.stages, engine.slots)
        numbers = range(max(engine.steps_per_sync, self._groups))
        self._numbers = [place(np.asarray(each, np.int32), last.whole) for each in numbers]

    @property
    def traces(self) -> Counter[str]:
        """Count how often each compiled program was traced; the keys are "PROGRAM.STAGE"."""
        return Counter(
            {
                self._part(name, stage): count
                for stage, each in enumerate(self.stages)
                for name, count in each.traces.items()
            }
        )

    @property
    def columns(self) -> Any:
        """Return, for each stage, the shapes and types of one block of KV cache columns.

        A column holds the keys and values of one token.
        """
        return tuple(each.columns for each in self.stages)

    @property
    def devices(self) -> list[Any]:
        """List the devices on which the programs run."""
        return [device for each in self.stages for device in each.mesh.devices.flat]

    def parts(self, name: str) -> tuple[str, ...]:
        """Return the names of the compiled programs that are run for a call of the program `name`.

        With two stages, "copy" consists of "copy.0" and "copy.1", one program for each stage, and
        "admit" of "admit.1" only, a program of the last stage.
        """
        return parts_of(name, len(self.stages))

    def delete(self, state: StateLeaves) -> None:
        """Free the device memory of a state."""
        for leaf in leaves_of(state):
            leaf.delete()

    def tree_of(self, state: StateLeaves) -> DecodeState:
        """Convert `state`, flat tuples of arrays, to one `DecodeState` tree, to read it.

        The tree has the KV caches of all stages; all else is from the last stage.
        """
        states = StageStates(*state)
        trees: list[DecodeState] = [
            jax.tree.unflatten(jax.tree.structure(each.state), leaves)
            for each, leaves in zip(self.stages, (*states.early, states.last), strict=True)
        ]
        cache = tuple(layer for tree in trees for layer in tree.cache)
        return dataclasses.replace(trees[-1], cache=cache)

    # Calls of the programs: take host numbers, return the next state. Each consumes `state`.

    def empty(self) -> StageStates:
        """Make the first state of every stage, with all rows inactive."""
        *early, last = (self._program("empty", stage)() for stage in range(len(self.stages)))
        return StageStates(tuple(early), last)

    def prefill(
        self,
        state: StateLeaves,
        slot: Any,
        ids: Any,
        start: Any,
        count: Any,
        adapter: StateLeaves | None = None,
    ) -> Any:
        """Write keys and values of the first `count` tokens of `ids` to a slot's KV cache.

        The first token goes to column `start` (its position in the slot). Consumes `state` and
        returns the next one. `adapter` must be None: stages have no adapters.
        """
        del adapter  # `EngineConfig` has none with stages
        passed, hidden = self._pass(PREFILL, state, slot, ids, start, count)
        run = self._program("prefill", self.last)
        last = run(self._weights_of[-1], passed.last, slot, hidden, start, count)
        return passed._replace(last=last)

    def decode(
        self,
        state: StateLeaves,
        steps: Any,
        allowed: Any = None,
        lean: bool = False,
        adapter: StateLeaves | None = None,
        forced: Any = None,
    ) -> tuple[StateLeaves, StepOutput]:
        """Draw `steps` tokens for every active row; return the next state and the tokens.

        `allowed` has a bit mask of the allowed tokens for each row, None if all are allowed.
        `lean`: all rows use common samplers only, so a program with these alone may run instead of
        the one with all samplers. `adapter` and `forced` must be None: stages have no adapters and
        no speculation. All steps are sent to the devices, but those without an active row cost
        little.
        """
        del adapter, forced  # `EngineConfig` has none with stages
        mask = self._every_token if allowed is None else place(allowed, self.blueprints.whole)
        draw = self._program(DRAW if self._decoder(lean=lean) == WHOLE else DRAW_LEAN, self.last)
        feed, output = self._program(FEED, self.last), self._program(BLANK, self.last)()
        states, numbers = StageStates(*state), self._numbers
        early, last = list(states.early), states.last
        # After a call without masks and changed rows, a microbatch need not wait for the others.
        groups = list(states.fed) if allowed is None else []
        groups = groups or [feed(last, mask, numbers[group]) for group in range(self._groups)]
        for step in range(int(steps)):
            for group, fed in enumerate(groups):
                hidden = self._pass_step(early, fed)
                given = (hidden, numbers[step], numbers[group], mask)
                last, (output, groups[group]) = draw(self._weights_of[-1], last, output, *given)
        following = tuple(groups) if allowed is None else ()
        return StageStates(tuple(early), last, following), output

    def admit(self, state: StateLeaves, slot: Any, row: Any) -> StateLeaves:
        """Write the start values `row` to a slot's row, so that the row decodes from then on.

        `row` is a RowStart, or the uint8 array that `pack` made of one. Returns the next state.
        """
        return self._with_rows("admit", state, slot, pack(row))

    def release(self, state: StateLeaves, mask: Any) -> StateLeaves:
        """Stop decoding in the rows where `mask` [slots] is True; return the next state."""
        return self._with_rows("release", state, mask)

    def scrub(self, state: StateLeaves, slot: Any) -> StateLeaves:
        """Fill a slot's KV cache with zeros."""
        return self._with_caches("scrub", state, slot)

    def copy(self, state: StateLeaves, source: Any, target: Any, count: Any) -> StateLeaves:
        """Copy the first `count` KV cache columns of slot `source` to slot `target`.

        Each token has one column. Whole blocks are copied, so `count` is rounded up. Returns the
        next state.
        """
        return self._with_caches("copy", state, source, target, count)

    def save(self, state: StateLeaves, slot: Any, start: Any) -> Any:
        """Return, for each stage, one block of a slot's KV cache, from column `start` on.

        A block has KEY_BLOCK columns, one for each token. Does not consume `state`.
        """
        return self._everywhere(SAVE, state, slot, start)

    def restore(self, state: StateLeaves, columns: Any, slot: Any, start: Any) -> StateLeaves:
        """Write the block `columns` to a slot's KV cache, from column `start` on.

        `columns` is a block as `save` returns it.
        """
        states = StageStates(*state)
        *early, last = (
            self._program("restore", stage)(own, columns[stage], slot, start)
            for stage, own in enumerate((*states.early, states.last))
        )
        return states._replace(early=tuple(early), last=last)

    def peek(
        self,
        state: StateLeaves,
        slot: Any,
        pairs: Any,
        start: Any,
        last: Any,
        adapter: StateLeaves | None = None,
    ) -> Any:
        """Run known tokens through the model; return the next state and a Peek.

        The Peek has the log-probability of each target, and the logits after each token. `pairs`
        [2, R]: R token ids, then for each id its target, the next token, whose log-probability is
        requested. Keys and values go to the slot's cache from column `start` on. `last` is the
        index of the last id that counts; the rest is padding. `adapter` must be None: stages have
        no adapters.
        """
        del adapter  # `EngineConfig` has none with stages
        ids, targets = pairs
        passed, hidden = self._pass(PROMPT, state, slot, ids, start, last)
        return self._end("peek", passed, slot, (hidden, targets), start, last)

    def score(
        self, state: StateLeaves, slot: Any, runs: Runs, adapter: StateLeaves | None = None
    ) -> Any:
        """Return the next state, and log-probabilities of target tokens after short runs of tokens.

        `runs` holds the tokens of the runs, their cache columns, and the targets; each target comes
        after one of these tokens. `adapter` must be None: stages have no adapters.
        """
        del adapter  # `EngineConfig` has none with stages
        passed, hidden = self._pass(RUNS, state, slot, runs.ids, runs.places)
        return self._end("score", passed, slot, runs._replace(ids=hidden))

    def embed(self, state: StateLeaves, slot: Any, ids: Any, start: Any, last: Any) -> Any:
        """Return the next state, and the sum and the last one of the final hidden states of `ids`.

        `last` is the index of the last id that counts; the rest is padding. Keys and values go to
        the slot's cache from column `start` on.
        """
        passed, hidden = self._pass(PROMPT, state, slot, ids, start, last)
        return self._end("embed", passed, slot, hidden, start, last)

    # The programs of one stage.

    def _part(self, name: str, stage: int) -> str:
        return f"{name}.{stage}"

    def _program(self, name: str, stage: int) -> Any:
        """Return the compiled program `name` of a stage."""
        return self.compiled(self._part(name, stage))

    def _described(self, part: str) -> tuple[Blueprints, str]:
        """Return the Blueprints of the stage of a compiled program, and the program's name in them.

        Blueprints describe the programs of a stage. `part` is "PROGRAM.STAGE"; the returned name is
        "PROGRAM".
        """
        name, _, stage = part.rpartition(".")
        return self.stages[int(stage)], name

    def _everywhere(self, name: str, state: StateLeaves, *given: Any) -> tuple[Any, ...]:
        """Run the program `name` of every stage on the stage's own state; return the results.

        `given` are further arguments, the same for every stage.
        """
        states = StageStates(*state)
        every = enumerate((*states.early, states.last))
        return tuple(self._program(name, stage)(own, *given) for stage, own in every)

    def _with_caches(self, name: str, state: StateLeaves, *given: Any) -> StateLeaves:
        """Run the program `name`, which changes only the KV cache, on every stage.

        `given` are further arguments, the same for every stage. Returns the next states.
        """
        *early, last = self._everywhere(name, state, *given)
        return StageStates(*state)._replace(early=tuple(early), last=last)

    def _with_rows(self, name: str, state: StateLeaves, *given: Any) -> StateLeaves:
        """Run the program `name`, which starts or stops the decoding of rows, on the last stage.

        `given` are the program's further arguments. Returns the states of all stages; only that of
        the last stage is new.
        """
        states = StageStates(*state)
        last = self._program(name, self.last)(states.last, *given)
        return states._replace(last=last, fed=())

    def _pass(
        self, name: str, state: StateLeaves, slot: Any, x: Any, *given: Any
    ) -> tuple[StageStates, Any]:
        """Run the program `name`, which computes tokens of a prompt, on all stages but the last.

        `x` are the tokens of `slot`, `given` are further arguments. Returns the next states, and
        the hidden states on the devices of the last stage.
        """
        states, early = StageStates(*state), []
        for stage, before in enumerate(states.early):
            run = self._program(name, stage)
            own, hidden = run(self._weights_of[stage], before, slot, x, *given)
            x = jax.device_put(hidden, self.stages[stage + 1].whole)
            early.append(own)
        return states._replace(early=tuple(early)), x

    def _end(self, name: str, states: StageStates, *given: Any) -> tuple[StageStates, Any]:
        """Run the program `name` of the last stage; return the next states and its result.

        `states` are the states of all stages, `given` are further arguments of the program.
        """
        run = self._program(name, self.last)
        last, found = run(self._weights_of[-1], states.last, *given)
        return states._replace(last=last), found

    def _pass_step(self, early: list[StateLeaves], fed: Fed) -> Any:
        """Compute a decode step of one microbatch of rows on all stages but the last.

        `early` has the states of these stages, which are replaced in the list. `fed` is the input
        of the first stage. Returns the hidden states on the devices of the last stage.
        """
        x = fed.x
        for stage, own in enumerate(early):
            here = jax.device_put(fed._replace(x=x), self._rows[stage])
            early[stage], x = self._program(STEP, stage)(self._weights_of[stage], own, here)
        return jax.device_put(x, self._rows[-1])


def parts_of(name: str, stages: int) -> tuple[str, ...]:
    """Return the names of the compiled programs that are run for a call of the program `name`.

    `stages` is the number of pipeline stages. With two stages, "copy" consists of "copy.0" and
    "copy.1", one program for each stage, and "admit" of "admit.1" only, a program of the last
    stage.
    """
    last = stages - 1
    if name in EVERYWHERE:
        return tuple(f"{name}.{stage}" for stage in range(stages))
    if name not in PASSING:
        return (f"{name}.{last}",)
    passing, ending = PASSING[name]
    return (
        *(f"{passing}.{stage}" for stage in range(last)),
        *(f"{each}.{last}" for each in ending),
    )
