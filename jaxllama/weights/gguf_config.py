"""Converts the metadata of a GGUF file to a ModelConfig.

Called by the GGUF reader. An absent key means its default in llama.cpp. Knows the tensors that
show the model's shape, but not where weights go in the parameter tree.
"""

import math

import numpy as np

from jaxllama.config import ModelConfig, Rope
from jaxllama.errors import BadHeader, UnsupportedModel
from jaxllama.weights.binary import BinaryFile
from jaxllama.weights.fields import (
    MAX_CONTEXT,
    MAX_HEADS,
    REQUIRED,
    CheckedFields,
    read_layers,
    shown,
)
from jaxllama.weights.gguf_header import GgufHeader

# The converter of `llama` files puts rotated pairs side by side; other converters do not.
PAIRED = ("llama",)
ARCHITECTURES = ("llama", "qwen2", "qwen3")  # Mistral is saved as llama
ROPE_FACTORS = "rope_freqs.weight"  # read with the configuration, no weight of the model


def read_config(header: GgufHeader, file: BinaryFile) -> ModelConfig:
    """Return the model's shape from metadata, checked against the tensors in the file."""
    where = file.path.name
    fields = CheckedFields(header.metadata, where)
    architecture = check_kind(fields)
    tensors = header.tensors
    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:  # noqa: PLR2004
        raise BadHeader(f"{where}: token_embd.weight is missing or no matrix")
    layers = read_layers(fields, f"{architecture}.block_count", len(tensors))
    heads = head_count(fields, f"{architecture}.attention.head_count")
    kv_heads = head_count(fields, f"{architecture}.attention.head_count_kv", heads)
    width = fields.whole(f"{architecture}.embedding_length")
    head_dim = read_head_dim(fields, architecture, width // heads)
    window = f"{architecture}.attention.sliding_window"
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
            rope=read_rope(fields, architecture, read_factors(header, file, head_dim)),
            tied="output.weight" not in tensors,
            qkv_bias="blk.0.attn_q.bias" in tensors,
            out_bias="blk.0.attn_output.bias" in tensors,
            ffn_bias="blk.0.ffn_up.bias" in tensors,
            qk_norm=architecture not in PAIRED and "blk.0.attn_q_norm.weight" in tensors,
            window=fields.whole(window, high=MAX_CONTEXT) if fields.has(window) else None,
            name=fields.text("general.name", file.path.stem),
        )
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{where}: {error}") from error


def check_kind(fields: CheckedFields) -> str:
    """Return the architecture.

    Raise UnsupportedModel unless the file is a supported whole model.
    """
    architecture = fields.text("general.architecture")
    if architecture not in ARCHITECTURES:
        raise UnsupportedModel(
            f"{fields.where}: architecture {shown(architecture)} is not supported; expected one "
            f"of {', '.join(ARCHITECTURES)}"
        )
    kind = fields.text("general.type", "model")
    if kind != "model":
        raise UnsupportedModel(f"{fields.where}: general.type is {shown(kind)}; expected 'model'")
    if fields.whole("split.count", 1, low=0) > 1:
        raise UnsupportedModel(
            f"{fields.where}: is one part of a split model; merge the parts with "
            f"llama-gguf-split --merge"
        )
    if fields.whole(f"{architecture}.expert_count", 0, low=0) > 0:
        raise UnsupportedModel(f"{fields.where}: is a mixture of experts, which is not supported")
    return architecture


def head_count(fields: CheckedFields, key: str, default: int = REQUIRED) -> int:
    """Return a head count: a number, or an array with the same number for every layer."""
    value = fields.values.get(key)
    if not isinstance(value, list):
        return fields.whole(key, default, high=MAX_HEADS)
    if not value or any(item != value[0] for item in value):
        raise UnsupportedModel(
            f"{fields.where}: {key} differs between blocks, which is not supported"
        )
    return CheckedFields({key: value[0]}, fields.where).whole(key, high=MAX_HEADS)


def read_head_dim(fields: CheckedFields, architecture: str, default: int) -> int:
    """Return the size of a head; keys, values and the rotated part must agree on it."""
    key = f"{architecture}.attention.key_length"
    head_dim = fields.whole(key, default, high=MAX_HEADS)
    for other in ("attention.value_length", "rope.dimension_count"):
        size = fields.whole(f"{architecture}.{other}", head_dim)
        if size != head_dim:
            raise UnsupportedModel(
                f"{fields.where}: {architecture}.{other} is {size} and the head size "
                f"{head_dim}; expected them equal"
            )
    return head_dim


def read_vocab_size(fields: CheckedFields, header: GgufHeader, architecture: str) -> int:
    """Return the rows of the embedding; every key that counts tokens must agree with it."""
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


def read_factors(header: GgufHeader, file: BinaryFile, head_dim: int) -> tuple[float, ...]:
    """Return the divisor of each rotated pair (Llama 3.1); () if the file has none."""
    entry = header.tensors.get(ROPE_FACTORS)
    if entry is None:
        return ()
    if entry.kind.name != "F32" or entry.shape != (head_dim // 2,):
        raise BadHeader(
            f"{file.path.name}: {ROPE_FACTORS} is {entry.kind.name} {list(entry.shape)}; "
            f"expected F32 [{head_dim // 2}]"
        )
    factors = file.read(entry.offset, entry.nbytes).view("<f4")
    if not (np.isfinite(factors) & (factors > 0)).all():
        raise BadHeader(f"{file.path.name}: {ROPE_FACTORS} holds values that are not positive")
    return tuple(factors.tolist())


def read_rope(fields: CheckedFields, architecture: str, factors: tuple[float, ...]) -> Rope:
    """Return the rotary embedding from the `rope.*` keys."""
    prefix = f"{architecture}.rope"
    theta = fields.real(f"{prefix}.freq_base", 10000.0, above=1)
    factor = fields.real(f"{prefix}.scaling.factor", fields.real(f"{prefix}.scale_linear", 0.0))
    factor = factor or 1.0  # 0 and absent both mean unscaled
    kind = fields.text(f"{prefix}.scaling.type", "linear")
    if kind == "yarn" and not factors:
        return read_yarn(fields, architecture, theta, factor)
    if kind not in ("none", "linear"):
        raise UnsupportedModel(
            f"{fields.where}: {prefix}.scaling.type is {shown(kind)}"
            f"{' with rope_freqs' if factors else ''}; expected none, linear or yarn"
        )
    factor = 1.0 if kind == "none" else factor
    if factors:
        return Rope(theta, "factors", factors=tuple(factor * each for each in factors))
    return Rope(theta) if factor == 1.0 else Rope(theta, "linear", factor)


def read_yarn(fields: CheckedFields, architecture: str, theta: float, factor: float) -> Rope:
    """Return yarn as llama.cpp applies it: its attention factor multiplies the usual one."""
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
