"""Compute the reference logits of every tiny family with transformers; run by hand, rarely.

Needs the project and, beside it, torch and transformers 5 (not dependencies of the project):

    pip install torch transformers && python tests/golden/make_goldens.py

For each family it loads the seeded weights of `jaxllama.testing` into the Hugging Face model,
writes tests/golden/FAMILY.npz and refuses to write when the NumPy reference disagrees. It imports
nothing of the engine, so goldens are independent of the code they judge.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from jaxllama.config import ModelConfig, Rope
from jaxllama.testing import numpy_llama
from jaxllama.testing.models import FAMILIES, random_params

FOLDER = Path(__file__).parent
LENGTH = 40
GREEDY = 16
SEED = 55  # of the prompt: the first from 40 whose greedy continuations have no near tie
ROWS = (0, 1, 2, 5, 8, 11, 14, 18, 22, 26, 30, 35, 39)  # stored positions; all would be 3x larger
CLASSES = {
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
NAMES = {
    "self_attn.q_proj": "attention.q",
    "self_attn.k_proj": "attention.k",
    "self_attn.v_proj": "attention.v",
    "self_attn.o_proj": "attention.o",
    "self_attn.q_norm": "attention.q_norm",
    "self_attn.k_norm": "attention.k_norm",
    "mlp.gate_proj": "ffn.gate",
    "mlp.up_proj": "ffn.up",
    "mlp.down_proj": "ffn.down",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "embed",
    "model.norm": "final_norm",
    "lm_head": "unembed",
}


def rope_parameters(rope: Rope) -> dict[str, object]:
    """The `rope_parameters` entry that means the same to transformers."""
    found: dict[str, object] = {"rope_theta": rope.theta, "rope_type": rope.kind}
    match rope.kind:
        case "none":
            found["rope_type"] = "default"
        case "linear":
            found["factor"] = rope.factor
        case "llama3":
            found |= {
                "factor": rope.factor,
                "low_freq_factor": rope.low_freq_factor,
                "high_freq_factor": rope.high_freq_factor,
                "original_max_position_embeddings": rope.original_context,
            }
        case "yarn":
            found |= {
                "factor": rope.factor,
                "beta_fast": rope.beta_fast,
                "beta_slow": rope.beta_slow,
                "original_max_position_embeddings": rope.original_context,
            }
            if rope.attention_factor is not None:
                found["attention_factor"] = rope.attention_factor
        case "factors":  # longrope, on the side of it that is used below the original context
            found |= {
                "rope_type": "longrope",
                "short_factor": list(rope.factors),
                "long_factor": list(rope.factors),
                "factor": 1.0,
                "attention_factor": 1.0,
                "original_max_position_embeddings": 256,
            }
        case "ntk":
            # transformers has no fixed NTK rule, only one that grows with the sequence: alpha is
            # factor * length / max_position_embeddings - factor + 1. At LENGTH, with half of it
            # as max_position_embeddings, that is factor + 1.
            found |= {"rope_type": "dynamic", "factor": rope.factor - 1}
    return found


def build(config: ModelConfig) -> torch.nn.Module:
    """The transformers model of a family, with the seeded weights in it."""
    config_class, model_class = CLASSES.get(config.name, (LlamaConfig, LlamaForCausalLM))
    options: dict[str, object] = {}
    if model_class is LlamaForCausalLM:
        options = {"attention_bias": config.out_bias, "mlp_bias": config.ffn_bias}
    if model_class is MistralForCausalLM:
        options = {"sliding_window": config.window}
    model = model_class(
        config_class(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            intermediate_size=config.ffn_width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_dim,
            max_position_embeddings=(
                LENGTH // 2 if config.rope.kind == "ntk" else config.max_context
            ),
            rms_norm_eps=config.norm_eps,
            tie_word_embeddings=config.tied,
            rope_parameters=rope_parameters(config.rope),
            attn_implementation="eager",
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=None,
            **options,
        )
    )
    state = dict(model.state_dict())
    if config.tied:
        del state["lm_head.weight"]
    params = random_params(config)
    model.load_state_dict({name: weight_for(name, params) for name in state}, strict=False)
    loaded = {our_path(name) for name in state}
    assert len(loaded) == count_leaves(params), "some seeded weights were not loaded"
    return model.eval().float()


def our_path(name: str) -> str:
    """Our dotted path of a Hugging Face weight."""
    stem, last = name.rsplit(".", 1)
    if not stem.startswith("model.layers."):
        return f"{NAMES[stem]}.{last}"
    layer, inner = stem.removeprefix("model.layers.").split(".", 1)
    return f"blocks.{layer}.{NAMES[inner]}.{last}"


def weight_for(name: str, params: dict) -> torch.Tensor:
    """Our array for a Hugging Face weight, in its layout."""
    node = params
    for key in our_path(name).split("."):
        node = node[int(key) if key.isdigit() else key]
    turned = name.endswith(("_proj.weight", "lm_head.weight"))
    return torch.from_numpy(np.ascontiguousarray(node.T if turned else node))


def count_leaves(tree: dict) -> int:
    """How many arrays a nested tree holds."""
    return sum(count_leaves(v) if isinstance(v, dict) else 1 for v in tree.values())


@torch.no_grad()
def forward(model: torch.nn.Module, tokens: list[int]) -> np.ndarray:
    """Float32 logits after each token."""
    return model(torch.tensor([tokens]), use_cache=False).logits[0].float().numpy()


def greedy(model: torch.nn.Module, prompt: list[int]) -> list[int]:
    """The likeliest continuation; refuses near ties, which rounding would decide."""
    tokens = list(prompt)
    for _ in range(GREEDY):
        row = forward(model, tokens)[-1]
        second, first = np.sort(row)[-2:]
        if first - second < 0.005:
            raise SystemExit(f"near tie ({first - second:.5f}) after {len(tokens)} tokens")
        tokens.append(int(row.argmax()))
    return tokens[len(prompt) :]


def make(config: ModelConfig) -> None:
    """Write one golden file, after holding it against the NumPy reference."""
    tokens = np.random.RandomState(SEED).randint(0, 256, LENGTH).tolist()
    params = random_params(config)
    model = build(config)
    theirs = forward(model, tokens)
    ours = numpy_llama.logits(config, params, tokens)
    error = np.abs(theirs - ours).max() / np.abs(ours).max()
    assert error < 1e-4, f"{config.name}: transformers and NumPy differ by {error:.2e}"
    following = numpy_llama.greedy(config, params, tokens, GREEDY)
    if config.rope.kind != "ntk":  # there transformers would change its rotation as text grows
        assert greedy(model, tokens) == following, f"{config.name}: greedy continuations differ"
    np.savez_compressed(
        FOLDER / f"{config.name}.npz",
        tokens=np.array(tokens, np.int32),
        rows=np.array(ROWS, np.int32),
        logits=theirs[list(ROWS)],
        greedy=np.array(following, np.int32),
    )
    print(f"{config.name:12s} relative difference {error:.1e}")  # noqa: T201 - run by a person


if __name__ == "__main__":
    for family in FAMILIES.values():
        make(family)
