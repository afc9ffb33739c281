"""Converts config.json of a Hugging Face folder to a ModelConfig.

Called by the Hugging Face reader. An absent field means its default in transformers for this
architecture. Knows no tensors.
"""

import math
from typing import Any

from jaxllama.config import Experts, LayerSpec, ModelConfig, Rope
from jaxllama.errors import BadHeader, UnsupportedModel
from jaxllama.weights.architectures import (
    Architecture,
    by_class_name,
    class_name_of,
    pattern_of,
)
from jaxllama.weights.fields import MAX_CONTEXT, MAX_HEADS, CheckedFields, read_layers, shown
from jaxllama.weights.float8 import is_float8_method
from jaxllama.weights.quantized import METHODS

ACTIVATIONS = {"silu": ("silu", "swish"), "gelu_tanh": ("gelu_pytorch_tanh", "gelu_new")}
EXPERT_COUNTS = ("num_local_experts", "num_experts")  # both are used for either architecture
EXPERT_TENSORS = 3
FULL, SLIDING = "full_attention", "sliding_attention"  # in layer_types, and keys of rope_parameters


def read_config(fields: CheckedFields, name: str, tensors: int) -> ModelConfig:
    """Return the configuration of the model `name` from the fields of its config.json.

    `tensors`, the number of tensors in the files, limits the numbers of layers and experts.
    """
    family = find_architecture(fields)
    heads = fields.whole("num_attention_heads", high=MAX_HEADS)
    width = fields.whole("hidden_size")
    head_dim = fields.whole("head_dim", family.head_dim or width // heads, high=MAX_HEADS)
    layers = read_layers(fields, "num_hidden_layers", tensors)
    bias = fields.flag("attention_bias", False)
    max_context = fields.whole("max_position_embeddings", family.max_context, high=MAX_CONTEXT)
    rope, local_rope = read_ropes(fields, family, max_context)
    try:
        return ModelConfig(
            vocab_size=fields.whole("vocab_size"),
            width=width,
            layers=layers,
            heads=heads,
            kv_heads=read_kv_heads(fields, family, heads),
            head_dim=head_dim,
            ffn_width=fields.whole("intermediate_size"),
            max_context=max_context,
            norm_eps=fields.real("rms_norm_eps", family.norm_eps),
            rope=rope,
            local_rope=local_rope,
            rotary_dim=read_rotary_dim(fields, family, head_dim),
            tied=fields.flag("tie_word_embeddings", family.tied),
            qkv_bias=bias if family.qkv_bias is None else family.qkv_bias,
            out_bias=bias if family.out_bias is None else family.out_bias,
            ffn_bias=family.may_bias_ffn and fields.flag("mlp_bias", False),
            qk_norm=family.qk_norm,
            qk_norm_over=family.qk_norm_over,
            norms=family.norms,
            activation=family.activation,
            experts=read_mixture(fields, family, layers, tensors),
            name=name,
            **read_layer_specs(fields, family, layers),
            **read_scales(fields, family, width),
        )
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{fields.where}: {error}") from error


def find_architecture(fields: CheckedFields) -> Architecture:
    """Return the architecture that config.json names.

    Raise UnsupportedModel if it, its quantisation or its activation is not supported.
    """
    stated = fields.items("architectures")
    name = stated[0] if stated else class_name_of(fields.text("model_type", ""))
    family = by_class_name(name, fields.where)
    quantization = fields.inner("quantization_config")
    method = quantization.text("quant_method", "unknown")
    is_known = method in METHODS or is_float8_method(quantization)
    if fields.has("quantization_config") and not is_known:
        raise UnsupportedModel(
            f"{fields.where}: weights are quantized with {shown(method)}, which is not supported; "
            f"expected gptq or awq, or use the unquantized model or a GGUF file"
        )
    expected = ACTIVATIONS[family.activation]
    for key in ("hidden_activation", "hidden_act"):  # the first one counts where both are
        activation = fields.text(key, expected[0])
        if fields.has(key) and activation not in expected:
            raise UnsupportedModel(
                f"{fields.where}: {key} is {shown(activation)}; expected {expected[0]!r}"
            )
        if fields.has(key):
            break
    if fields.flag("use_bidirectional_attention", False):
        raise UnsupportedModel(
            f"{fields.where}: use_bidirectional_attention is true; expected a model that generates"
        )
    return family


def read_kv_heads(fields: CheckedFields, family: Architecture, heads: int) -> int:
    """Return the number of key/value heads; `heads` is the number of query heads.

    A null in config.json means as many as query heads; an absent field means the default of
    `family`.
    """
    if "num_key_value_heads" in fields.values:
        return fields.whole("num_key_value_heads", heads, high=MAX_HEADS)
    return family.kv_heads or heads


def read_rotary_dim(fields: CheckedFields, family: Architecture, head_dim: int) -> int | None:
    """Return how many of the `head_dim` numbers of a head rotate; None if all do.

    Raise UnsupportedModel if only some rotate although `family` does not allow this.
    """
    rules = fields.inner("rope_parameters" if fields.has("rope_parameters") else "rope_scaling")
    for holder in (fields, rules):
        part = holder.real("partial_rotary_factor", 1.0)
        if part == 1.0:
            continue
        if not (family.may_rotate_part and 0 < part < 1):
            raise UnsupportedModel(
                f"{holder.where}: partial_rotary_factor is {part}, which is not supported for "
                f"{family.title}; expected 1"
            )
        return int(head_dim * part)
    return None


def read_scales(fields: CheckedFields, family: Architecture, width: int) -> dict[str, Any]:
    """Return the fields of ModelConfig for the multipliers and soft caps of Gemma and Granite.

    `family` has the defaults of absent fields; `width` is the length of a hidden state.
    """
    caps = {"attention_cap": "attn_logit_softcapping", "logit_cap": "final_logit_softcapping"}
    found: dict[str, Any] = {}
    for ours, theirs in caps.items():
        usual = getattr(family, ours)
        is_null = theirs in fields.values and not fields.has(theirs)  # means none
        if fields.has(theirs) or (usual is not None and not is_null):
            found[ours] = fields.real(theirs, usual, above=0)
    if family.query_scalar is not None:
        scalar = fields.real("query_pre_attn_scalar", family.query_scalar, above=0)
        found["query_scale"] = scalar**-0.5
    if family.scales_embedding:
        found["embed_scale"] = math.sqrt(width)
    if family.has_multipliers:
        found |= {
            "query_scale": fields.real("attention_multiplier", 1.0, above=0),
            "embed_scale": fields.real("embedding_multiplier", 1.0, above=0),
            "residual_scale": fields.real("residual_multiplier", 1.0, above=0),
            "logit_scale": 1 / fields.real("logits_scaling", 1.0, above=0),
        }
    return found


def read_mixture(
    fields: CheckedFields, family: Architecture, layers: int, tensors: int
) -> Experts | None:
    """Return the number of experts, how many of them a token uses, and their width.

    None: the model has no experts. `family` has the defaults of absent fields, `layers` is the
    number of layers. Raise BadHeader if `tensors`, the number of tensors in the files, is too small
    for so many experts.
    """
    if family.experts is None:
        return None
    key = next((each for each in EXPERT_COUNTS if fields.has(each)), EXPERT_COUNTS[0])
    count = fields.whole(key, family.experts.default_count, high=MAX_HEADS)
    needed = sum(sparse_layers(fields, family, layers)) * count * EXPERT_TENSORS
    if needed > tensors:  # bounds memory: the table has a row for every expert
        raise BadHeader(
            f"{fields.where}: {key} is {count}; so many experts need at least {needed} tensors, "
            f"and there are {tensors}"
        )
    return Experts(
        count,
        fields.whole("num_experts_per_tok", family.experts.default_used, high=count),
        fields.whole(family.experts.width, family.experts.default_width),
        normed=fields.flag("norm_topk_prob", family.experts.normed),
    )


def read_layer_specs(fields: CheckedFields, family: Architecture, layers: int) -> dict[str, Any]:
    """Return the fields `window` and `pattern` of ModelConfig for a model of `layers` layers.

    `window` is the size of the sliding window, None without. `pattern` says of each layer whether
    it has the window, rotary embedding and experts; a pattern that repeats is given only once.
    """
    windowed = windowed_layers(fields, family, layers)
    rotated = rotated_layers(fields, family, layers)
    sparse = sparse_layers(fields, family, layers)
    window = None
    if any(windowed):
        window = fields.whole("sliding_window", family.window or 0, high=MAX_CONTEXT)
    else:
        windowed = [True] * layers  # no window for any of them
    specs = [LayerSpec(*each) for each in zip(windowed, rotated, sparse, strict=True)]
    return {"window": window, "pattern": pattern_of(specs)}


def windowed_layers(fields: CheckedFields, family: Architecture, layers: int) -> list[bool]:
    """Say of each of the `layers` layers whether it attends within the sliding window only.

    `family` has the rule for models whose config.json does not list the layers.
    """
    # absent means the default, null means none
    if not family.has_window or fields.values.get("sliding_window", family.window) is None:
        return [False] * layers
    if fields.has("layer_types") and (family.asks_for_window or family.full_every):
        return [kind == SLIDING for kind in listed(fields, "layer_types", layers)]
    if family.asks_for_window:
        if not fields.flag("use_sliding_window", False):
            return [False] * layers
        first = fields.whole("max_window_layers", 28, low=0)
        return [index >= first for index in range(layers)]
    every = family.full_every
    if every:
        every = fields.whole("sliding_window_pattern", every, high=MAX_HEADS)
    return [not (every and (index + 1) % every == 0) for index in range(layers)]


def rotated_layers(fields: CheckedFields, family: Architecture, layers: int) -> list[bool]:
    """Say of each of the `layers` layers whether it has rotary embedding.

    SmolLM3's config.json may list them; `family` has the rule otherwise.
    """
    if not family.unrotated_every:
        return [True] * layers
    if fields.has("no_rope_layers"):
        return [each == 1 for each in listed(fields, "no_rope_layers", layers)]
    every = fields.whole("no_rope_layer_interval", family.unrotated_every, high=MAX_HEADS)
    return [(index + 1) % every != 0 for index in range(layers)]


def sparse_layers(fields: CheckedFields, family: Architecture, layers: int) -> list[bool]:
    """Say of each of the `layers` layers whether its feed-forward is a mixture of experts.

    If `family` has no experts, all values are True, and ModelConfig ignores them.
    """
    if family.experts is None:
        return [True] * layers
    step = fields.whole("decoder_sparse_step", 1, high=MAX_HEADS)
    dense = {each for each in fields.items("mlp_only_layers") if isinstance(each, int)}
    return [(index + 1) % step == 0 and index not in dense for index in range(layers)]


def listed(fields: CheckedFields, key: str, layers: int) -> list[object]:
    """Return the first `layers` values of the list in field `key`, one for each layer.

    Raise BadHeader if the list has fewer.
    """
    values = fields.items(key)
    if len(values) < layers:
        raise BadHeader(
            f"{fields.where}: {key} has {len(values)} values; expected one for each of {layers} "
            f"layers"
        )
    return values[:layers]


def read_ropes(
    fields: CheckedFields, family: Architecture, max_context: int
) -> tuple[Rope, Rope | None]:
    """Return the rotary embedding of the model, and that of its layers with a sliding window.

    The second is None if it is the same. `max_context` is the model's context length. Reads
    `rope_parameters`, or the older fields `rope_theta` and `rope_scaling`.
    """
    rule = fields.inner("rope_parameters" if fields.has("rope_parameters") else "rope_scaling")
    theta = fields.real("rope_theta", family.theta, above=1)
    if family.local_theta is None:
        return read_rope(fields, rule, theta, max_context), None
    base = fields.real("rope_local_base_freq", family.local_theta, above=1)
    if not (rule.has(FULL) or rule.has(SLIDING)):
        return read_rope(fields, rule, theta, max_context), Rope(base)
    return (
        read_rope(fields, rule.inner(FULL), theta, max_context),
        read_rope(fields, rule.inner(SLIDING), base, max_context),
    )


def read_rope(fields: CheckedFields, rule: CheckedFields, theta: float, max_context: int) -> Rope:
    """Return the rotary embedding that `rule`, a JSON object such as `rope_scaling`, describes.

    `fields` are all fields of config.json, `theta` is the base frequency if `rule` has none, and
    `max_context` the model's context length. Raise UnsupportedModel for unknown types.
    """
    theta = rule.real("rope_theta", theta, above=1)
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
        case "longrope" | "su":  # su is an older name
            return read_longrope(fields, rule, theta, max_context)
    raise UnsupportedModel(
        f"{rule.where}: rope type {shown(kind)} is not supported; expected one of default, "
        f"linear, dynamic, llama3, yarn, longrope"
    )


def read_longrope(
    fields: CheckedFields, rule: CheckedFields, theta: float, max_context: int
) -> Rope:
    """Return Phi-3's rotary embedding, which has separate frequency divisors for long texts.

    `rule` is the JSON object that holds the divisors, `fields` are all fields of config.json,
    `theta` is the base frequency, `max_context` the model's context length.
    """
    stated = "original_max_position_embeddings"
    holder = fields if fields.has(stated) else rule
    original = holder.whole(stated, max_context, high=MAX_CONTEXT)
    factor = rule.real("factor", max_context / original, above=0)
    usual = 1.0
    if factor > 1 and original > 1:
        usual = math.sqrt(1 + math.log(factor) / math.log(original))
    short, long = (read_factors(rule, key) for key in ("short_factor", "long_factor"))
    return Rope(
        theta,
        "factors",
        original_context=original,
        attention_factor=rule.real("attention_factor", usual, above=0),
        factors=short,
        long_factors=() if short == long else long,
    )


def read_factors(rule: CheckedFields, key: str) -> tuple[float, ...]:
    """Return the frequency divisors in list `key` of `rule` (`rope_scaling`), one per rotated pair.

    Raises BadHeader unless they are positive numbers.
    """
    values = rule.items(key)
    if not values or len(values) > MAX_HEADS:
        raise BadHeader(
            f"{rule.where}: {key} has {len(values)} values; expected one for each rotated pair"
        )
    return tuple(CheckedFields({key: value}, rule.where).real(key, above=0) for value in values)


def read_llama3(rule: CheckedFields, theta: float, max_context: int) -> Rope:
    """Return the rotary embedding of base `theta` that Llama 3.1's scaling rule `rule` describes.

    `max_context` is the model's context length.
    """
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
    """Return the YaRN rotary embedding of base `theta` that the object `rule` describes.

    `max_context` is the model's context length. DeepSeek's two mscale fields become one attention
    factor.
    """
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
    """Return the context length that the model was trained with, before RoPE scaling extended it.

    `rule` is the JSON object that describes the scaling. If it does not state the length, return
    `max_context`.
    """
    return rule.whole("original_max_position_embeddings", max_context, high=MAX_CONTEXT)


def yarn_scale(factor: float, mscale: float) -> float:
    """Return YaRN's factor on cosines and sines for a context stretched by `factor`.

    `mscale`, a field of DeepSeek's config.json, is the weight of log(`factor`) in the result.
    """
    return 0.1 * mscale * math.log(factor) + 1 if factor > 1 else 1.0
