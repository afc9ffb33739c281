"""A Hugging Face folder as a GGUF file: what llama.cpp's converter does to each architecture.

Written from the `gguf` package's names, without knowledge of the readers that it tests.
"""

import json
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file
from writers import encode, pair_rope

Type = gguf.GGMLQuantizationType
NAMES = {
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "granite": "granite",
    "mixtral": "llama",
    "olmo2": "olmo2",
    "phi3": "phi3",
    "qwen3_moe": "qwen3moe",
    "smollm3": "smollm3",
}
PAIRED = ("llama", "granite", "smollm3")
EXPERTS = {"w1": "gate", "w2": "down", "w3": "up"}
OPTIONAL = {
    "sliding_window": "add_sliding_window",
    "attn_logit_softcapping": "add_attn_logit_softcapping",
    "final_logit_softcapping": "add_final_logit_softcapping",
    "attention_multiplier": "add_attention_scale",
    "embedding_multiplier": "add_embedding_scale",
    "residual_multiplier": "add_residual_scale",
    "logits_scaling": "add_logit_scale",
    "num_local_experts": "add_expert_count",
    "num_experts": "add_expert_count",
    "num_experts_per_tok": "add_expert_used_count",
    "moe_intermediate_size": "add_expert_feed_forward_length",
}


def to_gguf(folder: Path, path: Path, kind: str = "F32") -> None:
    """Write the model of a folder as a GGUF file, with matrices of one kind."""
    fields = json.loads((folder / "config.json").read_text())
    architecture = NAMES[fields["model_type"]]
    writer = gguf.GGUFWriter(path, architecture)
    add_keys(writer, fields)
    for name, value in tensors_of(folder, fields, architecture).items():
        number = Type[kind] if value.ndim > 1 else Type.F32
        raw = encode(value, number)
        writer.add_tensor(name, raw, raw_dtype=None if number is Type.F32 else number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_keys(writer: gguf.GGUFWriter, fields: dict) -> None:
    """The keys of the converter."""
    head_dim = fields.get("head_dim") or fields["hidden_size"] // fields["num_attention_heads"]
    rope = fields["rope_parameters"]
    rope = rope.get("full_attention", rope)
    writer.add_block_count(fields["num_hidden_layers"])
    writer.add_context_length(fields["max_position_embeddings"])
    writer.add_embedding_length(fields["hidden_size"])
    writer.add_feed_forward_length(fields["intermediate_size"])
    writer.add_head_count(fields["num_attention_heads"])
    writer.add_head_count_kv(fields["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(fields["rms_norm_eps"])
    writer.add_vocab_size(fields["vocab_size"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1)))
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "longrope":
        original = fields["original_max_position_embeddings"]
        factor = fields["max_position_embeddings"] / original
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors((1 + np.log(factor) / np.log(original)) ** 0.5)
        for part in ("short", "long"):
            factors = np.array(rope[f"{part}_factor"], np.float32)
            writer.add_tensor(f"rope_factors_{part}.weight", factors)
    for key, method in OPTIONAL.items():
        if fields.get(key) is not None:
            getattr(writer, method)(fields[key])


def tensors_of(folder: Path, fields: dict, architecture: str) -> dict[str, np.ndarray]:
    """The tensors under their new names."""
    names = gguf.get_tensor_name_map(
        gguf.MODEL_ARCH[architecture.upper()], fields["num_hidden_layers"]
    )
    heads = {"q_proj": fields["num_attention_heads"], "k_proj": fields["num_key_value_heads"]}
    found: dict[str, np.ndarray] = {}
    experts: dict[str, list[np.ndarray]] = {}
    for name, value in sorted(load_file(folder / "model.safetensors").items(), key=by_number):
        rows = value.astype(np.float32)
        stem = name.removesuffix(".weight")
        if ".experts." in stem:
            layer, part = stem.split(".")[2], stem.rpartition(".")[2]
            short = EXPERTS.get(part, part.removesuffix("_proj"))
            experts.setdefault(f"blk.{layer}.ffn_{short}_exps.weight", []).append(rows)
            continue
        moved = heads.get(stem.rpartition(".")[2])
        if architecture in PAIRED and moved:
            rows = pair_rope(rows, moved)
        if architecture.startswith("gemma") and stem.endswith("norm"):
            rows = rows + 1
        found[f"{names.get_name(stem)}.weight"] = rows
    return found | {name: np.stack(each) for name, each in experts.items()}


def by_number(item: tuple[str, np.ndarray]) -> list[int]:
    """Sort experts by their numbers, not by their names."""
    return [int(part) for part in item[0].split(".") if part.isdigit()]
