"""Prefixes: which replica has seen the start of a prompt, and the choice of a replica.

A replica computes nothing for the part of a prompt that it has kept. So a request goes to the
replica that saw most of its prompt, unless that one has much more to do than another. Prompts are
compared in blocks of characters, before they are tokens: this needs no model. Knows no Ray.
"""

import hashlib
import random
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

BLOCK = 128  # characters, about 30 tokens
MOST_BLOCKS = 128  # of one prompt; what follows is not compared
MOST_KEPT = 200_000  # blocks

# Fields of bodies that make the prompt, of any dialect, in the order of the prompt.
FIELDS = (
    *("model", "instructions", "system", "tools", "messages", "context", "prompt", "input"),
    *("text_prompt", "text", "texts", "query", "template", "user_input"),
)


def blocks_of(body: Any) -> tuple[int, ...]:
    """Return a hash of each block of the prompt in a decoded JSON body.

    A block has BLOCK characters; its hash covers all blocks before it, too. The result is () if the
    body has no prompt, or one that is shorter than a block.
    """
    if not isinstance(body, dict):
        return ()
    most = BLOCK * MOST_BLOCKS
    text = ""
    for each in texts_in([body.get(name) for name in FIELDS]):
        text += f"{each[:most]}\0"
        if len(text) >= most:
            break
    found, last = [], b""
    for end in range(BLOCK, min(len(text), most) + 1, BLOCK):
        raw = text[end - BLOCK : end].encode("utf-8", "surrogatepass")
        last = hashlib.blake2b(last + raw, digest_size=8).digest()
        found.append(int.from_bytes(last, "little"))
    return tuple(found)


def texts_in(value: Any) -> Iterator[str]:
    """Yield all texts in a decoded JSON value, in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from texts_in(each)
    elif isinstance(value, dict):
        for each in value.values():
            yield from texts_in(each)


class PrefixMap:
    """The blocks of recent prompts, with the replicas that saw them; the least recent go first."""

    def __init__(self, most: int = MOST_KEPT) -> None:
        self._most = most
        self._seen: OrderedDict[int, set[str]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def remember(self, blocks: Sequence[int], replica: str) -> None:
        """Note that a replica got a prompt; `blocks` are the hashes of the prompt's blocks."""
        for block in blocks:
            self._seen.setdefault(block, set()).add(replica)
            self._seen.move_to_end(block)
        while len(self._seen) > self._most:
            self._seen.popitem(last=False)

    def matched(self, blocks: Sequence[int]) -> dict[str, int]:
        """Return how many leading blocks of a prompt each replica has seen.

        `blocks` are the hashes of the prompt's blocks. The result maps replicas to counts;
        replicas that saw no block are left out.
        """
        found: dict[str, int] = {}
        for count, block in enumerate(blocks, 1):
            holders = self._seen.get(block)
            if not holders:
                break
            found.update(dict.fromkeys(holders, count))
        return found


def rank(
    loads: Mapping[str, int],
    matched: Mapping[str, int],
    spread: int,
    avoid: Collection[str] = (),
) -> list[str]:
    """Return the replicas in the order in which to ask them for a request.

    For each replica, `loads` has the number of its open requests, and `matched` how many leading
    blocks of the prompt it has seen. Replicas that have seen more blocks come first, then those
    with fewer open requests. A replica with over `spread` more open requests than the least busy
    one comes after all others, whatever it has seen. Replicas in `avoid` come last of all.
    """
    least = min(loads.values(), default=0)

    def key(name: str) -> tuple[bool, bool, int, int, float]:
        is_busy = loads[name] - least > spread
        seen = 0 if is_busy else matched.get(name, 0)
        return name in avoid, is_busy, -seen, loads[name], random.random()

    return sorted(loads, key=key)
