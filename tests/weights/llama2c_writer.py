"""Writes tiny models as llama2.c's export does, in its three versions.

Called by the tests of this folder. Spells the order of the tensors by itself.
"""

import struct
from pathlib import Path

import numpy as np
from meta_writer import meta_tensors

from jaxllama.config import ModelConfig

ATTENTION = ("attention.wq", "attention.wk", "attention.wv", "attention.wo")
FORWARD = ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3")


def write_llama2c(
    path: Path,
    config: ModelConfig,
    params: dict[str, np.ndarray],
    *,
    version: int = 0,
    group: int = 16,
) -> Path:
    """One file; `group` is that of version 2."""
    tensors = meta_tensors(config, params)
    if version == 0:
        raw = sizes(config, vocab_sign=1 if config.tied else -1) + body_v0(config, tensors)
    else:
        raw = struct.pack("<Ii", 0x616B3432, version) + sizes(config)
        raw += struct.pack("<B", config.tied)
        raw += struct.pack("<i", group) if version == 2 else b""
        raw = raw.ljust(256, b"\0") + body(config, tensors, group if version == 2 else 0)
    path.write_bytes(raw)
    return path


def sizes(config: ModelConfig, vocab_sign: int = 1) -> bytes:
    """The seven whole numbers."""
    return struct.pack(
        "<7i",
        config.width,
        config.ffn_width,
        config.layers,
        config.heads,
        config.kv_heads,
        vocab_sign * config.vocab_size,
        config.max_context,
    )


def every_layer(config: ModelConfig, tensors: dict[str, np.ndarray], *names: str) -> list:
    """Tensors of all layers, one name after the other."""
    return [tensors[f"layers.{i}.{name}.weight"] for name in names for i in range(config.layers)]


def body_v0(config: ModelConfig, tensors: dict[str, np.ndarray]) -> bytes:
    """All tensors of version 0; its tables of cosines and sines are never read."""
    table = np.full((2, config.max_context, config.head_dim // 2), np.nan, np.float32)
    order = [
        tensors["tok_embeddings.weight"],
        *every_layer(config, tensors, "attention_norm", *ATTENTION, "ffn_norm", *FORWARD),
        tensors["norm.weight"],
        table,
    ]
    if not config.tied:
        order.append(tensors["output.weight"])
    return b"".join(each.astype("<f4").tobytes() for each in order)


def body(config: ModelConfig, tensors: dict[str, np.ndarray], group: int) -> bytes:
    """All tensors of version 1, and with a group of version 2."""
    norms = [*every_layer(config, tensors, "attention_norm", "ffn_norm"), tensors["norm.weight"]]
    matrices = [tensors["tok_embeddings.weight"]]
    matrices += every_layer(config, tensors, *ATTENTION, *FORWARD)
    if not config.tied:
        matrices.append(tensors["output.weight"])
    raw = b"".join(each.astype("<f4").tobytes() for each in norms)
    for each in matrices:
        if group:
            codes, scales = quantize(each, group)
            raw += codes.tobytes() + scales.astype("<f4").tobytes()
        else:
            raw += each.astype("<f4").tobytes()
    return raw


def quantize(matrix: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of groups along the flattened matrix."""
    groups = matrix.astype(np.float32).reshape(-1, group)
    scales = np.abs(groups).max(axis=1) / np.float32(127)
    codes = np.round(groups / np.where(scales == 0, 1, scales)[:, None]).astype(np.int8)
    return codes, scales


def write_tokenizer(path: Path, pieces: list[tuple[bytes, float]]) -> Path:
    """A tokenizer.bin."""
    raw = struct.pack("<I", max(len(piece) for piece, _ in pieces))
    for piece, score in pieces:
        raw += struct.pack("<fi", score, len(piece)) + piece
    path.write_bytes(raw)
    return path


def byte_pieces(vocab: int) -> list[tuple[bytes, float]]:
    """Pieces of a tokenizer.bin: the three special ones, the bytes, and made-up ones."""
    special = [b"<unk>", b"\n<s>\n", b"\n</s>\n"]
    pieces = [*special, *(f"<0x{byte:02X}>".encode() for byte in range(256))]
    pieces += [b" ", *(f"piece{number}".encode() for number in range(vocab))]
    return [(piece, -float(rank)) for rank, piece in enumerate(pieces[:vocab])]
