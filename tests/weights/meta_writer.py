"""Writes tiny models as Meta does: consolidated.NN.pth and params.json.

Called by the tests of this folder. Spells Meta's names by itself.
"""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
from torch_writer import save_torch
from writers import heads_to_pair, hf_tensors, pair_rope

from jaxllama.config import ModelConfig

PARTS = {
    "embed": "tok_embeddings",
    "final_norm": "norm",
    "unembed": "output",
    "attention_norm": "attention_norm",
    "ffn_norm": "ffn_norm",
    "attention.q": "attention.wq",
    "attention.k": "attention.wk",
    "attention.v": "attention.wv",
    "attention.o": "attention.wo",
    "ffn.gate": "feed_forward.w1",
    "ffn.down": "feed_forward.w2",
    "ffn.up": "feed_forward.w3",
}
BY_COLUMNS = ("wo.weight", "w2.weight")


def meta_name(path: str) -> str:
    """Meta's name of one of our weights."""
    stem = path.removesuffix(".weight")
    if not stem.startswith("blocks."):
        return f"{PARTS[stem]}.weight"
    _, block, part = stem.split(".", 2)
    return f"layers.{block}.{PARTS[part]}.weight"


def meta_tensors(config: ModelConfig, params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights as Meta holds them: by output, rotated numbers side by side."""
    found = {}
    for path, tensor in zip(params, hf_tensors(params).values(), strict=True):
        heads = heads_to_pair(path, config)
        found[meta_name(path)] = pair_rope(tensor, heads) if heads else tensor
    return found


def meta_params(config: ModelConfig) -> dict[str, object]:
    """params.json as Meta writes it; the feed-forward has the width that its rule gives."""
    found: dict[str, object] = {
        "dim": config.width,
        "n_layers": config.layers,
        "n_heads": config.heads,
        "n_kv_heads": config.kv_heads,
        "vocab_size": config.vocab_size,
        "multiple_of": 8,
        "ffn_dim_multiplier": (config.ffn_width - 0.5) / (8 * config.width // 3),
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope.theta,
    }
    if config.rope.kind == "llama3":
        found["use_scaled_rope"] = True
    return found


def cut(
    tensors: dict[str, np.ndarray], shard: int, shards: int, embedding_axis: int = 1
) -> dict[str, np.ndarray]:
    """The part of every tensor that one shard holds."""
    found = {}
    for name, tensor in tensors.items():
        if tensor.ndim == 1:
            found[name] = tensor
            continue
        axis = 1 if name.endswith(BY_COLUMNS) else 0
        axis = embedding_axis if name.startswith("tok_embeddings") else axis
        found[name] = np.ascontiguousarray(np.split(tensor, shards, axis)[shard])
    return found


def write_meta(
    folder: Path,
    config: ModelConfig,
    params: dict[str, np.ndarray],
    *,
    shards: int = 1,
    dtype: str = "float32",
    form: str = "zip",
    embedding_axis: int = 1,
    extra: dict[str, object] | None = None,
) -> Path:
    """A folder as Meta publishes it; `form` is that of `save_torch`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(meta_params(config) | (extra or {})))
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    tensors = {name: value.astype(kind) for name, value in meta_tensors(config, params).items()}
    for shard in range(shards):
        held = cut(tensors, shard, shards, embedding_axis)
        held["rope.freqs"] = np.ones(config.head_dim // 2, kind)
        name = f"consolidated.{shard:02}"
        save_torch(folder / (name if form == "folder" else f"{name}.pth"), held, form=form)
    return folder


def field(number: int, raw: bytes) -> bytes:
    """A field of a protocol buffer message that holds bytes."""
    length = bytes([len(raw)]) if len(raw) < 128 else bytes([len(raw) % 128 + 128, len(raw) // 128])
    return bytes([number << 3 | 2]) + length + raw


def write_sentencepiece(path: Path, vocab: int) -> Path:
    """A tokenizer.model: BPE with the three special pieces, the bytes, and made-up ones."""
    pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3)]
    pieces += [(f"<0x{byte:02X}>", 6) for byte in range(256)]
    pieces += [("\u2581", 1), *((f"piece{number}", 1) for number in range(vocab))]
    raw = b""
    for rank, (text, kind) in enumerate(pieces[:vocab]):
        score = b"\x15" + np.float32(-rank).tobytes()
        raw += field(1, field(1, text.encode()) + score + bytes([0x18, kind]))
    bpe_with_bytes = bytes([0x18, 2, 0x98, 2, 1])  # fields 3 and 35
    keeps_spaces = bytes([0x20, 0])  # as Meta's: runs of spaces stay
    path.write_bytes(raw + field(2, bpe_with_bytes) + field(3, keeps_spaces))
    return path
