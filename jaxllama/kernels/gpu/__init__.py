"""The GPU body: what XLA fuses by itself, and Pallas kernels where it does not.

Dense matmuls, norms and activations are XLA's; attention and matmuls of packed weights are kernels
of ours (`attend.py`, `matmul.py`), written for the Triton backend of Pallas, which compiles for
NVIDIA and AMD. Choosing a token is shared with the TPU body. Compiled and read for an H100, and
interpreted on CPU by the tests; not run on a card yet.
"""

import jax

from jaxllama.config import DTYPES, ModelConfig
from jaxllama.errors import ConfigError
from jaxllama.kernels.accelerator import choice
from jaxllama.kernels.body import AdapterGroup, AdapterShape, Body, Placement
from jaxllama.kernels.gpu.attention import ATTENTION, capped_attention
from jaxllama.kernels.gpu.layout import lay_out
from jaxllama.kernels.plain.adapters import adapter_group
from jaxllama.kernels.storage import layer_arrays

__all__ = ["GPU"]

PROMPT_TILE = 512  # rows of a prompt that go through the weights together
SPAN_ROWS = 64  # the rows of a prompt that the attention kernel computes together
LEAST_HEAD = 32  # half of it is the least that tensor cores multiply

# XLA drives loops from the host unless they are captured in a CUDA graph. A list replaces the
# default one; without the smallest graph size, small loops stay outside.
ONE_GRAPH: dict[str, str | int] = {
    "xla_gpu_enable_command_buffer": (
        "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE"
    ),
    "xla_gpu_graph_min_graph_size": 1,
}


def missing() -> str:
    """Return why the GPU kernels cannot run on this machine; "" if they can."""
    if jax.default_backend() != "gpu":
        return f"JAX runs on {jax.default_backend()} devices here, and these kernels run on GPUs"
    return ""


def refuses(model: ModelConfig, parts: int) -> str:
    """Return why the GPU kernels cannot run this model over `parts` devices; "" if they can."""
    size = model.head_dim
    if size < LEAST_HEAD or size & (size - 1):
        return (
            f"the model's head size is {size}; the GPU kernels take powers of two from "
            f"{LEAST_HEAD} on: choose --kernels xla"
        )
    if model.experts is not None:
        return "the GPU kernels have no mixture of experts: choose --kernels xla"
    if model.qk_norm and model.qk_norm_over == "all" and parts > 1:
        return "a norm of queries and keys over all heads cannot be split: choose --kernels xla"
    return ""


def adapters_of(shape: AdapterShape, to: Placement) -> AdapterGroup:
    """Make the LoRA adapter arrays of one group of weights, filled with zeros.

    A group is weights that multiply the same rows. `shape` has the sizes, `to` is the devices.
    Raises ConfigError if the weights are split over several devices.
    """
    parts = to.mesh.shape["model"]
    if parts > 1:
        raise ConfigError(
            f"adapters cannot be split over model={parts} with the GPU kernels; choose another "
            f"mesh or --kernels xla"
        )
    return adapter_group(shape, to)


GPU = Body(
    name="gpu",
    platform="gpu",
    missing=missing,
    refuses=refuses,
    attention=ATTENTION,
    choosing=choice,
    lay_out=lay_out,
    joins=True,
    dtypes=DTYPES,
    default_dtype=lambda: "bfloat16",
    keeps_packed=True,
    prompt_tile=lambda _slots: PROMPT_TILE,
    prefill_chunk=PROMPT_TILE,
    steps_per_sync=8,
    sync_ms=50.0,
    splits_itself=True,
    adapter_group=adapters_of,
    adapter_dtype=None,
    capped_attention=capped_attention,
    cache_arrays=layer_arrays,
    compiler_options=ONE_GRAPH,
    steps_match_prompts=lambda: False,
    prefers_lean=True,
    score_rows=64,
    span_rows=SPAN_ROWS,
    packs_prompts=lambda: True,
    draws_together=True,
)
