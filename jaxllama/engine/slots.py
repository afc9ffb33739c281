"""Slots: which request holds which, and whose cache rows can be used again.

Called by the engine only. Plain Python: no device arrays, no text. A freed slot keeps its tokens
and its cache rows, so the next request with the same prefix starts after it.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

from jaxllama.engine.prefixes import (
    BLOCK,
    BLOCK_BYTES,
    Block,
    SlotTokens,
    known_blocks,
    longest_prefix,
)

LITTLE = 8  # a slot may be taken over if it loses at most one eighth of what is used again


@dataclass(slots=True)
class Slot:
    """One row of the batch."""

    index: int
    cached: SlotTokens  # tokens whose keys are in the cache, and those that will be
    owner: int | None = None  # id of the generation that holds it
    used: int = 0  # when it was last claimed; 0: it has nothing cached


@dataclass(frozen=True)
class Claim:
    """A slot for a new request, and where its prefix can be had without computing it."""

    slot: int
    reused: int  # tokens already in place
    source: int | None = None  # this slot has, or will have, more of them


class SlotTable:
    """All slots; hands out the one that saves the most work."""

    def __init__(self, count: int) -> None:
        self._root = Block()
        self.slots = [Slot(index, SlotTokens(index, self._root)) for index in range(count)]
        self._clock = 0

    @property
    def claimed(self) -> int:
        """How many slots are held."""
        return sum(slot.owner is not None for slot in self.slots)

    @property
    def free(self) -> int:
        """How many slots nobody holds."""
        return len(self.slots) - self.claimed

    @property
    def full(self) -> bool:
        """No slot is free."""
        return self.free == 0

    def claim(self, owner: int, ids: Sequence[int]) -> Claim | None:
        """A slot for a prompt, or None while all are held; the last token is always computed."""
        free = [slot for slot in self.slots if slot.owner is None]
        if not free:
            return None
        prompt = array("i", ids)
        usable = prompt[:-1].tobytes()
        path = known_blocks(self._root, usable)
        source, shared = self._closest(path, usable)
        victim = min(free, key=attrgetter("used"))
        # Taking over a slot loses its tokens after the shared ones: only if they are few.
        if source.owner is None and (source.cached.count - shared) * LITTLE <= shared:
            victim = source
        claim = Claim(victim.index, victim.cached.shared(path, usable))
        if source is not victim and shared > claim.reused:
            claim = Claim(victim.index, claim.reused, source.index)
        self._clock += 1
        victim.owner, victim.used = owner, self._clock
        victim.cached.cut(claim.reused)
        victim.cached.plan(prompt, path)
        return claim

    def _closest(self, path: Sequence[Block], usable: bytes) -> tuple[Slot, int]:
        """The slot that has or plans the longest prefix of `usable`, and the prefix's length.

        Of several, a free one, and of these the one with the fewest tokens.
        """
        near = [self.slots[index] for index in path[-1].slots] if path else self.slots
        blocks = len(path)
        rest = usable[blocks * BLOCK_BYTES : (blocks + 1) * BLOCK_BYTES]
        more, have = longest_prefix([slot.cached.block(blocks) for slot in near], rest)
        near = [near[index] for index in have]
        best = [slot for slot in near if slot.owner is None] or near
        return min(best, key=attrgetter("cached.count", "index")), blocks * BLOCK + more

    def release(self, index: int, *, keep: bool = True) -> None:
        """Give a slot back; without `keep` its rows are never used again."""
        slot = self.slots[index]
        slot.owner = None
        slot.cached.cut(slot.cached.count if keep else 0)
        if not slot.cached.count:
            slot.used = 0
