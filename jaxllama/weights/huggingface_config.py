"""Converts config.json of a Hugging Face folder to a ModelConfig.

Called by the Hugging Face reader. An absent field means its default in transformers for this
architecture. Knows no tensors.
"""

import math
from dataclasses import dataclass

from jaxllama.config import ModelConfig, Rope
from jaxllama.errors import BadHeader, UnsupportedModel
from jaxllama.weights.fields import MAX_CONTEXT, MAX_HEADS, CheckedFields, read_layers, shown
from jaxllama.weights.float8 import is_float8_method


@dataclass(frozen=True)
class Family:
    """The properties of an architecture that its config.json may omit."""

    max_context: int
    kv_heads: int | None = None  # None: as many as query heads
    head_dim: int | None = None  # None: width / heads
    qkv_bias: bool | None = None  # None: attention_bias says
    out_bias: bool | None = None
    may_bias_ffn: bool = False
    qk_norm: bool = False


FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family(2048, may_bias_ffn=True),
    "MistralForCausalLM": Family(131072, kv_heads=8, qkv_bias=False, out_bias=False),
    "Qwen2ForCausalLM": Family(32768, kv_heads=32, qkv_bias=True, out_bias=False),
    "Qwen3ForCausalLM": Family(32768, kv_heads=32, head_dim=128, qk_norm=True),
}
MODEL_TYPES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
DEFAULT_WINDOW = 4096


def read_config(fields: CheckedFields, name: str, tensors: int) -> ModelConfig:
    """Return the shape of the model `name`, which is saved in `tensors` tensors."""
    architecture = check_kind(fields)
    family = FAMILIES[architecture]
    heads = fields.whole("num_attention_heads", high=MAX_HEADS)
    width = fields.whole("hidden_size")
    layers = read_layers(fields, "num_hidden_layers", tensors)
    bias = fields.flag("attention_bias", False)
    max_context = fields.whole("max_position_embeddings", family.max_context, high=MAX_CONTEXT)
    try:
        return ModelConfig(
            vocab_size=fields.whole("vocab_size"),
            width=width,
            layers=layers,
            heads=heads,
            kv_heads=read_kv_heads(fields, family, heads),
            head_dim=fields.whole("head_dim", family.head_dim or width // heads, high=MAX_HEADS),
            ffn_width=fields.whole("intermediate_size"),
            max_context=max_context,
            norm_eps=fields.real("rms_norm_eps", 1e-6),
            rope=read_rope(fields, max_context),
            tied=fields.flag("tie_word_embeddings", False),
            qkv_bias=bias if family.qkv_bias is None else family.qkv_bias,
            out_bias=bias if family.out_bias is None else family.out_bias,
            ffn_bias=family.may_bias_ffn and fields.flag("mlp_bias", False),
            qk_norm=family.qk_norm,
            window=read_window(fields, architecture, layers),
            name=name,
        )
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{fields.where}: {error}") from error


def check_kind(fields: CheckedFields) -> str:
    """Return the architecture; raise UnsupportedModel unless it and its storage are supported."""
    stated = fields.items("architectures")
    architecture = stated[0] if stated else MODEL_TYPES.get(fields.text("model_type", ""))
    if not isinstance(architecture, str) or architecture not in FAMILIES:
        raise UnsupportedModel(
            f"{fields.where}: architecture {shown(architecture)} is not supported; expected one "
            f"of {', '.join(FAMILIES)}"
        )
    quantization = fields.inner("quantization_config")
    if fields.has("quantization_config") and not is_float8_method(quantization):
        method = quantization.text("quant_method", "unknown")
        raise UnsupportedModel(
            f"{fields.where}: weights are quantized with {shown(method)}, which is not supported; "
            f"use the unquantized model or a GGUF file"
        )
    activation = fields.text("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise UnsupportedModel(
            f"{fields.where}: hidden_act is {shown(activation)}; expected 'silu'"
        )
    return architecture


def read_kv_heads(fields: CheckedFields, family: Family, heads: int) -> int:
    """Return the number of key/value heads.

    Null means as many as query heads; absent means the family's default.
    """
    if "num_key_value_heads" in fields.values:
        return fields.whole("num_key_value_heads", heads, high=MAX_HEADS)
    return family.kv_heads or heads


def read_window(fields: CheckedFields, architecture: str, layers: int) -> int | None:
    """Return the sliding window; None if no layer has one, refused if only some layers have it."""
    # absent means the default, null means none
    without = fields.values.get("sliding_window", DEFAULT_WINDOW) is None
    if architecture == "LlamaForCausalLM" or without:
        return None
    sliding = layers if architecture == "MistralForCausalLM" else sliding_layers(fields, layers)
    if sliding not in (0, layers):
        raise UnsupportedModel(
            f"{fields.where}: {sliding} of {layers} layers have a sliding window; expected all "
            f"or none"
        )
    return fields.whole("sliding_window", DEFAULT_WINDOW, high=MAX_CONTEXT) if sliding else None


def sliding_layers(fields: CheckedFields, layers: int) -> int:
    """Return the number of layers of a Qwen model that have the window."""
    if fields.has("layer_types"):
        return fields.items("layer_types").count("sliding_attention")
    if not fields.flag("use_sliding_window", False):
        return 0
    return max(layers - fields.whole("max_window_layers", 28, low=0), 0)


def read_rope(fields: CheckedFields, max_context: int) -> Rope:
    """Return the rotary embedding.

    Reads `rope_parameters`, or the older fields `rope_theta` and `rope_scaling`.
    """
    rule = fields.inner("rope_parameters" if fields.has("rope_parameters") else "rope_scaling")
    theta = rule.real("rope_theta", fields.real("rope_theta", 10000.0), above=1)
    for holder in (fields, rule):
        if holder.real("partial_rotary_factor", 1.0) != 1.0:
            raise UnsupportedModel(
                f"{holder.where}: partial_rotary_factor differs from 1, which is not supported"
            )
    if any(isinstance(value, dict) for value in rule.values.values()):
        raise UnsupportedModel(f"{rule.where}: differs between layers, which is not supported")
    kind = rule.text("rope_type", rule.text("type", "default"))
    match kind:
        case "default" | "dynamic":  # dynamic stretches only beyond the trained context
            return Rope(theta)
        case "linear":
            return Rope(theta, "linear", rule.real("factor", above=0))
        case "llama3":
            return read_llama3(rule, theta, max_context)
        case "yarn":
            return read_yarn(rule, theta, max_context)
    raise UnsupportedModel(
        f"{rule.where}: rope type {shown(kind)} is not supported; expected one of default, "
        f"linear, dynamic, llama3, yarn"
    )


def read_llama3(rule: CheckedFields, theta: float, max_context: int) -> Rope:
    """Return the rotary embedding by Llama 3.1's rule."""
    low, high = rule.real("low_freq_factor"), rule.real("high_freq_factor")
    if not 0 < low < high:
        raise BadHeader(
            f"{rule.where}: low_freq_factor is {low} and high_freq_factor {high}; expected "
            f"0 < low < high"
        )
    return Rope(
        theta,
        "llama3",
        rule.real("factor", above=0),
        original_context=trained_context(rule, max_context),
        low_freq_factor=low,
        high_freq_factor=high,
    )


def read_yarn(rule: CheckedFields, theta: float, max_context: int) -> Rope:
    """Return yarn; DeepSeek's two mscale fields are combined to one attention factor."""
    if not rule.flag("truncate", True):
        raise UnsupportedModel(f"{rule.where}: truncate is false, which is not supported")
    original_context = trained_context(rule, max_context)
    factor = rule.real("factor", max_context / original_context, above=0)
    attention_factor = rule.real("attention_factor") if rule.has("attention_factor") else None
    mscale, over_all = rule.real("mscale", 0.0), rule.real("mscale_all_dim", 0.0)
    if attention_factor is None and mscale and over_all:
        attention_factor = yarn_scale(factor, mscale) / yarn_scale(factor, over_all)
    return Rope(
        theta,
        "yarn",
        factor,
        original_context=original_context,
        beta_fast=rule.real("beta_fast", 32.0, above=0),
        beta_slow=rule.real("beta_slow", 1.0, above=0),
        attention_factor=attention_factor,
    )


def trained_context(rule: CheckedFields, max_context: int) -> int:
    """Return the context length before stretching."""
    return rule.whole("original_max_position_embeddings", max_context, high=MAX_CONTEXT)


def yarn_scale(factor: float, mscale: float) -> float:
    """Return the factor by which yarn scales cosines and sines for a stretch by `factor`."""
    return 0.1 * mscale * math.log(factor) + 1 if factor > 1 else 1.0
