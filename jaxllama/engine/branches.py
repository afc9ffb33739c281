"""Branches: many ways to go on after one beginning, cut into calls of the `weigh` program.

Used by `looks.py`. A tree of the ways is walked depth first, so that a way computes only what no
way before it has, over the cache columns of those that are done with. Plain Python: no device.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from jaxllama.engine.prefixes import common_prefix

RUN = 8  # tokens of one run; a longer one takes several in a row
ASKED = 16  # rows of a call whose following tokens are asked for
PAIRS = 256  # tokens that a call is asked for

Way = tuple[Sequence[int], int]  # token ids, and the place from which on they are weighed
Key = tuple[int, int]  # which way, which of its weighed tokens


@dataclass(slots=True)
class Node:
    """A token that one way or several go through."""

    children: "dict[int, Node]" = field(default_factory=dict)
    asks: dict[int, list[Key]] = field(default_factory=dict)  # tokens to weigh after this one


@dataclass(slots=True)
class Piece:
    """A run of tokens at its place in the cache."""

    start: int
    tokens: list[int] = field(default_factory=list)
    asks: list[tuple[int, int, list[Key]]] = field(default_factory=list)  # row, token, for whom


def shared_beginning(ways: Sequence[Way]) -> int:
    """How many tokens all ways begin with, up to the last one before any is weighed."""
    shared = min(min(start, len(ids)) for ids, start in ways) - 1
    for ids, _ in ways[1:]:
        shared = common_prefix(ways[0][0][:shared], ids)
    return shared


def tree_of(ways: Iterable[Way], shared: int) -> Node:
    """The ways behind `shared` tokens that all of them begin with."""
    root = Node()
    for index, (ids, start) in enumerate(ways):
        node = root
        for place in range(shared, len(ids) - 1):
            node = node.children.setdefault(ids[place], Node())
            if place + 1 >= start:
                node.asks.setdefault(ids[place + 1], []).append((index, place + 1 - start))
    return root


def pieces(root: Node, shared: int) -> Iterator[Piece]:
    """All runs of a tree, each after those it goes on from."""
    stack = [(node, token, shared) for token, node in reversed(root.children.items())]
    while stack:
        node, token, place = stack.pop()
        piece = Piece(place)
        while True:
            row = len(piece.tokens)
            piece.tokens.append(token)
            piece.asks += [(row, asked, keys) for asked, keys in node.asks.items()]
            if len(node.children) != 1 or len(piece.tokens) == RUN:
                break
            token, node = next(iter(node.children.items()))
        after = piece.start + len(piece.tokens)
        stack += [(child, token, after) for token, child in reversed(node.children.items())]
        yield from halves(piece)


def halves(piece: Piece) -> Iterator[Piece]:
    """The piece, again and again where it is asked for more than fits into a call."""
    for first in range(0, max(len(piece.asks), 1), PAIRS):
        yield Piece(piece.start, piece.tokens, piece.asks[first : first + PAIRS])


def calls(all_pieces: Iterable[Piece], runs: int) -> Iterator[list[Piece]]:
    """Pieces in order, as many at a time as one call takes."""
    call: list[Piece] = []
    rows = pairs = 0
    for piece in all_pieces:
        asked = len({row for row, _, _ in piece.asks})
        if len(call) == runs or rows + asked > ASKED or pairs + len(piece.asks) > PAIRS:
            yield call
            call, rows, pairs = [], 0, 0
        call.append(piece)
        rows, pairs = rows + asked, pairs + len(piece.asks)
    if call:
        yield call
