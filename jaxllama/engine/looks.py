"""Looks: what the model thinks of given tokens, without drawing any.

Used by the engine, which finds the slot. Each method is a generator: it takes the device state,
gives the next one away after each call of a program, is sent the state as it is then, and returns
what was seen. What the slot has cached is noted as it is computed, so that the next look starts
behind it.
"""

from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

import numpy as np

from jaxllama.engine.branches import ASKED, PAIRS, RUN, Piece, Way, calls, pieces, tree_of
from jaxllama.engine.programs import Programs
from jaxllama.engine.prompts import Prompts
from jaxllama.engine.slots import SlotTable
from jaxllama.engine.state import StateLeaves
from jaxllama.engine.steps import Runs

Seen = TypeVar("Seen")
Look = Generator[StateLeaves, StateLeaves, Seen]
See = Callable[[np.ndarray], object]  # logits [R V] of some places in a row


class Looks:
    """Reading in a slot."""

    def __init__(self, programs: Programs, slots: SlotTable, prompts: Prompts) -> None:
        self._programs = programs
        self._slots = slots.slots
        self._prompts = prompts
        self.computed = 0  # tokens, by all looks together

    def peek(
        self, state: StateLeaves, slot: int, ids: Sequence[int], start: int, see: See | None
    ) -> Look[tuple[np.ndarray, np.ndarray]]:
        """Log-probabilities of ids[start:], and the logits after the last."""
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
            if see is not None:
                see(np.asarray(seen.logits)[:rows])
        return np.concatenate(found), np.asarray(seen.logits)[rows - 1]

    def weigh(
        self, state: StateLeaves, slot: int, ways: Sequence[Way], shared: int
    ) -> Look[list[np.ndarray]]:
        """Log-probabilities of every way from its place on; all begin with `shared` tokens."""
        state = yield from self._fill(state, slot, ways[0][0], shared)
        found = [np.zeros(len(ids) - start, np.float32) for ids, start in ways]
        sent = []
        for call in calls(pieces(tree_of(ways, shared), shared), self._programs.tile // RUN):
            state, logprobs = self._programs.weigh(state, np.int32(slot), self._laid_out(call))
            sent.append((call, logprobs))
            self.computed += sum(len(piece.tokens) for piece in call)
            state = yield state
        for call, logprobs in sent:
            told = [keys for piece in call for _, _, keys in piece.asks]
            for keys, logprob in zip(told, np.asarray(logprobs).tolist(), strict=False):
                for way, place in keys:
                    found[way][place] = logprob
        return found

    def embed(
        self, state: StateLeaves, slot: int, ids: Sequence[int]
    ) -> Look[tuple[np.ndarray, np.ndarray]]:
        """What the model makes of `ids`, behind its final norm: the mean, and of the last one."""
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
    ) -> Look[StateLeaves]:
        """Compute ids[:end] behind what the slot has of them."""
        cached = self._slots[slot].cached
        while len(cached) < end:
            state, count = self._prompts.send(state, slot, ids, len(cached), end)
            self.computed += count
            state = yield state
        return state

    def _laid_out(self, call: Sequence[Piece]) -> Runs:
        """The arguments of one call."""
        count = self._programs.tile // RUN
        ids, places = np.zeros((count, RUN), np.int32), np.zeros((2, count), np.int32)
        pairs = np.zeros((2, PAIRS), np.int32)
        asked: dict[int, int] = {}
        filled = 0
        for index, piece in enumerate(call):
            ids[index, : len(piece.tokens)] = piece.tokens
            places[:, index] = piece.start, len(piece.tokens)
            for row, token, _ in piece.asks:
                pairs[:, filled] = asked.setdefault(index * RUN + row, len(asked)), token
                filled += 1
        rows = np.zeros(ASKED, np.int32)
        rows[: len(asked)] = list(asked)
        return Runs(ids.reshape(-1), places, rows, pairs)  # type: ignore[arg-type]
