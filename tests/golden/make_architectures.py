"""Make a tiny random model of every architecture with transformers; run by hand, rarely.

Needs torch and transformers 5 (not dependencies of the project), and nothing of the project:

    pip install torch transformers && python tests/golden/make_architectures.py

Each folder of tests/golden/architectures holds config.json and model.safetensors (float16) as
`save_pretrained` writes them, and logits.npz: tokens and the float32 logits after each of them.
"""

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

FOLDER = Path(__file__).parent / "architectures"
LENGTH = 40
SHORT = 12  # tokens of a text within the trained context of a longrope model
VOCAB = 80
LARGEST = 100 * 1024  # bytes of weights
# One layer has 12 thousand weights: three or four of them stay below LARGEST.
SIZE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 64,
    "attn_implementation": "eager",
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
GEMMA = {
    "query_pre_attn_scalar": 24,
    "sliding_window": 9,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
}
QWEN_MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "intermediate_size": 48}
# Where the head size is width / heads.
WIDE = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 32, "head_dim": None}


def longrope(pairs: int) -> dict[str, Any]:
    """Rope fields whose short and long factors differ, beyond 16 trained positions."""
    factors = np.linspace(1, 2, pairs)
    return {
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": factors.round(2).tolist(),
            "long_factor": (factors**3).round(2).tolist(),
        },
        "original_max_position_embeddings": 16,
    }


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "smollm3": (
        "SmolLM3",
        {"num_hidden_layers": 4, "intermediate_size": 32, "tie_word_embeddings": True},
    ),
    "phi3": ("Phi3", WIDE | {"sliding_window": 11}),
    "phi3_long": ("Phi3", WIDE | longrope(16)),
    "phi4_mini": ("Phi3", WIDE | {"partial_rotary_factor": 0.75, "tie_word_embeddings": True}),
    "gemma": (
        "Gemma",
        {"hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True},
    ),
    "gemma2": (
        "Gemma2",
        GEMMA | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 7.0},
    ),
    "gemma3": (
        "Gemma3Text",
        GEMMA
        | {
            "num_hidden_layers": 6,  # the last one has no window
            "num_attention_heads": 1,
            "intermediate_size": 32,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "olmo2": ("Olmo2", WIDE),
    "granite": (
        "Granite",
        WIDE
        | {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.1,
            "logits_scaling": 2.0,
        },
    ),
    "mixtral": (
        "Mixtral",
        {"num_hidden_layers": 2, "num_local_experts": 4, "intermediate_size": 32},
    ),
    "qwen3_moe": (
        "Qwen3Moe",
        QWEN_MOE | {"num_hidden_layers": 2, "num_experts": 6, "norm_topk_prob": True},
    ),
    "qwen3_moe_mixed": (
        "Qwen3Moe",
        QWEN_MOE | {"num_experts": 4, "norm_topk_prob": False, "mlp_only_layers": [1]},
    ),
}


def build(family: str, fields: dict[str, Any]) -> torch.nn.Module:
    """A model with random weights that float16 holds exactly."""
    given = {name: value for name, value in (SIZE | fields).items() if value is not None}
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        given[name] = None
    config = getattr(transformers, f"{family}Config")(**given)
    name = family.removesuffix("Text")
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval().float()
    random = torch.Generator().manual_seed(7)
    centred = family.startswith("Gemma")  # its norms are stored as w - 1
    with torch.no_grad():
        for path, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=random)
            if "norm" in path:
                noise = 0.2 * noise + (0 if centred else 1)
            elif weight.ndim > 1:
                # Queries and keys are larger, so that attention is far from uniform.
                gain = 2.0 if any(each in path for each in ("q_proj", "k_proj", "qkv")) else 1.0
                noise = gain * noise / math.sqrt(weight.shape[-1])
            weight.copy_(noise.half().float())
    return model


@torch.no_grad()
def logits(model: torch.nn.Module, tokens: np.ndarray) -> np.ndarray:
    """Float32 logits after each token."""
    return model(torch.tensor(tokens[None]), use_cache=False).logits[0].float().numpy()


def make(name: str) -> None:
    """Write one folder."""
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    model = build(*MODELS[name])
    tokens = np.random.RandomState(5).randint(0, VOCAB, LENGTH)
    found = {"tokens": tokens.astype(np.int32), "logits": logits(model, tokens)}
    if name.endswith("_long"):  # a shorter text uses the other factors
        found["short_logits"] = logits(model, tokens[:SHORT])
    model.half().save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    size = (folder / "model.safetensors").stat().st_size
    assert size < LARGEST, f"{name}: {size} bytes of weights"
    np.savez_compressed(folder / "logits.npz", **found)
    print(f"{name:12s} {size} bytes, logits {np.abs(found['logits']).max():.2f}")  # noqa: T201


if __name__ == "__main__":
    for each in MODELS:
        make(each)
