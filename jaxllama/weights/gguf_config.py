"""Converts the metadata of a GGUF file to a ModelConfig.

Called by the GGUF reader. An absent key means its default in llama.cpp. Knows the tensors that
show the model's shape, but not where weights go in the parameter tree.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxllama.config import Experts, LayerSpec, ModelConfig, Rope
from jaxllama.errors import BadHeader, UnsupportedModel
from jaxllama.weights.architectures import Architecture, by_gguf_name, pattern_of
from jaxllama.weights.fields import (
    MAX_CONTEXT,
    MAX_HEADS,
    REQUIRED,
    CheckedFields,
    read_layers,
    shown,
)
from jaxllama.weights.gguf_header import GgufHeader

ROPE_FACTORS = "rope_freqs.weight"  # read with the configuration, no weight of the model
SHORT_FACTORS, LONG_FACTORS = "rope_factors_short.weight", "rope_factors_long.weight"  # Phi-3's
FACTORS = (ROPE_FACTORS, SHORT_FACTORS, LONG_FACTORS)


def read_config(header: GgufHeader, path: Path) -> ModelConfig:
    """Return the configuration of the model at `path`, from metadata and tensors in `header`.

    Raise BadHeader if metadata and tensors contradict each other, UnsupportedModel if the engine
    cannot run the model.
    """
    where = path.name
    fields = CheckedFields(header.metadata, where)
    family = find_architecture(fields)
    architecture = family.gguf
    tensors = header.tensors
    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:  # noqa: PLR2004
        raise BadHeader(f"{where}: token_embd.weight is missing or no matrix")
    layers = read_layers(fields, f"{architecture}.block_count", len(tensors))
    heads = head_count(fields, f"{architecture}.attention.head_count")
    kv_heads = head_count(fields, f"{architecture}.attention.head_count_kv", heads)
    width = fields.whole(f"{architecture}.embedding_length")
    head_dim, rotary_dim = read_head_dim(fields, family, width // heads)
    rotated = rotary_dim or head_dim
    try:
        return ModelConfig(
            vocab_size=read_vocab_size(fields, header, architecture),
            width=width,
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            ffn_width=fields.whole(f"{architecture}.feed_forward_length"),
            max_context=fields.whole(f"{architecture}.context_length", high=MAX_CONTEXT),
            norm_eps=fields.real(f"{architecture}.attention.layer_norm_rms_epsilon"),
            rope=read_rope(fields, architecture, Factors.of(header, where, rotated)),
            local_rope=read_local_rope(fields, family),
            rotary_dim=rotary_dim,
            tied="output.weight" not in tensors,
            qkv_bias="blk.0.attn_q.bias" in tensors,
            out_bias="blk.0.attn_output.bias" in tensors,
            ffn_bias="blk.0.ffn_up.bias" in tensors,
            qk_norm=not family.paired and "blk.0.attn_q_norm.weight" in tensors,
            qk_norm_over=family.qk_norm_over,
            norms=family.norms,
            activation=family.activation,
            experts=read_mixture(fields, architecture),
            name=fields.text("general.name", path.stem),
            **read_layer_specs(fields, family, layers),
            **read_scales(fields, family, layers, (width, heads)),
        )
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{where}: {error}") from error


def find_architecture(fields: CheckedFields) -> Architecture:
    """Return the architecture that the metadata names.

    Raise UnsupportedModel if it is not supported, or the file is no whole model.
    """
    family = by_gguf_name(fields.text("general.architecture"), fields.where)
    kind = fields.text("general.type", "model")
    if kind != "model":
        raise UnsupportedModel(f"{fields.where}: general.type is {shown(kind)}; expected 'model'")
    return family


def read_mixture(fields: CheckedFields, architecture: str) -> Experts | None:
    """Return the number of experts, how many of them a token uses, and their width.

    None: the model has no experts. `architecture` is the name with which the metadata's keys
    begin.
    """
    count = fields.whole(f"{architecture}.expert_count", 0, low=0, high=MAX_HEADS)
    if count == 0:
        return None
    dense = fields.whole(f"{architecture}.feed_forward_length")
    width = fields.whole(f"{architecture}.expert_feed_forward_length", dense)
    return Experts(count, fields.whole(f"{architecture}.expert_used_count", high=count), width)


def read_layer_specs(fields: CheckedFields, family: Architecture, layers: int) -> dict[str, Any]:
    """Return the fields `window` and `pattern` of ModelConfig for a model of `layers` layers.

    `window` is the size of the sliding window, or None; `pattern` says which layers use the window
    and which the rotary embedding. The metadata has the size only; the pattern follows from
    `family`, the architecture.
    """
    key = f"{family.gguf}.attention.sliding_window"
    window = fields.whole(key, 0, low=0, high=MAX_CONTEXT) or None  # 0 means none: Phi-4
    if window is not None and family.norms == "after":
        raise UnsupportedModel(
            f"{key} is {window}; a sliding window is not supported for {family.title} (OLMo 3)"
        )
    full, still = family.full_every if window else 0, family.unrotated_every
    specs = [
        LayerSpec(
            windowed=not (full and (index + 1) % full == 0),
            rotated=not (still and (index + 1) % still == 0),
        )
        for index in range(layers)
    ]
    return {"window": window, "pattern": pattern_of(specs)}


def read_scales(
    fields: CheckedFields, family: Architecture, layers: int, size: tuple[int, int]
) -> dict[str, Any]:
    """Return the fields of ModelConfig for the multipliers and soft caps of Gemma and Granite.

    `layers` is the number of layers, `size` the width of hidden states and the number of heads.
    """
    width, heads = size
    prefix = family.gguf
    found: dict[str, Any] = {}
    caps = {"attention_cap": "attn_logit_softcapping", "logit_cap": "final_logit_softcapping"}
    for ours, theirs in caps.items():
        if fields.has(f"{prefix}.{theirs}") or getattr(family, ours) is not None:
            found[ours] = fields.real(f"{prefix}.{theirs}", getattr(family, ours), above=0)
    if layers == family.gguf_wide_queries:
        found["query_scale"] = (width / heads) ** -0.5
    if family.scales_embedding:
        found["embed_scale"] = math.sqrt(width)
    if family.has_multipliers:
        scales = {
            "query_scale": "attention.scale",
            "embed_scale": "embedding_scale",
            "residual_scale": "residual_scale",
        }
        for ours, theirs in scales.items():
            if fields.has(f"{prefix}.{theirs}"):
                found[ours] = fields.real(f"{prefix}.{theirs}", above=0)
        found["logit_scale"] = 1 / fields.real(f"{prefix}.logit_scale", 1.0, above=0)
    return found


def head_count(fields: CheckedFields, key: str, default: int = REQUIRED) -> int:
    """Return the head count in field `key`: a number, or an array with one number for each layer.

    `default` is used if the field is absent. Raise UnsupportedModel if the layers' numbers differ.
    """
    value = fields.values.get(key)
    if not isinstance(value, list):
        return fields.whole(key, default, high=MAX_HEADS)
    if not value or any(item != value[0] for item in value):
        raise UnsupportedModel(
            f"{fields.where}: {key} differs between blocks, which is not supported"
        )
    return CheckedFields({key: value[0]}, fields.where).whole(key, high=MAX_HEADS)


def read_head_dim(
    fields: CheckedFields, family: Architecture, default: int
) -> tuple[int, int | None]:
    """Return the size of a head and the number of its rotated dimensions, or None if all rotate.

    `default` is the size of a head if the metadata does not state it.
    """
    prefix = family.gguf
    head_dim = fields.whole(f"{prefix}.attention.key_length", default, high=MAX_HEADS)
    rotary_dim = fields.whole(f"{prefix}.rope.dimension_count", head_dim)
    sizes = {"attention.value_length": fields.whole(f"{prefix}.attention.value_length", head_dim)}
    if not family.may_rotate_part:
        sizes["rope.dimension_count"] = rotary_dim
    for other, size in sizes.items():
        if size != head_dim:
            raise UnsupportedModel(
                f"{fields.where}: {prefix}.{other} is {size} and the head size "
                f"{head_dim}; expected them equal"
            )
    return head_dim, None if rotary_dim == head_dim else rotary_dim


def read_vocab_size(fields: CheckedFields, header: GgufHeader, architecture: str) -> int:
    """Return the number of rows of the embedding, which is the size of the vocabulary.

    `architecture` is the name with which the metadata's keys begin. Raise BadHeader if the metadata
    states another number of tokens.
    """
    rows = header.tensors["token_embd.weight"].shape[0]
    tokens = header.metadata.count("tokenizer.ggml.tokens")
    stated = {
        f"{architecture}.vocab_size": fields.whole(f"{architecture}.vocab_size", rows),
        "the length of tokenizer.ggml.tokens": rows if tokens is None else tokens,
    }
    for key, count in stated.items():
        if count != rows:
            raise BadHeader(
                f"{fields.where}: {key} is {count} and token_embd.weight has {rows} rows; "
                f"expected them equal"
            )
    return rows


class Factors(NamedTuple):
    """The divisors of the rotation frequencies that a file has as tensors; () where it has none."""

    always: tuple[float, ...]  # Llama 3.1
    short: tuple[float, ...]  # Phi-3: up to the trained context
    long: tuple[float, ...]  # and beyond

    @classmethod
    def of(cls, header: GgufHeader, where: str, rotated: int) -> "Factors":
        """Read the divisors of rotation frequencies from the file's tensors.

        `rotated` is the number of rotated dimensions of a head, two for each divisor. Errors name
        the file `where`.
        """
        return cls(*(read_factors(header, where, name, rotated) for name in FACTORS))


def read_factors(header: GgufHeader, where: str, name: str, rotated: int) -> tuple[float, ...]:
    """Return the frequency divisors in tensor `name`, one per rotated pair; () without the tensor.

    `rotated` is the number of rotated dimensions of a head. Raise BadHeader, naming the file
    `where`, if the tensor has another type or shape, or values that are not positive.
    """
    entry = header.tensors.get(name)
    if entry is None:
        return ()
    if entry.kind.name != "F32" or entry.shape != (rotated // 2,):
        raise BadHeader(
            f"{where}: {name} is {entry.kind.name} {list(entry.shape)}; "
            f"expected F32 [{rotated // 2}]"
        )
    factors = entry.read().view("<f4")
    if not (np.isfinite(factors) & (factors > 0)).all():
        raise BadHeader(f"{where}: {name} holds values that are not positive")
    return tuple(factors.tolist())


def read_rope(fields: CheckedFields, architecture: str, factors: Factors) -> Rope:
    """Return the rotary embedding that the metadata's `rope.*` keys and `factors` describe.

    `architecture` is the name with which the keys begin; `factors` are the frequency divisors in
    the file's tensors, empty if the file has none.
    """
    prefix = f"{architecture}.rope"
    theta = fields.real(f"{prefix}.freq_base", 10000.0, above=1)
    if factors.short or factors.long:
        return read_longrope(fields, architecture, theta, factors)
    factor = fields.real(f"{prefix}.scaling.factor", fields.real(f"{prefix}.scale_linear", 0.0))
    factor = factor or 1.0  # 0 and absent both mean unscaled
    kind = fields.text(f"{prefix}.scaling.type", "linear")
    if kind == "yarn" and not factors.always:
        return read_yarn(fields, architecture, theta, factor)
    if kind not in ("none", "linear"):
        raise UnsupportedModel(
            f"{fields.where}: {prefix}.scaling.type is {shown(kind)}"
            f"{' with rope_freqs' if factors.always else ''}; expected none, linear or yarn"
        )
    factor = 1.0 if kind == "none" else factor
    if factors.always:
        return Rope(theta, "factors", factors=tuple(factor * each for each in factors.always))
    return Rope(theta) if factor == 1.0 else Rope(theta, "linear", factor)


def read_local_rope(fields: CheckedFields, family: Architecture) -> Rope | None:
    """Return the rotary embedding of the layers with a sliding window.

    None: they have the same one as the other layers.
    """
    if family.local_theta is None:
        return None
    return Rope(fields.real(f"{family.gguf}.rope.freq_base_swa", family.local_theta, above=1))


def read_longrope(fields: CheckedFields, architecture: str, theta: float, factors: Factors) -> Rope:
    """Return Phi-3's rotary embedding, with other frequency divisors for long texts than for short.

    `architecture` is the name with which the metadata's keys begin, `theta` the base frequency,
    `factors` the divisors. Raise BadHeader if one of the two sets is missing.
    """
    scaling = f"{architecture}.rope.scaling"
    if not (factors.short and factors.long):
        raise BadHeader(
            f"{fields.where}: has only one of {SHORT_FACTORS} and {LONG_FACTORS}; expected both"
        )
    trained = fields.whole(f"{architecture}.context_length", high=MAX_CONTEXT)
    original = f"{scaling}.original_context_length"
    return Rope(
        theta,
        "factors",
        original_context=fields.whole(original, trained, high=MAX_CONTEXT),
        attention_factor=fields.real(f"{scaling}.attn_factor", 1.0, above=0),
        factors=factors.short,
        long_factors=() if factors.short == factors.long else factors.long,
    )


def read_yarn(fields: CheckedFields, architecture: str, theta: float, factor: float) -> Rope:
    """Return a YaRN rotary embedding of base `theta`, which stretches the context by `factor`.

    `architecture` is the name with which the metadata's keys begin. As in llama.cpp, the attention
    factor of the file multiplies YaRN's usual one.
    """
    scaling = f"{architecture}.rope.scaling"
    extra = fields.real(f"{scaling}.attn_factor", 1.0)
    extra *= fields.real(f"{scaling}.yarn_attn_factor", 1.0)
    if fields.real(f"{scaling}.yarn_ext_factor", 1.0) != 1.0:
        raise UnsupportedModel(
            f"{fields.where}: {scaling}.yarn_ext_factor differs from 1, which is not supported"
        )
    usual = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
    trained = fields.whole(f"{architecture}.context_length", high=MAX_CONTEXT)
    return Rope(
        theta,
        "yarn",
        factor,
        original_context=fields.whole(
            f"{scaling}.original_context_length", trained, high=MAX_CONTEXT
        ),
        beta_fast=fields.real(f"{scaling}.yarn_beta_fast", 32.0, above=0),
        beta_slow=fields.real(f"{scaling}.yarn_beta_slow", 1.0, above=0),
        attention_factor=None if extra == 1.0 else extra * usual,
    )
