"""Budgets: the most that a compiled program may cost on an accelerator.

`__main__.py` compares what it reads with them. A budget that is not met yet says so and why: it is
raised here, in sight, and never silently.
"""

from typing import NamedTuple


class Budget(NamedTuple):
    """Bounds for one decode step of a program on one kind of chip and form of weights."""

    kernels_per_layer: float  # all launches of a step over the layers, head and choice included
    moved_over_least: float  # bytes that a step moves over the least possible
    host: int = 0  # predicates that the host reads
    large_writes: int = 0  # new buffers as large as a cache array or the smallest matrix
    temporaries: float = 0.05  # bytes beside arguments and results, over the weights


# By chip, form of weights and program. The least bytes are all weights and the live cache.
BUDGETS: dict[tuple[str, str, str], Budget] = {
    ("h100", "bf16", "decode_lean"): Budget(14, 1.05),
    ("h100", "int8", "decode_lean"): Budget(14, 1.10),
    ("h100", "int4", "decode_lean"): Budget(14, 1.10),
}
