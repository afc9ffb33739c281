"""The table of what compiled programs cost, and the comparison with the budgets."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.accelerators.budgets import Budget
from tests.accelerators.reading import Cost

PAGE = Path(__file__).parents[2] / "docs" / "accelerators.md"
HEAD = """# Programs on accelerators

Made by `make accelerators`; do not edit. Every program is compiled ahead of time for a chip that
the machine at hand does not have, and read: **nothing here was run on a chip**. Launches, host
reads, new buffers and bytes are counted in the compiled program; times are bytes over the chip's
bandwidth, so they are floors, not measurements. 16 slots; every slot holds 4,000 tokens. A decode
program is read per step, with no sampler switched on; prefill and prefill_packed per prompt tile of
512 rows, prefill_packed with 8 prompts in it.

Launches are counted in the whole program and divided by the number of layers, so the head and the
choice of a token are included. A buffer is large if it is as large as an array of the cache, or in a decode step
as the smallest matrix. An attention kernel counts as reading all slots, so prompts move less than
the table says. On a TPU a launch is one operation of a single program, and costs no call.

| program | launches per layer | host reads | large new buffers | temporaries, MB | least GB | moved GB | floor ms | moved ms | compiled in s |
|---|---|---|---|---|---|---|---|---|---|
"""  # noqa: E501

SPREAD_HEAD = """
## On a mesh

Programs of two layers on four devices: `data=2` (slots) and `model=2` (heads, feed-forward and
vocabulary). All figures are for one device. Exchanges are the launches of a step in which
devices exchange bytes, wherever its layers and the choice of a token need them.

| program | exchanges | launches per layer | host reads | large new buffers | temporaries, MB | least GB | moved GB | floor ms | moved ms | compiled in s |
|---|---|---|---|---|---|---|---|---|---|---|
"""  # noqa: E501
SPREAD_NOTES = """
No weight, no cache and no logits are gathered in a step of the likeliest tokens. Of the 18
exchanges, the embedding needs one and each layer two, so a whole 1B has 46. The
other 13 carry a few bytes each and cost their latency: `token[speaker]` and its like look up rows
of other slots, which XLA answers with a permutation and a sum over all devices, even where no row
guides another. Sampling gathers more: a draw from all tokens the logits along the vocabulary (4.1
MB for the 8 rows of a device), the search for candidates two masks of 1 MB; the last draws, which
sort the vocabulary, gather logits along the slots, too. These are branches that a step of the
likeliest tokens does not take.

On GPUs the host reads two predicates per step: a loop in which devices exchange bytes is no CUDA
graph. With `COLLECTIVES` in XLA's list of operations for graphs, the program has no host read.
The engine leaves it out, because no machine with several GPUs has run such a graph yet.
"""


def row_of(cost: Cost) -> str:
    """Return one line of the table."""
    cells = (
        f"{cost.subject} {cost.program}",
        *([f"{cost.counts.exchanges}"] if cost.devices > 1 else []),
        f"{cost.kernels_per_layer:.1f}",
        f"{cost.counts.host}",
        f"{len(cost.large)}",
        f"{cost.temporaries / 1e6:.0f}",
        f"{cost.least / 1e9:.2f}",
        f"{cost.counts.moved / 1e9:.2f}",
        f"{cost.floor_ms:.2f}",
        f"{cost.moved_ms:.2f}",
        f"{cost.seconds:.0f}",
    )
    return f"| {' | '.join(cells)} |"


def page_of(costs: Sequence[Cost]) -> str:
    """Return the page with the tables: programs of one device, and of a mesh."""
    single = [row_of(cost) for cost in costs if cost.devices == 1]
    spread = [row_of(cost) for cost in costs if cost.devices > 1]
    return HEAD + "\n".join(single) + "\n" + SPREAD_HEAD + "\n".join(spread) + "\n" + SPREAD_NOTES


def over_budget(cost: Cost, budget: Budget | None) -> Iterator[str]:
    """Yield each figure that is above its bound."""
    if budget is None:
        return
    found = {
        "launches per layer": (cost.kernels_per_layer, budget.kernels_per_layer),
        "bytes moved over the least": (cost.counts.moved / cost.least, budget.moved_over_least),
        "host reads": (cost.counts.host, budget.host),
        "exchanges": (cost.counts.exchanges, budget.exchanges),
        "large new buffers": (len(cost.large), budget.large_writes),
        "temporaries over the weights": (cost.temporaries / cost.weights, budget.temporaries),
    }
    for name, (value, bound) in found.items():
        if value > bound:
            yield f"{name} is {value:.2f}; the bound is {bound:g}"
