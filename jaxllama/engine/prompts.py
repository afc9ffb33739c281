"""Prompts: how the tokens of requests that hold a slot get into the cache.

Used by the engine, and by its probes. Clients take turns, one chunk at a time, and so do the
prompts of one client; a beginning that another slot has is copied, and one that another request is
still computing is waited for. Each method takes the device state and returns the next one. Knows no
queue, no decoding, no faults.
"""

from collections import deque
from collections.abc import Sequence

import numpy as np

from jaxllama.engine.generation import Generation, Phase
from jaxllama.engine.programs import Programs
from jaxllama.engine.slots import Claim, SlotTable
from jaxllama.engine.state import StateLeaves


class Prompts:
    """The prompts that are on their way, in turn."""

    def __init__(self, programs: Programs, slots: SlotTable) -> None:
        self._programs = programs
        self._slots = slots.slots
        self._filling: deque[Generation] = deque()
        self._chunks = 0  # sent so far
        self._last_chunk: dict[str, int] = {}  # of each client with prompts here: its number

    def __len__(self) -> int:
        return len(self._filling)

    def take(self, state: StateLeaves, generation: Generation, claim: Claim) -> StateLeaves:
        """Let a claim be filled; a beginning that is in another slot already is copied at once."""
        generation.phase, generation.slot = Phase.FILLING, claim.slot
        generation.filled = generation.reused = claim.reused
        generation.in_cache = False
        self._filling.append(generation)
        if claim.source is None:
            return state
        generation.source = claim.source
        # Only an older claim is ever waited for, so nobody waits in a circle.
        generation.follows = self._slots[claim.source].owner
        return self._copy_beginning(state, generation)

    def resume(self, generation: Generation) -> None:
        """Tokens were added to one that decoded; its slot keeps what is cached."""
        generation.phase, generation.in_cache = Phase.FILLING, False
        generation.filled = len(self._slots[generation.slot].cached)
        self._filling.append(generation)

    def drop(self, generation: Generation) -> None:
        """It is not wanted any more."""
        if generation in self._filling:
            self._filling.remove(generation)

    def advance(self, state: StateLeaves) -> tuple[StateLeaves, list[Generation]]:
        """Compute one chunk of one prompt, in turn; also returns the prompts that are complete.

        Next is the client whose last chunk is the oldest, so a client with one prompt never waits
        for all prompts of another.
        """
        ready: list[Generation] = []
        for generation in self._in_turn():
            self._filling.remove(generation)
            state = self._copy_beginning(state, generation)
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
        """The prompts in the order in which they are next; forgets clients without any."""
        clients = {generation.client for generation in self._filling}
        self._last_chunk = {
            client: last for client, last in self._last_chunk.items() if client in clients
        }
        return sorted(self._filling, key=lambda one: self._last_chunk.get(one.client, 0))

    def send(
        self, state: StateLeaves, slot: int, ids: Sequence[int], start: int, end: int
    ) -> tuple[StateLeaves, int]:
        """Compute one chunk of ids[start:end] into a slot; also returns its length."""
        count = min(end - start, self._programs.chunk)
        chunk = np.zeros(self._programs.chunk, np.int32)
        chunk[:count] = ids[start : start + count]
        numbers = (np.int32(slot), chunk, np.int32(start), np.int32(count))
        state = self._programs.prefill(state, *numbers)
        self._slots[slot].cached.extend(ids[start : start + count])
        return state, count

    def _copy_beginning(self, state: StateLeaves, generation: Generation) -> StateLeaves:
        """Copy a shared beginning from another slot, unless that is still being computed."""
        if generation.source is None:
            return state
        source, own = self._slots[generation.source], self._slots[generation.slot].cached
        coming = min(own.shared_with(source.cached), len(generation.known) - 1)
        there = min(coming, len(source.cached))
        if there < coming and source.owner is not None and source.owner == generation.follows:
            return state
        generation.source = generation.follows = None
        if there > generation.filled:
            numbers = (np.int32(source.index), np.int32(generation.slot), np.int32(there))
            state = self._programs.copy(state, *numbers)
            own.extend(generation.known[len(own) : there])
            generation.filled = generation.reused = there
        return state
