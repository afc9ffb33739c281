"""Probes: read what the model computes for given tokens, without drawing any.

Used by the engine, which claims the slot. Each method is a generator: it takes the device state,
yields the next state after each call of a program, is sent the state as it is then, and returns
its result. The tokens it computes are noted as cached in the slot, so the next probe of the same
prefix starts after it.
"""

from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

import numpy as np

from jaxllama.engine.branches import (
    PAIRS,
    RUN,
    TARGET_ROWS,
    Continuation,
    TokenRun,
    build_tree,
    cut_runs,
    group_runs,
)
from jaxllama.engine.programs import Programs
from jaxllama.engine.prompts import Prompts
from jaxllama.engine.slots import SlotTable
from jaxllama.engine.state import StateLeaves
from jaxllama.engine.steps import Runs

Result = TypeVar("Result")
ProbeSteps = Generator[StateLeaves, StateLeaves, Result]
OnLogits = Callable[[np.ndarray], object]  # gets logits [R V] of consecutive tokens


class Probes:
    """The probes of one engine."""

    def __init__(self, programs: Programs, slots: SlotTable, prompts: Prompts) -> None:
        self._programs = programs
        self._slots = slots.slots
        self._prompts = prompts
        self.computed = 0  # tokens, by all probes together

    def peek(
        self,
        state: StateLeaves,
        slot: int,
        ids: Sequence[int],
        start: int,
        on_logits: OnLogits | None,
    ) -> ProbeSteps[tuple[np.ndarray, np.ndarray]]:
        """Return the log-probabilities of ids[start:] and the logits after the last token.

        Calls `on_logits` with all logits from the token before `start` on, tile by tile.
        """
        state = yield from self._fill(state, slot, ids, start - 1)
        cached = self._slots[slot].cached
        tile, found = self._programs.tile, []
        for at in range(start - 1, len(ids), tile):
            rows = min(tile, len(ids) - at)
            following = ids[at + 1 : at + 1 + rows]
            pairs = np.zeros((2, tile), np.int32)
            pairs[0, :rows] = ids[at : at + rows]
            pairs[1, : len(following)] = following
            numbers = (np.int32(slot), pairs, np.int32(at), np.int32(rows - 1))
            state, seen = self._programs.peek(state, *numbers)
            cached.cut(at)
            cached.extend(ids[at : at + rows])
            self.computed += rows
            state = yield state
            found.append(np.asarray(seen.logprob)[: len(following)])  # waits: logits are large
            if on_logits is not None:
                on_logits(np.asarray(seen.logits)[:rows])
        return np.concatenate(found), np.asarray(seen.logits)[rows - 1]

    def weigh(
        self, state: StateLeaves, slot: int, continuations: Sequence[Continuation], shared: int
    ) -> ProbeSteps[list[np.ndarray]]:
        """Return the log-probabilities of each continuation's tokens from its start on.

        The first `shared` tokens of all continuations are equal.
        """
        state = yield from self._fill(state, slot, continuations[0][0], shared)
        found = [np.zeros(len(ids) - start, np.float32) for ids, start in continuations]
        sent = []
        runs = cut_runs(build_tree(continuations, shared), shared)
        for call in group_runs(runs, self._programs.tile // RUN):
            state, logprobs = self._programs.weigh(state, np.int32(slot), self._arguments(call))
            sent.append((call, logprobs))
            self.computed += sum(len(run.tokens) for run in call)
            state = yield state
        for call, logprobs in sent:
            all_keys = [keys for run in call for _, _, keys in run.targets]
            for keys, logprob in zip(all_keys, np.asarray(logprobs).tolist(), strict=False):
                for index, place in keys:
                    found[index][place] = logprob
        return found

    def embed(
        self, state: StateLeaves, slot: int, ids: Sequence[int]
    ) -> ProbeSteps[tuple[np.ndarray, np.ndarray]]:
        """Return the final hidden states of `ids` after the last norm: their mean, and the last."""
        tile, found = self._programs.tile, []
        for at in range(0, len(ids), tile):
            rows = min(tile, len(ids) - at)
            padded = np.zeros(tile, np.int32)
            padded[:rows] = ids[at : at + rows]
            numbers = (np.int32(slot), padded, np.int32(at), np.int32(rows - 1))
            state, seen = self._programs.embed(state, *numbers)
            self._slots[slot].cached.extend(ids[at : at + rows])
            found.append(seen)
            self.computed += rows
            state = yield state
        total = np.sum([np.asarray(seen.total) for seen in found], axis=0)
        return total / len(ids), np.asarray(found[-1].last)

    def _fill(
        self, state: StateLeaves, slot: int, ids: Sequence[int], end: int
    ) -> ProbeSteps[StateLeaves]:
        """Prefill the tokens of ids[:end] that the slot has not cached yet."""
        cached = self._slots[slot].cached
        while len(cached) < end:
            state, count = self._prompts.send(state, slot, ids, len(cached), end)
            self.computed += count
            state = yield state
        return state

    def _arguments(self, call: Sequence[TokenRun]) -> Runs:
        """Lay out the runs of one call as the arrays of the `weigh` program."""
        count = self._programs.tile // RUN
        ids, places = np.zeros((count, RUN), np.int32), np.zeros((2, count), np.int32)
        pairs = np.zeros((2, PAIRS), np.int32)
        rows: dict[int, int] = {}  # row with targets: its index among these rows
        filled = 0
        for index, run in enumerate(call):
            ids[index, : len(run.tokens)] = run.tokens
            places[:, index] = run.start, len(run.tokens)
            for row, token, _ in run.targets:
                pairs[:, filled] = rows.setdefault(index * RUN + row, len(rows)), token
                filled += 1
        padded = np.zeros(TARGET_ROWS, np.int32)
        padded[: len(rows)] = list(rows)
        return Runs(ids.reshape(-1), places, padded, pairs)  # type: ignore[arg-type]
