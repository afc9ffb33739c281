"""The TPU body: Pallas kernels for attention and packed weights, XLA for the rest.

Keys lie beside values in the cache, every program reads and writes it in place, and prompts go
through in tiles of many rows. Compiled for TPUs and read, and run by the interpreter of Pallas on
CPUs; no TPU has run it yet. Kernels are imported when a program is traced, because importing Pallas
takes long.
"""

from functools import partial

import jax

from jaxllama.config import ModelConfig
from jaxllama.kernels.accelerator import choice
from jaxllama.kernels.body import AttentionOps, Body
from jaxllama.kernels.spread import where_slot_lies
from jaxllama.kernels.tpu.adapters import adapter_group
from jaxllama.kernels.tpu.attention import LANES, attend_prompt, attend_step, cache_arrays
from jaxllama.kernels.tpu.layout import lay_out

__all__ = ["TPU"]

PROMPT_TILE = 512  # rows that share one reading of the weights
SPAN_ROWS = 64  # each span of a packed tile has an attention of its own in every layer
SCORE_ROWS = 64  # each run of 8 has an attention of its own in every layer


def missing() -> str:
    """Return why the TPU kernels cannot run on this machine; "" if they can."""
    if jax.default_backend() != "tpu":
        return (
            f"JAX runs on {jax.default_backend()} devices here, and the TPU kernels on TPUs only; "
            f"choose --kernels auto, or install jaxllama[tpu] on a machine with a TPU"
        )
    return ""


def refuses(model: ModelConfig, parts: int) -> str:
    """Return why the TPU kernels cannot run this model over `parts` devices; "" if they can."""
    if 2 * model.head_dim % LANES:
        return (
            f"the model's head size is {model.head_dim}; the TPU kernels take multiples of "
            f"{LANES // 2}: choose --kernels xla"
        )
    if parts > 1 and model.experts is not None:
        return (
            f"the TPU kernels run a mixture of experts on one device, and the mesh has "
            f"model={parts}: choose --kernels xla"
        )
    if parts > 1 and model.qk_norm and model.qk_norm_over == "all":
        return (
            f"the TPU kernels norm queries and keys over all heads on one device only, and the "
            f"mesh has model={parts}: choose --kernels xla"
        )
    return ""


def capped_attention(cap: float) -> AttentionOps:
    """Return attention functions that limit scores to `cap` by tanh."""
    step, prompt = (partial(each, cap=cap) for each in (attend_step, attend_prompt))
    return AttentionOps(step, where_slot_lies(prompt))


TPU = Body(
    name="tpu",
    platform="tpu",
    missing=missing,
    refuses=refuses,
    attention=AttentionOps(attend_step, where_slot_lies(attend_prompt)),
    choosing=choice,
    lay_out=lay_out,
    joins=True,
    dtypes=("bfloat16", "float32"),
    default_dtype=lambda: "bfloat16",
    keeps_packed=True,
    prompt_tile=lambda _slots: PROMPT_TILE,
    prefill_chunk=PROMPT_TILE,
    steps_per_sync=8,
    sync_ms=50.0,
    splits_itself=True,
    adapter_group=adapter_group,
    adapter_dtype=None,
    capped_attention=capped_attention,
    cache_arrays=cache_arrays,
    steps_match_prompts=lambda: False,
    prefers_lean=True,
    score_rows=SCORE_ROWS,
    span_rows=SPAN_ROWS,
    packs_prompts=lambda: True,
    draws_together=True,
)
