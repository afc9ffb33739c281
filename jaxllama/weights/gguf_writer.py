"""Writes a model as a GGUF file, one tensor after the other.

Called by `export.py`. Names and orders of tensors come from the reader's own table, in reverse. A
matrix that is packed like the wanted type keeps its bits; the `gguf` library quantises others.
"""

import dataclasses
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np

from jaxllama.config import ModelConfig
from jaxllama.errors import UnsupportedModel
from jaxllama.kernels.packed import Packed
from jaxllama.model.params import abstract_params
from jaxllama.model.rope import frequencies
from jaxllama.weights.architectures import Architecture, family_of
from jaxllama.weights.base import Checkpoint, CountProgress
from jaxllama.weights.gguf import table_of
from jaxllama.weights.gguf_config import LONG_FACTORS, ROPE_FACTORS, SHORT_FACTORS
from jaxllama.weights.rules import expand, restore, stored_shapes
from jaxllama.weights.stored import Stored, unpacked

Kind = gguf.GGMLQuantizationType
BLOCK = 32
BYTES = {Kind.Q8_0: 34, Kind.Q4_0: 18, Kind.Q4_1: 20}  # of a block
PACKED_BITS = {Kind.Q8_0: 8, Kind.Q4_0: 4, Kind.Q4_1: 4}
ROUTER = "ffn_gate_inp"
MIDDLE = 8  # the code that means 0 in Q4_0
LARGEST = float(np.finfo(np.float16).max)


def write_gguf(kind: str, source: Checkpoint, path: Path, progress: CountProgress) -> None:
    """Write the model `source` to a GGUF file at `path`; `kind` is the GGUF type of its matrices.

    Vectors are written in float32. `progress` is called with the number of tensors written and that
    of all tensors.
    """
    from jaxllama.text.exchange import as_metadata  # noqa: PLC0415 - heavy

    config = source.config
    leaves = abstract_params(config)
    family = family_of(config)
    if config.experts is not None and not all(spec.sparse for spec in config.specs):
        raise UnsupportedModel(
            f"a GGUF file has no place for experts in some layers of {config.name or 'the model'} "
            f"alone; export to safetensors"
        )
    table = expand(table_of(family, config), config.layers)
    writer = gguf.GGUFWriter(path, family.gguf)
    writer.add_name(config.name)
    add_config(writer, config, family)
    factors = rotary_factors(config)
    for key, value in as_metadata(source.tokenizer_source(), config.vocab_size).items():
        add_value(writer, key, value)
    shapes = stored_shapes(table, leaves)
    kinds = {name: kind_of(name, shape, Kind[kind]) for name, shape in shapes.items()}
    for name, values in factors.items():
        writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)
    for name, shape in shapes.items():
        size = bytes_of(shape, kinds[name])
        row = (*shape[:-1], size // int(np.prod(shape[:-1], dtype=np.int64)))
        writer.add_tensor_info(name, row, np.dtype(np.uint8), size, raw_dtype=kinds[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    try:
        for values in factors.values():
            writer.write_tensor_data(values)
        made = restore(table, leaves, lambda each: source.read(each, leaves[each]))
        for done, (name, tensor) in enumerate(made, 1):
            writer.write_tensor_data(encode(name, tensor, kinds[name]))
            progress(done, len(shapes))
    finally:
        writer.close()


def add_config(writer: gguf.GGUFWriter, config: ModelConfig, family: Architecture) -> None:
    """Write the configuration `config` as metadata, with the keys that llama.cpp reads.

    `family` is the architecture, whose name the keys begin with.
    """
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_context)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.ffn_width)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    if family.paired or config.rotary_dim is not None:
        writer.add_rope_dimension_count(config.rotated)
    if config.window is not None:
        writer.add_sliding_window(config.window)
    if config.experts is not None:
        writer.add_expert_count(config.experts.count)
        writer.add_expert_used_count(config.experts.used)
        writer.add_expert_feed_forward_length(config.experts.width)
    add_scales(writer, config, family)
    add_rope(writer, config, family)


def add_scales(writer: gguf.GGUFWriter, config: ModelConfig, family: Architecture) -> None:
    """Write the multipliers and soft caps of `config` as metadata; only Gemma and Granite have any.

    Multipliers are written if models of the architecture `family` have them.
    """
    if config.attention_cap is not None:
        writer.add_attn_logit_softcapping(config.attention_cap)
    if config.logit_cap is not None:
        writer.add_final_logit_softcapping(config.logit_cap)
    if family.has_multipliers:
        writer.add_attention_scale(config.query_scale or config.head_dim**-0.5)
        writer.add_embedding_scale(config.embed_scale)
        writer.add_residual_scale(config.residual_scale)
        writer.add_logit_scale(1 / config.logit_scale)


def add_rope(writer: gguf.GGUFWriter, config: ModelConfig, family: Architecture) -> None:
    """Write the metadata of the rotary embedding, with the key prefix of the architecture `family`.

    Frequency divisors, one for each rotated pair, are left out: GGUF stores them as tensors.
    """
    rope, scaling = config.rope, f"{family.gguf}.rope.scaling"
    writer.add_rope_freq_base(rope.theta)
    if config.local_rope is not None:
        writer.add_float32(f"{family.gguf}.rope.freq_base_swa", config.local_rope.theta)
    if rope.kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope.kind))
        writer.add_rope_scaling_factor(rope.factor)
    if rope.kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope.original_context)
        writer.add_rope_scaling_yarn_beta_fast(rope.beta_fast)
        writer.add_rope_scaling_yarn_beta_slow(rope.beta_slow)
        if rope.attention_factor is not None:
            plain = dataclasses.replace(rope, attention_factor=None)
            usual = frequencies(plain, config.rotated)[1]
            writer.add_float32(f"{scaling}.attn_factor", rope.attention_factor / usual)
    if rope.scaled_factors:
        writer.add_rope_scaling_orig_ctx_len(rope.original_context)
        writer.add_rope_scaling_attn_factors(rope.attention_factor or 1.0)


def rotary_factors(config: ModelConfig) -> dict[str, np.ndarray]:
    """Return the frequency divisors, one for each rotated pair, by the names of their GGUF tensors.

    {} if the rotary embedding needs none.
    """
    rope = config.rope
    if rope.scaled_factors:
        long = rope.long_factors or rope.factors
        return {
            name: np.asarray(each, "<f4")
            for name, each in ((SHORT_FACTORS, rope.factors), (LONG_FACTORS, long))
        }
    if rope.kind not in ("llama3", "factors"):
        return {}
    pairs = np.arange(config.rotated // 2) * 2 / config.rotated
    divisors = rope.theta**-pairs / frequencies(rope, config.rotated)[0]
    return {ROPE_FACTORS: divisors.astype("<f4")}


def add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Write one metadata key of the tokenizer; the type of the Python value decides GGUF's type."""
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, str(value))


def kind_of(name: str, shape: tuple[int, ...], wanted: Any) -> Any:
    """Return the GGUF type in which to write the tensor `name` of shape `shape`.

    It is the type `wanted`, or float16 if the row length is no multiple of that type's block.
    Vectors and the small matrices that choose experts are float32, as llama.cpp writes them.
    """
    if len(shape) == 1 or ROUTER in name:
        return Kind.F32
    return Kind.F16 if wanted in BYTES and shape[-1] % BLOCK else wanted


def bytes_of(shape: tuple[int, ...], kind: Any) -> int:
    """Return the number of bytes of a tensor of this shape and GGUF type."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return int(np.prod(shape, dtype=np.int64)) // block * size


def encode(name: str, tensor: Stored, kind: Any) -> np.ndarray:
    """Return an array with the bytes of a tensor in the GGUF type `kind`.

    Raise UnsupportedModel, naming the tensor `name`, if a number is too large for float16.
    """
    if isinstance(tensor, Packed):
        blocks = blocks_of(tensor, kind)
        if blocks is not None:
            return blocks
    dense = np.ascontiguousarray(unpacked(tensor))
    if kind == Kind.F32:
        return dense.astype("<f4")
    if kind == Kind.BF16:
        return dense.astype(ml_dtypes.bfloat16).view(np.uint8)
    dense = dense.astype(np.float32)
    if kind == Kind.F16:
        return to_half(name, dense).view(np.uint8)
    return gguf.quantize(dense.reshape(-1, dense.shape[-1]), kind)


def to_half(name: str, dense: np.ndarray) -> np.ndarray:
    """Return the values in float16; raise UnsupportedModel if one is too large for it.

    The error names the tensor `name`.
    """
    most = float(np.abs(dense).max(initial=0))
    if most > LARGEST:
        raise UnsupportedModel(
            f"{name} holds {most:g}, which is too large for float16; choose F32 or BF16"
        )
    return dense.astype("<f2")


def blocks_of(packed: Packed, kind: Any) -> np.ndarray | None:
    """Return the bytes of a packed matrix in the GGUF type `kind`, one row per output.

    None if the type cannot hold its values exactly: the matrix has to be quantised again.
    """
    if PACKED_BITS.get(kind) != packed.bits or packed.is_float8:
        return None
    if packed.order is not None or packed.group % BLOCK:
        return None
    repeats = packed.group // BLOCK
    scales = np.repeat(packed.scales, repeats, axis=-1)
    minima = None if packed.minima is None else np.repeat(packed.minima, repeats, axis=-1)
    parts = factors_of(scales, minima, kind)
    if parts is None:
        return None
    count = BLOCK // 2 if packed.bits == 4 else BLOCK  # noqa: PLR2004 - two per byte
    codes = packed.codes.view(np.uint8).reshape(*scales.shape, count)
    if packed.bits == 4:  # noqa: PLR2004 - of 32 weights, byte j holds j and j + 16
        single = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*scales.shape, 2, 16)
        codes = single[..., 0, :] | single[..., 1, :] << 4
    heads = [np.ascontiguousarray(each, "<f2")[..., None].view(np.uint8) for each in parts]
    return np.concatenate([*heads, codes], axis=-1).reshape(-1, scales.shape[-1] * BYTES[kind])


def factors_of(scales: np.ndarray, minima: np.ndarray | None, kind: Any) -> list[np.ndarray] | None:
    """Return the float16 numbers that blocks begin with: the scales, and for Q4_1 also the minima.

    Return None if float16 does not hold them exactly, or if blocks of the GGUF type `kind` cannot
    have these minima. `minima` is None for a matrix without minima.
    """
    if (minima is None) != (kind == Kind.Q8_0):
        return None
    if kind == Kind.Q4_0 and not np.array_equal(minima, scales.astype(np.float32) * -MIDDLE):  # type: ignore[arg-type]
        return None
    parts = [scales] if kind != Kind.Q4_1 or minima is None else [scales, minima]
    with np.errstate(over="ignore"):
        narrow = [each.astype(np.float16) for each in parts]
    is_exact = all((one == other).all() for one, other in zip(parts, narrow, strict=True))
    return narrow if is_exact else None
