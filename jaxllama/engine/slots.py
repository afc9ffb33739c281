"""Slots: which request holds which slot, and the cached tokens that new requests can reuse.

Called by the engine only. Plain Python: no device arrays, no text. A freed slot keeps its tokens
and its cache rows, so the next request with the same prefix starts after it.
"""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from jaxllama.engine.prefixes import (
    BLOCK,
    BLOCK_BYTES,
    SlotTokens,
    TokenBlock,
    known_blocks,
    longest_prefix,
)
from jaxllama.request import AdapterUse

# Keys and values depend on the adapter, and on its scale: prefixes are shared within one such pair.
AdapterKey = tuple[int, float] | None

LEAST_COPIED = 8  # tokens: fewer are computed as fast, in one call with the rest of the prompt
LITTLE = 8  # a slot may be reused if it loses at most one eighth as many tokens as it reuses


def key_of(adapter: AdapterUse | None) -> AdapterKey:
    """Return (id, scale) of an adapter, or None without an adapter.

    Requests can share cached tokens only if this key is the same.
    """
    return None if adapter is None else (adapter.id, adapter.scale)


@dataclass(slots=True)
class Slot:
    """One slot: its cached tokens and its owner."""

    index: int
    cached: SlotTokens  # tokens whose keys are, or will be, in the cache
    owner: int | None = None  # id of the generation that holds it
    used: int = 0  # when it was last claimed; 0: it has nothing cached
    adapter: AdapterKey = None  # what its tokens were computed with


OnDrop = Callable[[Slot, int], object]  # gets a slot, and how many of its tokens it keeps


@dataclass(frozen=True)
class Claim:
    """The slot chosen for a new request, and the slot from which a longer prefix can be copied."""

    slot: int
    reused: int  # prompt tokens already cached in the slot
    source: int | None = None  # slot that has, or will have, a longer prefix of the prompt


class SlotTable:
    """All slots of an engine; a request gets the slot that saves it the most work."""

    def __init__(self, count: int, on_drop: OnDrop | None = None) -> None:
        """Make a table of `count` free slots.

        `on_drop(slot, kept)` is called before a slot drops its cached tokens after the first
        `kept`.
        """
        self._count = count
        self._on_drop = on_drop or (lambda *_: None)
        self.clear()

    def clear(self) -> None:
        """Free all slots and forget all cached tokens."""
        root = TokenBlock()
        self.slots = [Slot(index, SlotTokens(index, root)) for index in range(self._count)]
        self._clock = 0

    @property
    def claimed(self) -> int:
        """Count the slots that have an owner."""
        return sum(slot.owner is not None for slot in self.slots)

    @property
    def free(self) -> int:
        """Count the slots without an owner."""
        return len(self.slots) - self.claimed

    @property
    def full(self) -> bool:
        """Say whether no slot is free."""
        return self.free == 0

    def claim(self, owner: int, ids: Sequence[int], adapter: AdapterKey = None) -> Claim | None:
        """Claim a free slot for the prompt `ids`; return None if no slot is free.

        Prefers a slot that has a prefix of the prompt cached with the same `adapter` (None: without
        one). Records the tokens that the slot will hold. A cached column of the prompt's last token
        is not used, because a decode step computes it. `owner` is the generation's id.
        """
        free = [slot for slot in self.slots if slot.owner is None]
        if not free:
            return None
        prompt = array("i", ids)
        usable = prompt[:-1].tobytes()
        same = [slot for slot in self.slots if slot.adapter == adapter]
        root = same[0].cached.root if same else TokenBlock()
        path = known_blocks(root, usable)
        source, shared = self._closest(same, path, usable)
        victim = min(free, key=attrgetter("used"))
        # Reusing a slot loses its tokens after the shared prefix: only if they are few.
        if source is not None and source.owner is None:
            loses = source.cached.count - shared
            victim = source if loses * LITTLE <= shared else victim
        if victim.adapter != adapter:
            self._on_drop(victim, 0)
            victim.adapter = adapter
            victim.cached.restart(root)
        claim = Claim(victim.index, victim.cached.shared(path, usable))
        spared, missing = shared - claim.reused, len(ids) - 1 - claim.reused
        is_worth_it = spared >= LEAST_COPIED or 0 < spared == missing  # the latter: no prefill call
        if source is not None and source is not victim and is_worth_it:
            claim = Claim(victim.index, claim.reused, source.index)
        self._on_drop(victim, claim.reused)
        self._clock += 1
        victim.owner, victim.used = owner, self._clock
        victim.cached.cut(claim.reused)
        victim.cached.plan(prompt, path)
        return claim

    def _closest(
        self, same: Sequence[Slot], path: Sequence[TokenBlock], usable: bytes
    ) -> tuple[Slot | None, int]:
        """Find the slot that has, or will have, the longest prefix of `usable` cached.

        Returns the slot (None if `same` is empty) and the prefix's length in tokens. `usable` are
        prompt tokens (int32 as bytes), `path` the blocks of them that are in the tree of known
        prefixes, `same` the slots with the request's adapter. Of several such slots, prefers a free
        one, then the one with the fewest tokens.
        """
        if not same:
            return None, 0
        near = [self.slots[index] for index in path[-1].slots] if path else list(same)
        blocks = len(path)
        rest = usable[blocks * BLOCK_BYTES : (blocks + 1) * BLOCK_BYTES]
        more, have = longest_prefix([slot.cached.block(blocks) for slot in near], rest)
        near = [near[index] for index in have]
        best = [slot for slot in near if slot.owner is None] or near
        return min(best, key=attrgetter("cached.count", "index")), blocks * BLOCK + more

    def release(self, index: int, *, keep: bool = True) -> None:
        """Free the slot `index`; without `keep`, its cached tokens are never reused."""
        slot = self.slots[index]
        slot.owner = None
        slot.cached.cut(slot.cached.count if keep else 0)
        if not slot.cached.count:
            slot.used = 0
