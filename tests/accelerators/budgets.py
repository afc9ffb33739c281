"""Budgets: the most that a compiled program may cost on an accelerator.

`__main__.py` compares what it reads with them. A budget that is not met yet says so and why: it is
raised here, in sight, and never silently.
"""

from math import inf
from typing import NamedTuple


class Budget(NamedTuple):
    """Bounds for one decode step of a program on one kind of chip and form of weights."""

    kernels_per_layer: float  # all launches of a step over the layers, head and choice included
    moved_over_least: float  # bytes that a step moves over the least possible
    host: int = 0  # predicates that the host reads
    # New buffers as large as a cache array; in a decode step, also as the smallest matrix.
    large_writes: int = 0
    temporaries: float = 0.05  # bytes beside arguments and results, over the weights
    exchanges: int = 0  # launches in which the devices of a mesh exchange bytes


FORMS, PACKED_FORMS = ("bf16", "fp8", "int8", "int4"), ("fp8", "int8", "int4")
UNPACKING = Budget(20, inf, large_writes=1, temporaries=0.2)

# By chip, form of weights and program. The least bytes are all weights and the live cache. XLA
# splits the sums of some matmuls and writes the parts: 3 % of 1B's bytes, which fit into the cache.
BUDGETS: dict[tuple[str, str, str], Budget] = {
    ("h100", "bf16", "decode_lean"): Budget(14, 1.06),
    # Not met: 14 launches, no large buffer and 5 % of temporaries. Packed matmuls have kernels and
    # partial sums of their own; lists of candidates weigh more beside smaller weights.
    **{
        ("h100", form, "decode_lean"): Budget(18, 1.10, large_writes=4, temporaries=0.08)
        for form in ("fp8", "int8")
    },
    ("h100", "int4", "decode_lean"): Budget(15, 1.10, large_writes=3, temporaries=0.14),
    ("h100", "bf16", "prefill"): Budget(14, inf),
    ("h100", "bf16", "prefill_packed"): Budget(44, inf),
    # A packed matrix is unpacked for a whole tile of a prompt.
    **{("h100", form, "prefill"): UNPACKING for form in PACKED_FORMS},
    **{
        ("h100", form, "prefill_packed"): UNPACKING._replace(kernels_per_layer=50)
        for form in PACKED_FORMS
    },
    **{
        ("v5e", form, "decode_lean"): Budget(inf, 1.05, large_writes=1, temporaries=0.15)
        for form in FORMS
    },
    **{
        ("v5e", form, program): Budget(inf, inf, large_writes=1, temporaries=0.15)
        for form in FORMS
        for program in ("prefill", "prefill_packed")
    },
}

# Programs of 1B with few layers, by chip, mesh (data x model), form of weights and program. The
# head and the choice of a token weigh more beside them than beside all layers.
# `make accelerators-short` reads those of one device.
FEW_LAYERS = 2
FEW_LAYERS_BUDGETS: dict[tuple[str, str, str, str], Budget] = {
    ("h100", "1x1", "bf16", "decode_lean"): Budget(23, 1.07, temporaries=0.13),
    ("h100", "1x1", "int4", "decode_lean"): Budget(24, 1.10, large_writes=3, temporaries=0.44),
    ("v5e", "1x1", "int4", "decode_lean"): Budget(inf, 1.09, large_writes=1, temporaries=0.33),
    # Exchanges: one for the embedding, two per layer, and 13 of a few bytes to choose a token.
    # Not met: no host read on GPUs (docs/accelerators.md says why). A large buffer is the logits,
    # which a packed matrix computes for the 16 rows of a tile.
    ("h100", "2x2", "bf16", "decode_lean"): Budget(
        37, 1.06, host=2, temporaries=0.13, exchanges=18
    ),
    ("h100", "2x2", "int4", "decode_lean"): Budget(
        40, 1.15, host=2, large_writes=2, temporaries=0.44, exchanges=18
    ),
    ("v5e", "2x2", "bf16", "decode_lean"): Budget(inf, 1.04, temporaries=0.1, exchanges=18),
    ("v5e", "2x2", "int4", "decode_lean"): Budget(
        inf, 1.12, large_writes=2, temporaries=0.26, exchanges=18
    ),
}
