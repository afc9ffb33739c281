"""Prompts: prefill of the requests that hold a slot, chunk by chunk.

Used by the engine, and by its probes. Clients take turns, one chunk at a time, and so do the
prompts of one client. A prefix that another slot has is copied; if another request is still
computing the prefix, the prompt waits for it. Each method takes the device state and returns the
next one. Knows no queue, no decoding, no faults.
"""

from collections import deque
from collections.abc import Sequence

import numpy as np

from jaxllama.engine.generation import Generation, Phase
from jaxllama.engine.programs import Programs
from jaxllama.engine.slots import Claim, SlotTable
from jaxllama.engine.state import StateLeaves


class Prompts:
    """The prompts in prefill."""

    def __init__(self, programs: Programs, slots: SlotTable) -> None:
        self._programs = programs
        self._slots = slots.slots
        self._filling: deque[Generation] = deque()
        self._chunks = 0  # sent so far
        self._last_chunk: dict[str, int] = {}  # client: the number of its last chunk

    def __len__(self) -> int:
        return len(self._filling)

    def take(self, state: StateLeaves, generation: Generation, claim: Claim) -> StateLeaves:
        """Start the prefill of a generation in its claimed slot; copy a prefix that is cached."""
        generation.phase, generation.slot = Phase.FILLING, claim.slot
        generation.filled = generation.reused = claim.reused
        generation.in_cache = False
        self._filling.append(generation)
        if claim.source is None:
            return state
        generation.source = claim.source
        # A prompt only waits for an older claim, so prompts never wait in a circle.
        generation.follows = self._slots[claim.source].owner
        return self._copy_prefix(state, generation)

    def resume(self, generation: Generation) -> None:
        """Start prefill again after forced tokens were emitted; the slot keeps its cache."""
        generation.phase, generation.in_cache = Phase.FILLING, False
        generation.filled = len(self._slots[generation.slot].cached)
        self._filling.append(generation)

    def drop(self, generation: Generation) -> None:
        """Stop the prefill of a generation, if it is still here."""
        if generation in self._filling:
            self._filling.remove(generation)

    def advance(self, state: StateLeaves) -> tuple[StateLeaves, list[Generation]]:
        """Compute one chunk of the next prompt; also return the prompts that are complete.

        The next prompt belongs to the client whose last chunk is the oldest, so a client with one
        prompt never waits for all prompts of another client.
        """
        ready: list[Generation] = []
        for generation in self._in_turn():
            self._filling.remove(generation)
            state = self._copy_prefix(state, generation)
            if generation.source is not None:
                self._filling.append(generation)
                continue
            known, end = generation.known, len(generation.known) - 1
            missing = end > generation.filled
            if missing:
                slot, start = generation.slot, generation.filled
                state, count = self.send(state, slot, known, start, end)
                generation.filled += count
                self._chunks += 1
                self._last_chunk[generation.client] = self._chunks
            if generation.filled == end:
                generation.in_cache = True
                ready.append(generation)
            else:
                self._filling.append(generation)
            if missing:
                break
        return state, ready

    def _in_turn(self) -> list[Generation]:
        """Sort the prompts by turn; forget the clients that have no prompt here."""
        clients = {generation.client for generation in self._filling}
        self._last_chunk = {
            client: last for client, last in self._last_chunk.items() if client in clients
        }
        return sorted(self._filling, key=lambda one: self._last_chunk.get(one.client, 0))

    def send(
        self, state: StateLeaves, slot: int, ids: Sequence[int], start: int, end: int
    ) -> tuple[StateLeaves, int]:
        """Compute one chunk of ids[start:end] in a slot; also return its number of tokens."""
        count = min(end - start, self._programs.chunk)
        chunk = np.zeros(self._programs.chunk, np.int32)
        chunk[:count] = ids[start : start + count]
        numbers = (np.int32(slot), chunk, np.int32(start), np.int32(count))
        state = self._programs.prefill(state, *numbers)
        self._slots[slot].cached.extend(ids[start : start + count])
        return state, count

    def _copy_prefix(self, state: StateLeaves, generation: Generation) -> StateLeaves:
        """Copy a shared prefix from another slot, unless that slot is still computing it."""
        if generation.source is None:
            return state
        source, own = self._slots[generation.source], self._slots[generation.slot].cached
        coming = min(own.shared_with(source.cached), len(generation.known) - 1)
        there = min(coming, len(source.cached))
        if there < coming and source.owner is not None and source.owner == generation.follows:
            return state
        generation.source = generation.follows = None
        if there > generation.filled:
            state = self.copy(state, source.index, generation.slot, generation.known[:there])
            generation.filled = generation.reused = there
        return state

    def copy(
        self, state: StateLeaves, source: int, target: int, prefix: Sequence[int]
    ) -> StateLeaves:
        """Copy the cache rows of a prefix from one slot to another that has its first tokens."""
        numbers = (np.int32(source), np.int32(target), np.int32(len(prefix)))
        state = self._programs.copy(state, *numbers)
        cached = self._slots[target].cached
        cached.extend(prefix[len(cached) :])
        return state
