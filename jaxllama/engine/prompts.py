"""Prompts: prefill of the requests that hold a slot, chunk by chunk.

Used by the engine, and by its probes. Clients take turns, one chunk at a time, and so do the
prompts of one client. With `pack_prompts`, a short prompt shares its chunk with the prompts whose
turn comes next. A prefix that another slot has is copied; if another request is still
computing the prefix, the prompt waits for it. A longer one that the prompt store has is written
back. Knows no queue, no decoding, no faults.
"""

from collections import deque
from collections.abc import Sequence

import numpy as np

from jaxllama.config import KEY_BLOCK
from jaxllama.engine.batch import Batch
from jaxllama.engine.blueprints import PACKED
from jaxllama.engine.generation import Generation, Phase
from jaxllama.engine.packing import PackedChunk
from jaxllama.engine.prompt_store import PromptStore, StoredPrefix
from jaxllama.engine.slots import AdapterKey, Claim, SlotTable, key_of
from jaxllama.request import AdapterUse

RESTORED = 8  # blocks written back in one turn of a prompt
LESS = 4  # while clients share the engine, prompts together take so many times less of a tile ...
LEAST_SPANS = 2  # ... but at least this


class Prompts:
    """The prompts that are in prefill: their tokens are written to the cache chunk by chunk."""

    def __init__(self, batch: Batch, slots: SlotTable, store: PromptStore) -> None:
        self._batch = batch
        self._table = slots
        self._store = store
        self._filling: deque[Generation] = deque()
        self._chunks = 0  # sent so far
        self._last_chunk: dict[str, int] = {}  # client: the number of its last chunk

    def __len__(self) -> int:
        return len(self._filling)

    def take(self, generation: Generation, claim: Claim) -> None:
        """Start the prefill of a generation (a running request) in the slot that it has claimed.

        `claim` names this slot, and the slot with a longer cached prefix of the prompt, if there is
        one. That prefix is copied now, or later if it is still being computed. If the prompt store
        has an even longer prefix, that one is restored later instead.
        """
        generation.phase, generation.slot = Phase.FILLING, claim.slot
        generation.filled = generation.reused = claim.reused
        generation.in_cache = False
        self._filling.append(generation)
        adapter = key_of(generation.request.adapter)
        generation.stored = self.find_stored(claim, generation.known[:-1], adapter)
        if claim.source is None or generation.stored is not None:
            return
        generation.source = claim.source
        # A prompt only waits for an older claim, so prompts never wait in a circle.
        generation.follows = self._table.slots[claim.source].owner
        self._copy_prefix(generation)

    def resume(self, generation: Generation) -> None:
        """Put a generation back into prefill, to compute tokens that its constraint has forced.

        A forced token is the only one that the constraint allows next. What the slot has cached is
        kept.
        """
        generation.phase, generation.in_cache = Phase.FILLING, False
        generation.filled = len(self._table.slots[generation.slot].cached)
        self._filling.append(generation)

    def drop(self, generation: Generation) -> None:
        """Take a generation out of prefill; do nothing if it is not in prefill."""
        if generation in self._filling:
            self._filling.remove(generation)

    def clear(self) -> None:
        """Take all generations out of prefill."""
        self._filling.clear()

    def advance(self, *, is_shared: bool = False) -> list[Generation]:
        """Compute one chunk of the next prompt; return the generations whose prompts are complete.

        The next prompt belongs to the client whose last chunk is the oldest, so a client with one
        prompt never waits for all prompts of another client. If it is short, and the engine packs
        prompts, other short ones share the chunk; fewer if `is_shared`, which says that several
        clients use the engine.
        """
        ready: list[Generation] = []
        chunk: list[Generation] = []
        clients: set[str] = set()  # whose turn it was
        spans = room = self._spans(is_shared=is_shared)
        for waiting in self._in_turn():
            generation = self._first_to_compute(waiting)
            if generation is None or generation not in self._filling:
                continue
            if chunk and self._spans_of(generation, spans) > room:
                continue
            self._filling.remove(generation)
            if waiting is not generation:  # the other prompts of its client are next
                self._filling.remove(waiting)
                self._filling.append(waiting)
            if generation.stored is not None and not self._restore_piece(generation):
                self._filling.append(generation)
                break
            if not generation.missing:
                generation.in_cache = True
                ready.append(generation)
                continue
            chunk.append(generation)
            clients |= {waiting.client, generation.client}
            room -= self._spans_of(generation, spans)
            if room <= 0:
                break
        self._compute(chunk)
        for generation in chunk:
            generation.in_cache = not generation.missing
            (ready if generation.in_cache else self._filling).append(generation)
        if chunk:
            self._last_chunk |= dict.fromkeys(clients, self._chunks)
        return ready

    def _first_to_compute(self, waiting: Generation) -> Generation | None:
        """Return the generation to compute in the turn of `waiting`: it, or the one it waits for.

        A generation waits for another one that is computing a prefix of its prompt. In its turn a
        chunk of that one is computed, so no prompt waits for the other prompts of another client.
        Returns None if the other one is not in prefill now: its last tokens are in this chunk, or
        the rest of the prefix needs a decode step.
        """
        generation: Generation | None = waiting
        while generation is not None:
            self._copy_prefix(generation)
            if generation.source is None:
                break
            generation = next((one for one in self._filling if one.id == generation.follows), None)
        return generation

    def _spans(self, *, is_shared: bool) -> int:
        """Return how many spans several prompts may have in one chunk; 0: they do not share one.

        A span is a few consecutive tokens of one prompt. `is_shared`: several clients use the
        engine.
        """
        programs = self._batch.programs
        # While the program is being compiled, computing each prompt by itself is faster.
        if not programs.spans or not programs.is_made(PACKED):
            return 0
        if is_shared and programs.body.skips_rows:
            return min(max(programs.spans // LESS, LEAST_SPANS), programs.spans)
        return programs.spans

    def _spans_of(self, generation: Generation, most: int) -> int:
        """Return how many spans the rest of a prompt takes; `most` + 1 if it cannot share a chunk.

        A prompt cannot share one with others if the request has an adapter, or while a stored
        prefix is written back.
        """
        if not most or generation.request.adapter is not None or generation.stored is not None:
            return most + 1
        return -(-generation.missing // self._batch.programs.span_rows)

    def _compute(self, chunk: Sequence[Generation]) -> None:
        """Compute the next tokens of the generations in `chunk` in one prefill call.

        One generation gets a whole chunk; several are computed to their end.
        """
        if not chunk:
            return
        self._chunks += 1
        if len(chunk) == 1:
            (one,) = chunk
            end, adapter = len(one.known) - 1, one.request.adapter
            counts = [self.send(one.slot, one.known, one.filled, end, adapter)]
        else:
            counts = self._send_packed(chunk)
        for generation, count in zip(chunk, counts, strict=True):
            generation.filled += count

    def _in_turn(self) -> list[Generation]:
        """List the generations in prefill, beginning with the client whose last chunk is oldest.

        Forgets clients without a prompt in prefill.
        """
        clients = {generation.client for generation in self._filling}
        self._last_chunk = {
            client: last for client, last in self._last_chunk.items() if client in clients
        }
        return sorted(self._filling, key=lambda one: self._last_chunk.get(one.client, 0))

    def send(
        self,
        slot: int,
        ids: Sequence[int],
        start: int,
        end: int,
        adapter: AdapterUse | None = None,
    ) -> int:
        """Send one chunk of ids[start:end] to a slot's prefill; return its number of tokens.

        The chunk begins at `start`, which is also its first cache column, and has at most as many
        tokens as one prefill call takes. `adapter` None: the model alone.
        """
        size = self._batch.programs.chunk
        count = min(end - start, size)
        chunk = np.zeros(size, np.int32)
        chunk[:count] = ids[start : start + count]
        self._batch.prefill(slot, chunk, start, count, adapter)
        self._table.slots[slot].cached.extend(ids[start : start + count])
        return count

    def _send_packed(self, chunk: Sequence[Generation]) -> list[int]:
        """Send the missing tokens of several prompts in one call; return how many each had."""
        packed = PackedChunk(self._batch.programs.spans, self._batch.programs.span_rows)
        for one in chunk:
            packed.add(one.slot, one.known[:-1], one.filled)
        self._batch.prefill_packed(*packed.arrays())
        for one in chunk:
            self._table.slots[one.slot].cached.extend(one.known[one.filled : -1])
        return [one.missing for one in chunk]

    def _copy_prefix(self, generation: Generation) -> None:
        """Copy to a generation's slot the prefix of its prompt that its source slot has cached.

        Does nothing without a source slot, or while the prefix is still being computed there.
        """
        if generation.source is None:
            return
        slots = self._table.slots
        source, own = slots[generation.source], slots[generation.slot].cached
        coming = min(own.shared_with(source.cached), len(generation.known) - 1)
        there = min(coming, len(source.cached))
        if there < coming and source.owner is not None and source.owner == generation.follows:
            return
        generation.source = generation.follows = None
        # While the program is being compiled, computing the prefix again is faster than waiting.
        if there > generation.filled and self._batch.programs.is_ready("copy"):
            self.copy(source.index, generation.slot, generation.known[:there])
            generation.filled = generation.reused = there

    def find_stored(
        self, claim: Claim, known: Sequence[int], adapter: AdapterKey
    ) -> StoredPrefix | None:
        """Return the longest prefix of `known` in the prompt store, or None.

        Returns None if slots have cached as much of `known`, or nearly as much. `claim` names the
        claimed slot and the slot with the longest cached prefix; `adapter` identifies the request's
        adapter. A prefix that is found counts as a hit of the prompt store.
        """
        if not self._batch.programs.is_ready("restore"):
            return None
        coming = claim.reused
        if claim.source is not None:
            source, own = (self._table.slots[each].cached for each in (claim.source, claim.slot))
            coming = min(own.shared_with(source), len(known))
        found = self._store.find(known, adapter, coming)
        if found is not None:
            self._store.use(found, claim.reused)
        return found

    def restore(self, slot: int, stored: StoredPrefix, known: Sequence[int]) -> bool:
        """Write the next few blocks of a stored prefix into a slot; return True after the last.

        `known` are the tokens of the request, which begin with the prefix.
        """
        cached = self._table.slots[slot].cached
        first = len(cached) // KEY_BLOCK
        for number, block in enumerate(stored.blocks[first : first + RESTORED], first):
            assert block.columns is not None
            self._batch.restore(slot, block.columns, number * KEY_BLOCK)
        there = min(stored.length, (first + RESTORED) * KEY_BLOCK)
        cached.extend(known[len(cached) : there])
        return there == stored.length

    def _restore_piece(self, generation: Generation) -> bool:
        """Write the next few blocks of a generation's stored prefix; return True after the last."""
        assert generation.stored is not None
        is_whole = self.restore(generation.slot, generation.stored, generation.known)
        there = len(self._table.slots[generation.slot].cached)
        generation.filled = generation.reused = there
        if is_whole:
            generation.stored = None
        return is_whole

    def copy(self, source: int, target: int, prefix: Sequence[int]) -> None:
        """Copy the KV cache of the tokens `prefix` from slot `source` to slot `target`.

        The target may have a part of it already.
        """
        self._batch.copy(source, target, len(prefix))
        cached = self._table.slots[target].cached
        cached.extend(prefix[len(cached) :])
