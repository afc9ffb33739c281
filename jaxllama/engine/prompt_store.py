"""The prompt store: prefixes that outlive their slots, in host memory.

Owned by the engine. Before a slot drops cached tokens, their columns are read out, and they come
back when a later prompt begins with the same tokens. Kept block by block in one tree for each
adapter, so prefixes share the memory of their common beginning. The least recently used block goes
first. Knows blocks of columns and tokens, not slots, requests or files.
"""

import logging
from array import array
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import jax
import numpy as np

from jaxllama.config import KEY_BLOCK
from jaxllama.engine.prefixes import TOKEN_BYTES, longest_prefix
from jaxllama.engine.slots import AdapterKey
from jaxllama.model.cache import Columns

logger = logging.getLogger(__name__)

STORED_BYTES = KEY_BLOCK * TOKEN_BYTES  # token bytes of a whole block
LEAST = 32  # tokens: fewer are computed again sooner than they are copied twice


class StoreFollower(Protocol):
    """A function that the store calls for each change of its blocks."""

    def __call__(self, block: "StoredBlock", *, is_added: bool) -> None:
        """Receive a block that the store has just added, or is about to remove."""


ReadBlock = Callable[[int], Columns]  # reads the block of columns that begins at this token


class StoredBlock:
    """Up to KEY_BLOCK tokens with their columns; only a whole block has children."""

    __slots__ = ("adapter", "children", "columns", "parent", "tokens")

    def __init__(
        self,
        adapter: AdapterKey,
        parent: "StoredBlock | None" = None,
        tokens: bytes = b"",
        columns: Columns | None = None,
    ) -> None:
        self.adapter, self.parent, self.tokens = adapter, parent, tokens
        self.columns = columns  # None: the root of a tree
        self.children: dict[bytes, StoredBlock] = {}

    def having(self, tokens: bytes) -> "StoredBlock | None":
        """Return the child whose tokens begin with `tokens` (int32 as bytes); None if none does."""
        whole = self.children.get(tokens)
        if whole is not None or len(tokens) == STORED_BYTES:
            return whole
        return next((each for each in self.children.values() if each.begins_with(tokens)), None)

    def begins_with(self, tokens: bytes) -> bool:
        """Say whether the tokens of this block begin with `tokens` (int32 as bytes)."""
        return self.tokens.startswith(tokens)

    @property
    def path(self) -> "list[StoredBlock]":
        """List the blocks from the beginning of the prompt to this one."""
        found, block = [], self
        while block.parent is not None:
            found.append(block)
            block = block.parent
        return found[::-1]


@dataclass(frozen=True)
class StoredPrefix:
    """The longest stored prefix of a prompt."""

    length: int  # in tokens; the last block may have more
    blocks: tuple[StoredBlock, ...]


class PromptStore:
    """Cache columns of prompt prefixes in host memory, in blocks of bounded total size.

    A bound of 0 bytes stores nothing.
    """

    def __init__(self, most_bytes: int, block_bytes: int) -> None:
        self.most = most_bytes // block_bytes  # blocks
        self._block_bytes = block_bytes
        self._roots: dict[AdapterKey, StoredBlock] = {}
        # Least recently used first. A block comes before its parent, so the first has no children.
        self._order: OrderedDict[StoredBlock, None] = OrderedDict()
        self._unsettled: deque[StoredBlock] = deque()  # their columns are still on the device
        self._counts: Counter[str] = Counter()
        self.on_change: StoreFollower | None = None  # set by whoever follows the blocks

    @property
    def is_on(self) -> bool:
        """Say whether the store has room for any block."""
        return self.most > 0

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[StoredBlock]:
        """Yield all blocks, the least recently used first."""
        return iter(self._order)

    @property
    def figures(self) -> dict[str, float]:
        """Count hits, restored tokens, bytes and evicted blocks, for metrics."""
        return {
            "prompt_cache_hits": self._counts["hits"],
            "prompt_cache_tokens": self._counts["tokens"],
            "prompt_cache_evictions": self._counts["evictions"],
            "prompt_cache_bytes": len(self._order) * self._block_bytes,
        }

    def find(
        self, tokens: Sequence[int], adapter: AdapterKey, cached: int = 0
    ) -> StoredPrefix | None:
        """Return the longest stored prefix of `tokens`; None if restoring it saves too little.

        Only prefixes computed with the same `adapter` (None: without one) are found. `cached`
        counts the tokens that the slot has, or can copy from another slot, without the store. The
        stored prefix must have at least LEAST tokens more.
        """
        block = self._roots.get(adapter)
        if block is None or len(tokens) < cached + LEAST:
            return None
        wanted = array("i", tokens).tobytes()
        blocks: list[StoredBlock] = []
        while True:
            rest = wanted[len(blocks) * STORED_BYTES :][:STORED_BYTES]
            child = block.children.get(rest) if len(rest) == STORED_BYTES else None
            if child is None:
                break
            blocks.append(child)
            block = child
        length = len(blocks) * KEY_BLOCK
        several = list(block.children.values())
        more, best = longest_prefix([each.tokens for each in several], rest)
        if more:
            blocks.append(several[best[0]])
            length += more
        return StoredPrefix(length, tuple(blocks)) if length >= cached + LEAST else None

    def use(self, found: StoredPrefix, cached: int) -> None:
        """Count a hit: the prefix `found` saves computing its tokens after the first `cached`.

        Also marks the prefix's blocks as just used.
        """
        self._counts["hits"] += 1
        self._counts["tokens"] += found.length - cached
        self.touch(found.blocks)

    def touch(self, blocks: Sequence[StoredBlock]) -> None:
        """Mark the blocks of a prefix as just used, so that they are evicted last."""
        for block in reversed(blocks):
            if block in self._order:
                self._order.move_to_end(block)

    def save(self, tokens: Sequence[int], adapter: AdapterKey, read: ReadBlock) -> None:
        """Store the cache columns of `tokens`, and evict blocks if there are too many.

        `adapter` identifies the adapter they were computed with, None for none. `read(start)`
        returns the block of columns that begins at token `start`; it is called only for blocks not
        stored yet.
        """
        everything = array("i", tokens).tobytes()[: self.most * STORED_BYTES]
        blocks: list[StoredBlock] = []
        parent = self._roots.get(adapter) or StoredBlock(adapter)
        for at in range(0, len(everything), STORED_BYTES):
            part = everything[at : at + STORED_BYTES]
            block = parent.having(part)
            if block is None:
                block = self._read(parent, part, at // TOKEN_BYTES, read)
                if block is None:
                    break
            blocks.append(block)
            parent = block
        self.touch(blocks)
        self._evict()

    def add(self, parent: StoredBlock | None, tokens: bytes, columns: Columns) -> StoredBlock:
        """Store a block of columns as the child of `parent`, and return the new block.

        `parent` is the block before it in the prompt; None if the new block is the first of a
        prompt without an adapter. `tokens` are the new block's tokens, int32 as bytes.
        """
        if parent is None:
            parent = self._roots.get(None) or StoredBlock(None)
        for each in [each for each in parent.children.values() if tokens.startswith(each.tokens)]:
            self._remove(each)
        if parent.parent is None:
            self._roots[parent.adapter] = parent
        block = parent.children[tokens] = StoredBlock(parent.adapter, parent, tokens, columns)
        self._order[block] = None
        self.touch(block.path)
        if self.on_change is not None:
            self.on_change(block, is_added=True)
        return block

    def settle(self) -> None:
        """Keep as host arrays the blocks whose copy from the device is complete; do not wait."""
        while self._unsettled:
            block = self._unsettled[0]
            if not all(leaf.is_ready() for leaf in jax.tree.leaves(block.columns)):
                return
            self._settle(block)

    def finish(self) -> None:
        """Wait until all blocks are copied from the device into host memory."""
        while self._unsettled:
            self._settle(self._unsettled[0])

    def forget_unsettled(self) -> None:
        """Remove the blocks that are not fully copied from the device yet, because of a fault."""
        while self._unsettled:  # the last first: it has no children
            block = self._unsettled.pop()
            if block in self._order:
                self._remove(block)

    def _read(
        self, parent: StoredBlock, tokens: bytes, start: int, read: ReadBlock
    ) -> StoredBlock | None:
        """Read one block from the device and add it; log and return None if that fails.

        `parent` is the block before it in the prompt, `tokens` are its tokens (int32 as bytes),
        `start` is the index of the first one, and `read(start)` returns its columns.
        """
        try:
            columns = read(start)
            for leaf in jax.tree.leaves(columns):
                leaf.copy_to_host_async()
        except Exception as error:
            logger.warning("columns of a prompt were not kept: %s", error)
            return None
        block = self.add(parent, tokens, columns)
        self._unsettled.append(block)
        return block

    def _settle(self, block: StoredBlock) -> None:
        try:
            block.columns = jax.tree.map(np.asarray, block.columns)
            self._unsettled.popleft()
        except Exception as error:
            logger.warning("columns of a prompt were not kept: %s", error)
            self.forget_unsettled()

    def _evict(self) -> None:
        while len(self._order) > self.most:
            self._remove(next(iter(self._order)))
            self._counts["evictions"] += 1

    def _remove(self, block: StoredBlock) -> None:
        """Remove a block without children from the store."""
        if self.on_change is not None:
            self.on_change(block, is_added=False)
        del self._order[block]
        parent = block.parent
        assert parent is not None
        del parent.children[block.tokens]
        if parent.parent is None and not parent.children:
            del self._roots[parent.adapter]
