"""The C++ body: the operations of `plain/`, written by hand for x86 CPUs, and their Python side.

`library.py` loads the shared library; `matmul.py`, `attention.py` and `choice.py` call it from
inside XLA programs. The order of every sum depends on neither rows, threads nor chunks, so a row
has the same bits in any company, and prompts go through in tiles of any size. With AMX, prompts
have an arithmetic of their own, in bfloat16.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxllama.config import DTYPES, ModelConfig
from jaxllama.kernels.body import (
    AttentionOps,
    Body,
    Projections,
    PromptSpan,
    Rotation,
)
from jaxllama.kernels.cpu import choice, library
from jaxllama.kernels.cpu.adapters import adapter_group
from jaxllama.kernels.cpu.attention import SIZES, attend_prompt, attend_step
from jaxllama.kernels.cpu.layout import STORED, lay_out
from jaxllama.kernels.cpu.tiled import BLOCK, Tiled
from jaxllama.kernels.spread import where_slot_lies
from jaxllama.kernels.storage import Layer
from jaxllama.shapes import Array

__all__ = ["CPU"]

# The time of one more row of a step, relative to a step with one row, of the default model: AVX2
# measured on a Zen 1, AVX-512 on a Xeon whose cache holds the model.
ROW_COSTS = {"portable": 1.0, "avx2": 0.25, "avx512": 0.12, "amx": 0.1, "emulated": 1.0}
# Rows of a prompt that go through the kernels together; AMX unpacks weights once for all of them.
PROMPT_TILE, AMX_PROMPT_TILE = 64, 256
SPAN_ROWS = 16  # the rows of an AMX tile


def step(
    projections: Projections,
    rotation: Rotation,
    layer: Layer,
    position: Array,
    active: Array,
    window: int | None,
) -> tuple[Array, Layer]:
    """Compute attention of new tokens, the same number for every slot; store keys and values.

    The rows are the first new token of every slot, then the next one of every slot, and so on.
    `rotation` has the rotary tables, `layer` is one layer of the KV cache, `position` the column of
    each token. Rows that are not `active` store nothing. `window` limits how many columns a token
    attends to, None: all.
    """
    return attend_step(side_by_side(projections), rotation, layer, position, active, window)


def prompt(
    projections: Projections,
    rotation: Rotation,
    layer: Layer,
    span: PromptSpan,
    window: int | None,
) -> tuple[Array, Layer]:
    """Compute attention of consecutive prompt tokens of one slot, and store keys and values.

    `rotation` has the rotary tables, `layer` is one layer of the KV cache; `span` says which slot,
    from which column on, and how many rows are real. `window` limits how many columns a token
    attends to, None: all.
    """
    return attend_prompt(side_by_side(projections), rotation, layer, span, window)


def side_by_side(projections: Projections) -> Array:
    """Join queries, keys and values of each row into one array; XLA removes the copy."""
    return jnp.concatenate([part.reshape(part.shape[0], -1) for part in projections], axis=1)


def missing() -> str:
    """Return why the C++ library cannot run on this machine; "" if it can."""
    if jax.default_backend() != "cpu":
        return (
            f"JAX runs on {jax.default_backend()} devices here, and the C++ kernels run on "
            f"processors only; choose --kernels xla, or set JAX_PLATFORMS=cpu"
        )
    return library.why_not()


def refuses(model: ModelConfig, parts: int) -> str:
    """Return why the C++ kernels cannot run this model over `parts` devices; "" if they can.

    A model whose head size has no C++ attention kernel is refused, because plain JAX attention
    rounds differently.
    """
    if model.head_dim not in SIZES:
        return (
            f"the model's head size is {model.head_dim}; the C++ kernels take {SIZES[0]} to "
            f"{SIZES[-1]} in steps of {SIZES.step}: choose --kernels xla"
        )
    if lacking := without_kernel(model, parts):
        return f"the C++ kernels have no {lacking}, which this model has: choose --kernels xla"
    return does_not_divide(model, parts)


def without_kernel(model: ModelConfig, parts: int) -> str:
    """Return the name of a property of the model that has no C++ kernel; "" if all have one.

    `parts` is the number of devices that share the model.
    """
    lacking = {
        "cap on attention scores": model.attention_cap is not None,
        "mixture of such experts": model.experts is not None and not takes(model, parts),
        "norm of queries and keys over all heads on several devices": (
            model.qk_norm and model.qk_norm_over == "all" and parts > 1
        ),
    }
    return next((name for name, lacks in lacking.items() if lacks), "")


def takes(model: ModelConfig, parts: int) -> bool:
    """Say whether the kernels can compute the model's experts over `parts` devices.

    They can on one device, with silu, and with widths that are multiples of BLOCK.
    """
    widths = (model.width, model.experts.width if model.experts else 0)
    return parts == 1 and model.activation == "silu" and not any(each % BLOCK for each in widths)


def does_not_divide(model: ModelConfig, parts: int) -> str:
    """Return which width of the model does not divide over `parts` devices; "" if all do."""
    heads = model.heads * model.head_dim
    sizes = {
        "attention": heads,
        "queries, keys and values": heads + 2 * model.kv_heads * model.head_dim,
        "feed-forward": model.ffn_width,
    }
    for name, size in sizes.items():
        if parts > 1 and size % (parts * BLOCK):
            return (
                f"{name} {size} wide do not divide over model={parts} into blocks of {BLOCK}, as "
                f"the C++ kernels need; choose another mesh or --kernels xla"
            )
    return ""


def row_cost() -> float:
    """Return the time of one more row of a decode step, relative to a step with one row."""
    return ROW_COSTS[library.isa()]


def prompt_tile(slots: int) -> int:
    """Return the number of prompt rows that the kernels compute together.

    It is the same for any number of `slots`.
    """
    del slots
    return AMX_PROMPT_TILE if library.isa() == "amx" else PROMPT_TILE


def for_prompts(weights: Any) -> Any:
    """Return the tree of weights in which each matrix is marked as used for rows of prompts.

    Kernels may then compute with other instructions than for decode steps.
    """
    return jax.tree.map(
        lambda each: replace(each, of_prompts=True) if isinstance(each, Tiled) else each,
        weights,
        is_leaf=lambda each: isinstance(each, Tiled),
    )


CPU = Body(
    name="cpu",
    platform="cpu",
    missing=missing,
    refuses=refuses,
    attention=AttentionOps(step, where_slot_lies(prompt)),
    choosing=choice,
    lay_out=lay_out,
    joins=True,
    dtypes=(*DTYPES, STORED),
    default_dtype=lambda: STORED,
    keeps_packed=True,
    prompt_tile=prompt_tile,
    prefill_chunk=128,
    steps_per_sync=4,
    sync_ms=50.0,
    splits_itself=True,
    adapter_group=adapter_group,
    adapter_dtype="float16",
    row_cost=row_cost,
    steps_match_prompts=lambda: not library.prompts_use_amx(),
    for_prompts=for_prompts,
    score_rows=PROMPT_TILE,
    span_rows=SPAN_ROWS,
    skips_rows=True,
    packs_prompts=library.prompts_use_amx,
)
