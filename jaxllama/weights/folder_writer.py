"""Writes a model as a Hugging Face folder: config.json, tokenizer files, safetensors.

Called by `export.py`. Names of tensors come from the reader's own table, in reverse. The header is
written first, then one tensor after the other.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxllama.config import ModelConfig, Rope
from jaxllama.errors import UnsupportedModel
from jaxllama.model.params import abstract_params
from jaxllama.model.rope import frequencies
from jaxllama.weights.architectures import Architecture, family_of
from jaxllama.weights.base import Checkpoint, CountProgress
from jaxllama.weights.gguf_writer import to_half
from jaxllama.weights.huggingface import DTYPES, table_of
from jaxllama.weights.huggingface_config import ACTIVATIONS, FULL, SLIDING
from jaxllama.weights.rules import restore, stored_shapes
from jaxllama.weights.stored import unpacked

SIZES = {"F32": 4, "F16": 2, "BF16": 2}
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")  # of config.json
TORCH = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
ROUNDING = 1e-6  # of a float32
LLAMA3_FACTORS = (8.0, 32.0)  # of Llama 3.1 and 3.2, whose rule GGUF keeps as divisors


def write_folder(
    dtype: str | None, source: Checkpoint, path: Path, progress: CountProgress
) -> None:
    """Write the model `source` as a Hugging Face folder at `path`, with dense weights.

    `dtype` is F32, F16 or BF16; None keeps the dtype of weights that are dense in the source and
    writes packed ones in float32, which is exact. `progress` is called with the number of tensors
    written and that of all tensors.
    """
    from jaxllama.text.exchange import as_files  # noqa: PLC0415 - heavy

    config = source.config
    leaves = abstract_params(config)
    table = table_of(family_of(config), config)
    path.mkdir()
    files = as_files(source.tokenizer_source())
    for name, raw in files.items():
        (path / name).write_bytes(raw)
    said = json.loads(files.get("config.json", b"{}"))
    special = {key: said[key] for key in SPECIAL if key in said}
    origin = {name: source.table[each] for each in leaves for name in table[each].names}
    dtypes = {}
    for name in stored_shapes(table, leaves):
        stored = source.kinds.get(origin[name].names[0], ("F32", 0))[0]
        dtypes[name] = dtype or (stored if stored in DTYPES else "F32")
    common = max(dtypes.values(), key=list(dtypes.values()).count)
    fields = config_fields(config) | special | {"torch_dtype": TORCH[common]}
    (path / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    shapes = stored_shapes(table, leaves)
    with (path / "model.safetensors").open("wb") as file:
        file.write(header_of(shapes, dtypes))
        made = restore(table, leaves, lambda each: source.read(each, leaves[each]))
        for done, (name, tensor) in enumerate(made, 1):
            file.write(converted(name, unpacked(tensor), dtypes[name]).tobytes())
            progress(done, len(shapes))


def header_of(shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str]) -> bytes:
    """Return the header of a safetensors file for these shapes and dtypes, by tensor name."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        size = int(np.prod(shape, dtype=np.int64)) * SIZES[dtypes[name]]
        header[name] = {
            "dtype": dtypes[name],
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def converted(name: str, tensor: np.ndarray, dtype: str) -> np.ndarray:
    """Return a tensor in `dtype`: F32, F16 or BF16.

    Raise UnsupportedModel, naming the tensor `name`, if it has a number too large for F16.
    """
    if dtype == "F16":
        return tensor if tensor.dtype == np.float16 else to_half(name, tensor.astype(np.float32))
    if dtype == "BF16":
        return tensor.astype(ml_dtypes.bfloat16)
    return tensor.astype("<f4")


def config_fields(config: ModelConfig) -> dict[str, Any]:
    """Return the fields of config.json that describe a model."""
    family = family_of(config)
    activation = ACTIVATIONS[family.activation][0]
    fields: dict[str, Any] = {
        "architectures": [family.class_name],
        "model_type": family.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn_width,
        "hidden_act": activation,
        "max_position_embeddings": config.max_context,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope.theta,
        "rope_scaling": rope_fields(config),
        "tie_word_embeddings": config.tied,
        "attention_bias": config.out_bias,
        "mlp_bias": config.ffn_bias,
    }
    if family.scales_embedding:
        fields["hidden_activation"] = activation
    if config.rotary_dim is not None:
        fields["partial_rotary_factor"] = config.rotary_dim / config.head_dim
    if config.rope.scaled_factors:
        fields["original_max_position_embeddings"] = config.rope.original_context
    if config.local_rope is not None:
        fields["rope_local_base_freq"] = config.local_rope.theta
    return fields | layer_fields(config, family) | scale_fields(config, family)


def layer_fields(config: ModelConfig, family: Architecture) -> dict[str, Any]:
    """Return the fields of config.json for sliding windows, unrotated layers and experts.

    `family`, the model's architecture, decides which of these fields there are.
    """
    specs = config.specs
    fields: dict[str, Any] = {"sliding_window": config.window}
    if config.window is not None and family.asks_for_window:
        fields |= {"use_sliding_window": True, "max_window_layers": 0}
    if config.window is not None and (family.full_every or family.asks_for_window):
        fields["layer_types"] = [SLIDING if spec.windowed else FULL for spec in specs]
    if family.unrotated_every:
        fields["no_rope_layers"] = [int(spec.rotated) for spec in specs]
    experts, names = config.experts, family.experts
    if experts is not None and names is not None:
        fields |= {
            names.count: experts.count,
            "num_experts_per_tok": experts.used,
            names.width: experts.width,
            "norm_topk_prob": experts.normed,
            "mlp_only_layers": [i for i, spec in enumerate(specs) if not spec.sparse],
        }
    return fields


def scale_fields(config: ModelConfig, family: Architecture) -> dict[str, Any]:
    """Return the fields of config.json for the multipliers and soft caps of Gemma and Granite.

    `family`, the model's architecture, decides which of these fields there are.
    """
    fields: dict[str, Any] = {}
    query_scale = config.query_scale or config.head_dim**-0.5
    if family.query_scalar is not None:
        scalar = query_scale**-2
        is_whole = abs(scalar - round(scalar)) < ROUNDING * scalar
        fields |= {
            "query_pre_attn_scalar": round(scalar) if is_whole else scalar,
            "attn_logit_softcapping": config.attention_cap,
            "final_logit_softcapping": config.logit_cap,
        }
    if family.has_multipliers:
        fields |= {
            "attention_multiplier": query_scale,
            "embedding_multiplier": config.embed_scale,
            "residual_multiplier": config.residual_scale,
            "logits_scaling": 1 / config.logit_scale,
        }
    return fields


def rope_fields(config: ModelConfig) -> dict[str, Any] | None:
    """Return `rope_scaling` of config.json; None if the rotary embedding is not scaled.

    Raise UnsupportedModel if config.json cannot describe the rotary embedding.
    """
    is_divided = config.rope.kind == "factors" and not config.rope.scaled_factors
    rope = as_llama3(config) if is_divided else config.rope
    match rope.kind:
        case "none":
            return None
        case "linear":
            return {"rope_type": "linear", "factor": rope.factor}
        case "llama3":
            return {
                "rope_type": "llama3",
                "factor": rope.factor,
                "low_freq_factor": rope.low_freq_factor,
                "high_freq_factor": rope.high_freq_factor,
                "original_max_position_embeddings": rope.original_context,
            }
        case "yarn":
            return {
                "rope_type": "yarn",
                "factor": rope.factor,
                "original_max_position_embeddings": rope.original_context,
                "beta_fast": rope.beta_fast,
                "beta_slow": rope.beta_slow,
                "attention_factor": rope.attention_factor,
            }
        case "factors" if rope.scaled_factors:
            return {
                "rope_type": "longrope",
                "type": "longrope",
                "short_factor": rope.factors,
                "long_factor": rope.long_factors or rope.factors,
                "attention_factor": rope.attention_factor or 1.0,
            }
    raise UnsupportedModel(
        f"config.json has no place for the rotary rule {rope.kind!r} of the model; export to GGUF"
    )


def as_llama3(config: ModelConfig) -> Rope:
    """Return the model's rotary embedding in Llama 3's form, if that gives the same frequencies.

    Otherwise return the rotary embedding of `config` unchanged.
    """
    wanted, _ = frequencies(config.rope, config.head_dim)
    for factor in LLAMA3_FACTORS:
        rope = Rope(config.rope.theta, "llama3", factor)
        if np.allclose(frequencies(rope, config.head_dim)[0], wanted, rtol=1e-5, atol=0):
            return rope
    return config.rope
