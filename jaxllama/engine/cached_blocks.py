"""Cached blocks: the blocks of tokens that an engine has cached, and events when they change.

Made by the engine if a caller subscribes to the events. After each step it compares the slots with
their state after the step before; the prompt store calls it for each block that the store adds or
drops. A block is BLOCK tokens together with all tokens before them. Knows tokens, slots and stored
blocks; no device, and not the receivers of the events.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from jaxllama.engine.prefixes import BLOCK, BLOCK_BYTES, TokenBlock, common_blocks
from jaxllama.engine.prompt_store import PromptStore, StoredBlock
from jaxllama.engine.slots import AdapterKey, SlotTable

HASH_BYTES = 8


class Medium(Enum):
    """The memory that holds a block."""

    DEVICE = "device"  # in a slot
    HOST = "host"  # in the prompt store


class CachedBlock(NamedTuple):
    """A block of BLOCK tokens; its hash covers these tokens and all tokens before them."""

    hash: int
    parent: int | None  # the hash of the block before it; None: it begins a prompt
    tokens: bytes  # BLOCK token ids, int32
    adapter: AdapterKey  # what it was computed with


@dataclass(frozen=True)
class BlocksStored:
    """Event: blocks that follow each other in one prompt have been cached."""

    blocks: tuple[CachedBlock, ...]
    medium: Medium

    @property
    def tokens(self) -> list[int]:
        """The token ids of all blocks."""
        return array("i", b"".join(each.tokens for each in self.blocks)).tolist()


@dataclass(frozen=True)
class BlocksRemoved:
    """Event: blocks are not cached any more in this memory."""

    hashes: tuple[int, ...]
    medium: Medium


@dataclass(frozen=True)
class BlocksCleared:
    """Event: no block is cached any more, in any memory."""


BlockEvent = BlocksStored | BlocksRemoved | BlocksCleared
Tell = Callable[[Sequence[BlockEvent]], None]


class BlockCounts:
    """Counts, for one memory, how many slots or stored prefixes hold each block."""

    def __init__(self, medium: Medium) -> None:
        self._medium = medium
        self._counts: Counter[int] = Counter()  # by hash
        self._known: set[int] = set()  # hashes that were told of
        self._touched: dict[int, CachedBlock] = {}

    def add(self, block: CachedBlock) -> None:
        """Count one more slot or stored prefix that holds a block."""
        self._counts[block.hash] += 1
        self._touched.setdefault(block.hash, block)

    def remove(self, block: CachedBlock) -> None:
        """Count one slot or stored prefix less that holds a block."""
        self._counts[block.hash] -= 1
        self._touched.setdefault(block.hash, block)

    def changes(self) -> list[BlockEvent]:
        """Return the events since the last call: first blocks removed, then blocks stored."""
        gone: list[int] = []
        new: list[list[CachedBlock]] = []
        for block in self._touched.values():
            if self._counts[block.hash] <= 0:
                del self._counts[block.hash]
            is_there, was_there = block.hash in self._counts, block.hash in self._known
            if was_there and not is_there:
                gone.append(block.hash)
            elif is_there and not was_there:
                if new and new[-1][-1].hash == block.parent:
                    new[-1].append(block)
                else:
                    new.append([block])
        self._touched.clear()
        self._known.difference_update(gone)
        self._known.update(each.hash for run in new for each in run)
        removed = [BlocksRemoved(tuple(gone), self._medium)] if gone else []
        return [*removed, *(BlocksStored(tuple(run), self._medium) for run in new)]


class CachedBlocks:
    """Follows the cached blocks of an engine, in its slots and in its prompt store."""

    def __init__(self, table: SlotTable, store: PromptStore, tell: Tell) -> None:
        """Report all blocks that are cached now as events to `tell`; `look` reports later changes.

        `table` has the slots, `store` the prefixes that are kept in host memory.
        """
        self._table, self._tell = table, tell
        self._device, self._host = BlockCounts(Medium.DEVICE), BlockCounts(Medium.HOST)
        self._begin()
        self._parts: dict[StoredBlock, list[CachedBlock]] = {}
        for block in sorted(store, key=lambda each: len(each.path)):
            self._follow(block, is_added=True)
        store.on_change = self._follow
        tell([BlocksCleared(), *self._host.changes()])
        self.look()

    def look(self) -> None:
        """Compare the slots with their last known state, and report the changes as events."""
        if self._table.slots is not self._slots:  # a fault has emptied them all
            for number in range(len(self._paths)):
                self._replace(number, [], None)
            self._begin()
        for number, slot in enumerate(self._slots):
            before = self._paths[number]
            if slot.cached.newest_block is not (before[-1] if before else None):
                self._replace(number, slot.cached.cached_path, slot.adapter)
        events = [*self._device.changes(), *self._host.changes()]
        if events:
            self._tell(events)

    def _begin(self) -> None:
        self._slots = self._table.slots
        self._paths: list[Sequence[TokenBlock]] = [[] for _ in self._slots]
        self._blocks: list[list[CachedBlock]] = [[] for _ in self._slots]

    def _replace(self, number: int, path: Sequence[TokenBlock], adapter: AdapterKey) -> None:
        """Update the counts for slot `number`, which now has the blocks in `path`.

        `path` lists the blocks from the beginning of the slot's tokens on. `adapter` is the key of
        the adapter with which they were computed, None for none.
        """
        blocks, same = self._blocks[number], common_blocks(self._paths[number], path)
        for each in blocks[same:]:
            self._device.remove(each)
        del blocks[same:]
        for new in path[same:]:
            blocks.append(block_after(blocks[-1] if blocks else None, new.tokens, adapter))
            self._device.add(blocks[-1])
        self._paths[number] = path

    def _follow(self, block: StoredBlock, *, is_added: bool) -> None:
        """Update the counts for `block`, which the prompt store has added or is about to remove.

        A block of the store holds several smaller blocks, which are counted and reported as events.
        """
        if not is_added:
            for each in self._parts.pop(block):
                self._host.remove(each)
            return
        last = self._parts[block.parent][-1] if block.parent in self._parts else None
        parts = self._parts[block] = []
        for at in range(0, len(block.tokens) - BLOCK_BYTES + 1, BLOCK_BYTES):
            last = block_after(last, block.tokens[at : at + BLOCK_BYTES], block.adapter)
            parts.append(last)
            self._host.add(last)


def block_after(before: CachedBlock | None, tokens: bytes, adapter: AdapterKey) -> CachedBlock:
    """Return the block of `tokens` (int32 as bytes) that follows the block `before`.

    `before` None: the block begins a prompt. Its hash then covers the adapter, so the hashes of all
    later blocks do as well.
    """
    parent = None if before is None else before.hash
    start = repr(adapter).encode() if parent is None else parent.to_bytes(HASH_BYTES, "big")
    digest = hashlib.sha256(start + b"\0" + tokens).digest()[:HASH_BYTES]
    return CachedBlock(int.from_bytes(digest, "big"), parent, tokens, adapter)


__all__ = [
    "BLOCK",
    "BlockEvent",
    "BlocksCleared",
    "BlocksRemoved",
    "BlocksStored",
    "CachedBlock",
    "CachedBlocks",
    "Medium",
]
