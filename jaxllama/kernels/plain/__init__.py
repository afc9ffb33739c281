"""The plain body: every operation in JAX, the definition of what other bodies compute.

Runs on every platform. XLA orders the sums of a matmul by its shape, so this body keeps the seed
contract by fixed shapes: see `matmul.py`.
"""

from functools import partial

import jax

from jaxllama.config import DTYPES, ModelConfig
from jaxllama.kernels.body import AttentionOps, Body
from jaxllama.kernels.plain import choice
from jaxllama.kernels.plain.adapters import adapter_group
from jaxllama.kernels.plain.attention import attend_prompt, attend_step
from jaxllama.kernels.plain.layout import lay_out
from jaxllama.kernels.plain.matmul import ROW_TILE
from jaxllama.kernels.spread import where_slot_lies

__all__ = ["PLAIN"]


def capped_attention(cap: float) -> AttentionOps:
    """Return attention functions that limit scores to `cap` by tanh."""
    step, prompt = (partial(each, cap=cap) for each in (attend_step, attend_prompt))
    return AttentionOps(step, where_slot_lies(prompt))


def refuses(model: ModelConfig, parts: int) -> str:
    """Return "": these kernels run every model over any number of devices."""
    del model, parts
    return ""


def prompt_tile(slots: int) -> int:
    """Return how many prompt tokens a prefill computes at a time, with `slots` slots.

    It is the number of rows of a decode step, so that prefill and decode round sums alike.
    """
    return max(slots, ROW_TILE)


PLAIN = Body(
    name="xla",
    missing=lambda: "",
    refuses=refuses,
    attention=AttentionOps(attend_step, where_slot_lies(attend_prompt)),
    choosing=choice,
    lay_out=lay_out,
    joins=False,
    dtypes=DTYPES,
    default_dtype=lambda: "float32" if jax.default_backend() == "cpu" else "bfloat16",
    keeps_packed=False,
    prompt_tile=prompt_tile,
    prefill_chunk=32,
    steps_per_sync=4,
    sync_ms=50.0,
    splits_itself=False,
    adapter_group=adapter_group,
    adapter_dtype=None,
    capped_attention=capped_attention,
)
