"""Writes tiny models the way converters do: GGUF through the gguf library, Hugging Face folders.

Called by the tests of this folder. Shares no name table with the readers: GGUF names come from the
gguf library's own map, Hugging Face names are spelled here.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import save_file

from jaxllama.config import ModelConfig
from jaxllama.testing.models import byte_tokenizer_json, flatten  # noqa: F401 - for callers

HF_PARTS = {
    "embed": "model.embed_tokens",
    "final_norm": "model.norm",
    "unembed": "lm_head",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
}
# Where in a block of each kind the float16 factors lie, for kinds gguf-py cannot quantise.
FACTORS: dict[str, tuple[int, ...]] = {
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "NVFP4": (),
    "IQ1_M": (), "IQ4_NL": (0,), "IQ4_XS": (0,),
    **dict.fromkeys(("IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"), (0,)),
}  # fmt: skip
IQ1_M_FACTOR = (
    55  # the byte whose upper half is that of a float16, of which the rest lies elsewhere
)


def hf_name(path: str) -> str:
    """Hugging Face's name of one of our weights."""
    stem, _, suffix = path.rpartition(".")
    if not stem.startswith("blocks."):
        return f"{HF_PARTS[stem]}.{suffix}"
    _, block, part = stem.split(".", 2)
    return f"model.layers.{block}.{HF_PARTS[part]}.{suffix}"


def hf_tensors(params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights as Hugging Face holds them: matrices by output."""
    return {
        hf_name(path): np.ascontiguousarray(value.T)
        if value.ndim == 2 and path != "embed.weight"
        else value
        for path, value in params.items()
    }


def hf_config(config: ModelConfig) -> dict[str, object]:
    """config.json of a model without rope scaling."""
    architecture = "LlamaForCausalLM"
    if config.window:
        architecture = "MistralForCausalLM"
    elif config.qk_norm:
        architecture = "Qwen3ForCausalLM"
    elif config.qkv_bias and not config.out_bias:
        architecture = "Qwen2ForCausalLM"
    return {
        "architectures": [architecture],
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn_width,
        "max_position_embeddings": config.max_context,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope.theta,
        "tie_word_embeddings": config.tied,
        "attention_bias": config.out_bias,
        "mlp_bias": config.ffn_bias,
        "sliding_window": config.window,
    }


def write_hf(
    folder: Path,
    config: ModelConfig,
    params: dict[str, np.ndarray],
    *,
    shards: int = 1,
    extra: dict[str, object] | None = None,
) -> Path:
    """A folder as `save_pretrained` leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf_config(config) | (extra or {})))
    tensors = hf_tensors(params)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder
    weight_map = {}
    for number, names in enumerate(np.array_split(sorted(tensors), shards), 1):
        file = f"model-{number:05}-of-{shards:05}.safetensors"
        save_file({str(name): tensors[str(name)] for name in names}, folder / file)
        weight_map |= {str(name): file for name in names}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    return folder


def write_gguf(
    path: Path,
    config: ModelConfig,
    params: dict[str, np.ndarray],
    *,
    kind: str | Mapping[str, str] = "F32",
    metadata: dict[str, object] | None = None,
    factors: Sequence[float] | None = None,
    split: int = 0,
) -> dict[str, np.ndarray]:
    """A GGUF file; returns our path -> what gguf's own dequantiser makes of it, canonical.

    `kind` of all matrices, or of each by the name before ".weight"; "" is that of the rest. With
    `split`, several files of at most so many tensors.
    """
    kinds = {"": kind} if isinstance(kind, str) else kind
    architecture = "llama"
    if config.qk_norm:
        architecture = "qwen3"
    elif config.qkv_bias and not config.out_bias:
        architecture = "qwen2"
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=split)
    add_config(writer, config, architecture)
    for key, value in (metadata or {}).items():
        add_value(writer, key, value)
    factors = factors or config.rope.factors
    if factors:
        writer.add_tensor("rope_freqs.weight", np.asarray(factors, np.float32))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config.layers)
    expected = {}
    for (ours, value), (theirs, tensor) in zip(
        params.items(), hf_tensors(params).items(), strict=True
    ):
        stem, _, suffix = theirs.rpartition(".")
        heads = heads_to_pair(ours, config) if architecture == "llama" else None
        rows = pair_rope(tensor, heads) if heads else tensor
        named = kinds.get(ours.split(".")[-2], kinds[""])
        number = Type[named] if value.ndim == 2 else Type.F32
        raw = encode(rows, number)
        raw_type = None if number in (Type.F32, Type.F16) else number
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", raw, raw_dtype=raw_type)
        seen = gguf.dequantize(raw, number)
        seen = unpair(seen, heads) if heads else seen
        expected[ours] = seen.T if value.ndim == 2 and ours != "embed.weight" else seen
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def gguf_vocabulary(vocab_size: int) -> dict[str, object]:
    """The metadata of a byte vocabulary whose first three tokens are special."""
    tokens = [f"<0x{i:02X}>" if i < 256 else f"token{i}" for i in range(vocab_size)]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *tokens[3:]],
        "tokenizer.ggml.token_type": [2, 3, 3] + [1] * (vocab_size - 3),
        "tokenizer.ggml.scores": [0.0] * vocab_size,
    }


def write_tokenizer_json(folder: Path, vocab_size: int) -> None:
    """The tokenizer.json of a byte vocabulary."""
    (folder / "tokenizer.json").write_text(byte_tokenizer_json(vocab_size))


def add_config(writer: gguf.GGUFWriter, config: ModelConfig, architecture: str) -> None:
    """The keys every converter writes."""
    writer.add_block_count(config.layers)
    writer.add_context_length(config.max_context)
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length(config.ffn_width)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope.theta)
    writer.add_vocab_size(config.vocab_size)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    if architecture == "llama":
        writer.add_rope_dimension_count(config.head_dim)
    if config.window:
        writer.add_sliding_window(config.window)


def add_value(writer: gguf.GGUFWriter, key: str, value: object) -> None:
    """One more key, of the type its value has in Python."""
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


def encode(rows: np.ndarray, number: Type) -> np.ndarray:
    """Rows in a tensor type; random valid blocks where gguf-py cannot quantise."""
    if number.name not in FACTORS:
        return gguf.quantize(rows, number)
    rng = np.random.default_rng(rows.size)
    block, size = gguf.GGML_QUANT_SIZES[number]
    blocks = rng.integers(0, 256, (len(rows), rows.shape[1] // block, size), np.uint8)
    for at in FACTORS[number.name]:
        factor = rng.uniform(-0.01, 0.01, blocks.shape[:2]).astype("<f2")
        blocks[..., at : at + 2] = factor[..., None].view(np.uint8)
    if number.name == "IQ1_M":
        blocks[..., IQ1_M_FACTOR] = blocks[..., IQ1_M_FACTOR] & 15 | 0x20
    return blocks.reshape(len(rows), -1)


def heads_to_pair(path: str, config: ModelConfig) -> int | None:
    """How many heads' rows the llama converter moves in this weight, if any."""
    part = path.split(".")[-2]
    return {"q": config.heads, "k": config.kv_heads}.get(part)


def pair_rope(rows: np.ndarray, heads: int) -> np.ndarray:
    """Halves to neighbours, as the llama converter does."""
    split = rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:])
    return split.swapaxes(1, 2).reshape(rows.shape)


def unpair(rows: np.ndarray, heads: int) -> np.ndarray:
    """Neighbours back to halves, by looking up where each row went."""
    went = pair_rope(np.arange(len(rows)), heads)
    back = np.empty_like(rows)
    back[went] = rows
    return back
