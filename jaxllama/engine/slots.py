"""Slots: which request holds which, and whose cache rows can be used again.

Called by the engine only. Plain Python: no arrays, no text. A freed slot keeps its tokens and its
cache rows, so whoever comes next with the same beginning starts behind it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Slot:
    """One row of the batch."""

    index: int
    owner: int | None = None  # id of the generation that holds it
    cached: list[int] = field(default_factory=list)  # tokens whose keys are in the cache
    planned: Sequence[int] = ()  # what the owner's prompt will put there
    used: int = 0  # when it was last claimed


@dataclass(frozen=True)
class Claim:
    """A slot for a new request, and where its beginning can be had without computing it."""

    slot: int
    reused: int  # tokens already in place
    source: int | None = None  # this slot has, or will have, more of them


class SlotTable:
    """All slots; hands out the one that saves the most work."""

    def __init__(self, count: int) -> None:
        self.slots = [Slot(index) for index in range(count)]
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
        usable = ids[:-1]
        source = max(self.slots, key=lambda slot: (promised(slot, usable), slot.owner is None))
        shared = promised(source, usable)
        victim = min(free, key=lambda slot: (bool(slot.cached), slot.used, slot.index))
        # Taking over a slot loses what it holds beyond the shared part: only if that is little.
        if source.owner is None and 2 * shared >= len(source.cached):
            victim = source
        claim = Claim(victim.index, common_prefix(victim.cached, usable))
        if source is not victim and shared > claim.reused:
            claim = Claim(victim.index, claim.reused, source.index)
        self._clock += 1
        victim.owner, victim.planned, victim.used = owner, ids, self._clock
        del victim.cached[claim.reused :]
        return claim

    def release(self, index: int, *, keep: bool = True) -> None:
        """Give a slot back; without `keep` its rows are never used again."""
        slot = self.slots[index]
        slot.owner, slot.planned = None, ()
        if not keep:
            slot.cached.clear()


def promised(slot: Slot, ids: Sequence[int]) -> int:
    """Tokens shared with what the slot holds or is about to hold."""
    return max(common_prefix(slot.cached, ids), common_prefix(slot.planned, ids))


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    length = min(len(one), len(other))
    low = 0
    step = 512  # compare whole runs first: equal slices are compared in C
    while low < length:
        high = min(low + step, length)
        if list(one[low:high]) != list(other[low:high]):
            return next(i for i in range(low, high) if one[i] != other[i])
        low = high
    return length
