"""Prefixes: the tokens of every slot in one tree, to find the longest prefix a prompt shares.

Used by the slot table. The tree's nodes are blocks of BLOCK tokens. Slots with the same prefix
share its blocks, so a prompt is compared once with a prefix, not once with each slot that has it. A
block is found by its tokens themselves, not by a digest: a prompt cannot pretend to be another.
Plain Python.
"""

from array import array
from collections.abc import Sequence

BLOCK = 64  # tokens
TOKEN_BYTES = 4
BLOCK_BYTES = BLOCK * TOKEN_BYTES


class TokenBlock:
    """A tree node: BLOCK tokens after the parent's, and the slots that have the whole path."""

    __slots__ = ("children", "parent", "slots", "tokens")

    def __init__(self, tokens: bytes = b"", parent: "TokenBlock | None" = None) -> None:
        self.tokens, self.parent = tokens, parent
        self.children: dict[bytes, TokenBlock] = {}
        self.slots: set[int] = set()


class SlotTokens:
    """The tokens of one slot: first the cached ones, then the tokens its request will cache.

    `len` counts the cached ones.
    """

    def __init__(self, slot: int, root: TokenBlock) -> None:
        self._slot, self.root = slot, root
        self.count = 0  # cached tokens
        self._tokens = array("i")
        self._path: list[TokenBlock] = []  # the whole blocks of the tokens

    def __len__(self) -> int:
        return self.count

    @property
    def ids(self) -> list[int]:
        """List the cached tokens."""
        return self._tokens[: self.count].tolist()

    @property
    def cached_path(self) -> list[TokenBlock]:
        """List the full blocks of cached tokens as nodes of the prefix tree, the first block first.

        The root of the tree, which has no tokens, is not in the list.
        """
        return self._path[: self.count // BLOCK]

    @property
    def newest_block(self) -> TokenBlock | None:
        """Return the tree node of the last full block of cached tokens; None if no block is full.

        Two slots with the same node have the same tokens up to the end of this block.
        """
        return self._path[self.count // BLOCK - 1] if self.count >= BLOCK else None

    def append(self, token: int) -> None:
        """Record that one more token is cached in the slot."""
        self.extend((token,))

    def extend(self, tokens: Sequence[int]) -> None:
        """Record that these tokens are cached next; drop planned tokens if they differ from these.

        Planned tokens are those that the slot will hold once its prompt is prefilled.
        """
        new = array("i", tokens)
        stop = self.count + len(new)
        if self._tokens[self.count : stop] != new:
            self._truncate(self.count)
            self._push(new)
        self.count = stop

    def plan(self, tokens: "array[int]", path: Sequence[TokenBlock]) -> None:
        """Replace the planned tokens: those that the slot will hold once its prompt is prefilled.

        `tokens` begins with the tokens that are cached now. `path` lists the blocks of `tokens`
        that are already in the tree of known prefixes, the first block first.
        """
        self._truncate(self.count)
        for block in path[len(self._path) :]:
            block.slots.add(self._slot)
            self._path.append(block)
        self._tokens = array("i", tokens)
        self._push(array("i"))

    def cut(self, length: int) -> None:
        """Forget all cached tokens after the first `length`, and all planned tokens."""
        self.count = min(self.count, length)
        self._truncate(self.count)

    def restart(self, root: TokenBlock) -> None:
        """Forget all tokens; later tokens are recorded in the tree of prefixes with this root."""
        self.cut(0)
        self.root = root

    def shared_with(self, other: "SlotTokens") -> int:
        """Return how many leading tokens this slot and `other` share.

        Planned tokens, which a slot will hold once its prompt is prefilled, are included.
        """
        blocks = common_blocks(self._path, other._path)
        return blocks * BLOCK + common_tokens(self.block(blocks), other.block(blocks))

    def shared(self, path: Sequence[TokenBlock], tokens: bytes) -> int:
        """Return how many leading tokens the slot shares with `tokens` (int32 as bytes).

        `path` lists the blocks of `tokens` that are in the tree of known prefixes, the first block
        first.
        """
        blocks = common_blocks(self._path, path)
        rest = tokens[blocks * BLOCK_BYTES : (blocks + 1) * BLOCK_BYTES]
        return blocks * BLOCK + common_tokens(self.block(blocks), rest)

    def block(self, number: int) -> bytes:
        """Return the slot's tokens of block `number` (int32 as bytes); the last may be shorter."""
        return self._tokens[number * BLOCK : (number + 1) * BLOCK].tobytes()

    def _push(self, tokens: "array[int]") -> None:
        self._tokens += tokens
        for number in range(len(self._path), len(self._tokens) // BLOCK):
            parent = self._path[-1] if self._path else self.root
            key = self.block(number)
            child = parent.children.get(key)
            if child is None:
                child = parent.children[key] = TokenBlock(key, parent)
            child.slots.add(self._slot)
            self._path.append(child)

    def _truncate(self, length: int) -> None:
        del self._tokens[length:]
        for block in reversed(self._path[length // BLOCK :]):
            block.slots.remove(self._slot)
            if not block.slots and block.parent is not None:
                del block.parent.children[block.tokens]
        del self._path[length // BLOCK :]


def known_blocks(root: TokenBlock, tokens: bytes) -> list[TokenBlock]:
    """List the tree nodes that make up the longest prefix of `tokens` in the tree.

    Each node is a block of tokens. The first block comes first; `root`, which has no tokens, is not
    in the list. `tokens` are int32 token ids as bytes.
    """
    path: list[TokenBlock] = []
    block = root
    for at in range(0, len(tokens) - BLOCK_BYTES + 1, BLOCK_BYTES):
        child = block.children.get(tokens[at : at + BLOCK_BYTES])
        if child is None:
            break
        path.append(child)
        block = child
    return path


def common_blocks(one: Sequence[TokenBlock], other: Sequence[TokenBlock]) -> int:
    """Count the leading blocks that two tree paths share, by binary search for the same object."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[middle - 1] is other[middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low


def common_tokens(one: bytes, other: bytes) -> int:
    """Count the leading tokens that two blocks (int32 token ids as bytes) share."""
    return longest_prefix([one], other)[0]


def longest_prefix(several: Sequence[bytes], tokens: bytes) -> tuple[int, list[int]]:
    """Find the longest prefix of `tokens` with which an entry of `several` begins.

    Returns its length in tokens and the indexes of all entries that begin with it. All arguments
    are int32 token ids as bytes, at most one block long.
    """
    have = list(range(len(several)))
    low, high = 0, len(tokens) // TOKEN_BYTES
    while low < high:
        middle = (low + high + 1) // 2
        prefix = tokens[: middle * TOKEN_BYTES]
        still = [index for index in have if several[index].startswith(prefix)]
        if still:
            low, have = middle, still
        else:
            high = middle - 1
    return low, have


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the longest common prefix of two lists of tokens."""
    length = min(len(one), len(other))
    low = 0
    step = 512  # compare whole runs first: equal slices are compared in C
    while low < length:
        high = min(low + step, length)
        if list(one[low:high]) != list(other[low:high]):
            return next(i for i in range(low, high) if one[i] != other[i])
        low = high
    return length
