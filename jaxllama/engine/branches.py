"""Branches: continuations of one prefix, as a tree that is cut into calls of the `score` program.

Used by `probes.py`. The tree is walked depth first: tokens that several continuations share are
computed once, and a branch that is done is overwritten in the cache. Plain Python: no device.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from jaxllama.engine.prefixes import common_prefix

RUN = 8  # tokens of one run; a longer branch takes several runs in a row
TARGET_ROWS = 16  # most rows of one call that have targets after them
PAIRS = 256  # most targets of one call

Continuation = tuple[Sequence[int], int]  # token ids, and the index of the first token to score
Key = tuple[int, int]  # index of a continuation, index among its scored tokens


@dataclass(slots=True)
class Node:
    """A token that one or several continuations contain, with its children in the tree."""

    children: "dict[int, Node]" = field(default_factory=dict)
    targets: dict[int, list[Key]] = field(default_factory=dict)  # tokens to score after this one


@dataclass(slots=True)
class TokenRun:
    """At most RUN tokens of one branch, at their place in the cache."""

    start: int
    tokens: list[int] = field(default_factory=list)
    targets: list[tuple[int, int, list[Key]]] = field(default_factory=list)  # row, token, its keys


def shared_prefix(continuations: Sequence[Continuation]) -> int:
    """Count the leading tokens that all continuations share, to compute them in one prefill.

    A continuation is (token ids, index of the first token whose log-probability is requested). The
    last token before this index is not counted, because its logits have to be computed.
    """
    shared = min(min(start, len(ids)) for ids, start in continuations) - 1
    for ids, _ in continuations[1:]:
        shared = common_prefix(continuations[0][0][:shared], ids)
    return shared


def build_tree(continuations: Iterable[Continuation], shared: int) -> Node:
    """Build a tree of the tokens of all continuations, without their first `shared` tokens.

    A continuation is (token ids, index of the first token whose log-probability is requested). Each
    node lists the following tokens whose log-probabilities are requested.
    """
    root = Node()
    for index, (ids, start) in enumerate(continuations):
        node = root
        for place in range(shared, len(ids) - 1):
            node = node.children.setdefault(ids[place], Node())
            if place + 1 >= start:
                node.targets.setdefault(ids[place + 1], []).append((index, place + 1 - start))
    return root


def cut_runs(root: Node, shared: int) -> Iterator[TokenRun]:
    """Cut the tree of all continuations into runs of tokens, and yield the runs.

    A run has at most RUN consecutive tokens of one branch. Runs come in depth-first order. `root`
    stands for the prefix that all continuations share and has no token. `shared` is the length of
    this prefix, and so the cache column of the first token after it.
    """
    stack = [(node, token, shared) for token, node in reversed(root.children.items())]
    while stack:
        node, token, place = stack.pop()
        run = TokenRun(place)
        while True:
            row = len(run.tokens)
            run.tokens.append(token)
            run.targets += [(row, target, keys) for target, keys in node.targets.items()]
            if len(node.children) != 1 or len(run.tokens) == RUN:
                break
            token, node = next(iter(node.children.items()))
        after = run.start + len(run.tokens)
        stack += [(child, token, after) for token, child in reversed(node.children.items())]
        yield from split_targets(run)


def split_targets(run: TokenRun) -> Iterator[TokenRun]:
    """Yield a run of tokens once, or several times with up to PAIRS of its targets each.

    A target is a token whose log-probability is requested; a run with at most PAIRS of them is
    yielded once. Each yielded run has all tokens.
    """
    for first in range(0, max(len(run.targets), 1), PAIRS):
        yield TokenRun(run.start, run.tokens, run.targets[first : first + PAIRS])


def group_runs(runs: Iterable[TokenRun], most: int) -> Iterator[list[TokenRun]]:
    """Group runs of tokens, in order, into lists, each for one call of the device.

    A target is a token whose log-probability is requested. A call takes at most `most` runs, with
    at most PAIRS targets in all; at most TARGET_ROWS tokens of these runs are followed by targets.
    """
    call: list[TokenRun] = []
    rows = pairs = 0
    for run in runs:
        with_targets = len({row for row, _, _ in run.targets})
        full = rows + with_targets > TARGET_ROWS or pairs + len(run.targets) > PAIRS
        if len(call) == most or full:
            yield call
            call, rows, pairs = [], 0, 0
        call.append(run)
        rows, pairs = rows + with_targets, pairs + len(run.targets)
    if call:
        yield call
