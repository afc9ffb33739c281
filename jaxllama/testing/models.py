"""Tiny models of every family: configs of a few thousand weights, random weights, a tokenizer.

Called by tests and by plugin authors' checks. Knows names and shapes of weights, not the model's
maths; NumPy only, so that nothing here can depend on the code under test.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxllama.config import ModelConfig, Rope

TINY = ModelConfig(
    vocab_size=272,  # 256 bytes and the special ids of ByteTokenizer, in whole blocks of 16
    width=64,
    layers=2,
    heads=4,
    kv_heads=4,
    head_dim=16,
    ffn_width=96,
    max_context=256,
    name="tiny",
)


def tiny(**changes: Any) -> ModelConfig:
    """Return the config of a small multi-head Llama with some fields changed."""
    return dataclasses.replace(TINY, **changes)


# Original contexts are shorter than a test's prompt, so that the stretching changes the results.
_LLAMA31_ROPE = Rope(500000.0, "llama3", factor=8.0, original_context=64)
_LLAMA32_ROPE = Rope(500000.0, "llama3", factor=32.0, original_context=128)

FAMILIES: dict[str, ModelConfig] = {
    "llama1": tiny(name="llama1", norm_eps=1e-6),
    "llama2": tiny(name="llama2"),
    "llama3": tiny(name="llama3", kv_heads=2, rope=Rope(500000.0)),
    "llama31": tiny(name="llama31", kv_heads=2, rope=_LLAMA31_ROPE),
    "llama32": tiny(name="llama32", kv_heads=2, rope=_LLAMA32_ROPE, tied=True),
    "llama33": tiny(name="llama33", kv_heads=1, rope=_LLAMA31_ROPE),
    "tinyllama": tiny(name="tinyllama", width=32, heads=8, kv_heads=2, head_dim=4),
    "smollm2": tiny(name="smollm2", width=48, heads=3, kv_heads=1, rope=Rope(100000.0), tied=True),
    "mistral": tiny(name="mistral", kv_heads=2, window=12),
    "qwen2": tiny(
        name="qwen2", kv_heads=2, rope=Rope(1e6), qkv_bias=True, tied=True, norm_eps=1e-6
    ),
    "qwen3": tiny(name="qwen3", width=48, kv_heads=2, rope=Rope(1e6), qk_norm=True, norm_eps=1e-6),
    "biased": tiny(name="biased", kv_heads=2, qkv_bias=True, out_bias=True, ffn_bias=True),
    "linear": tiny(name="linear", rope=Rope(kind="linear", factor=4.0)),
    "ntk": tiny(name="ntk", rope=Rope(kind="ntk", factor=4.0)),
    "yarn": tiny(name="yarn", kv_heads=2, rope=Rope(kind="yarn", factor=4.0, original_context=128)),
    "yarn_scaled": tiny(
        name="yarn_scaled",
        rope=Rope(
            kind="yarn",
            factor=4.0,
            original_context=64,
            beta_fast=1.5,
            beta_slow=0.25,
            attention_factor=0.8,
        ),
    ),
    "factors": tiny(
        name="factors", rope=Rope(kind="factors", factors=(1.0, 1.0, 1.1, 1.5, 2.5, 4.0, 6.0, 8.0))
    ),
}


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight of a model, by dotted path; matrices are [in out]."""
    d, f, h = config.width, config.ffn_width, config.head_dim
    queries, keys = config.heads * h, config.kv_heads * h
    matrices = {
        "attention.q": (d, queries, config.qkv_bias),
        "attention.k": (d, keys, config.qkv_bias),
        "attention.v": (d, keys, config.qkv_bias),
        "attention.o": (queries, d, config.out_bias),
        "ffn.gate": (d, f, config.ffn_bias),
        "ffn.up": (d, f, config.ffn_bias),
        "ffn.down": (f, d, config.ffn_bias),
    }
    norms = {"attention_norm": d, "ffn_norm": d}
    if config.qk_norm:
        norms |= {"attention.q_norm": h, "attention.k_norm": h}
    found: dict[str, tuple[int, ...]] = {"embed.weight": (config.vocab_size, d)}
    for i in range(config.layers):
        for name, (rows, columns, biased) in matrices.items():
            found[f"blocks.{i}.{name}.weight"] = (rows, columns)
            if biased:
                found[f"blocks.{i}.{name}.bias"] = (columns,)
        found |= {f"blocks.{i}.{name}.weight": (size,) for name, size in norms.items()}
    found["final_norm.weight"] = (d,)
    if not config.tied:
        found["unembed.weight"] = (d, config.vocab_size)
    return found


def random_params(config: ModelConfig, seed: int = 0) -> dict[Any, Any]:
    """Return seeded float32 weights as a nested tree, scaled so that activations stay realistic."""
    # RandomState, not default_rng: its numbers never change, and golden files depend on them.
    random = np.random.RandomState(seed)
    tree: dict[Any, Any] = {}
    for path, shape in shapes(config).items():
        *parents, last = path.split(".")
        node = tree
        for key in parents:
            node = node.setdefault(int(key) if key.isdigit() else key, {})
        noise = random.standard_normal(shape)
        node[last] = scaled(path, noise).astype(np.float32)
    return tree


def flatten(tree: Mapping[Any, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """Return the arrays of a nested tree by dotted path, which begins with `prefix`."""
    flat: dict[str, np.ndarray] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        flat |= flatten(value, f"{path}.") if isinstance(value, Mapping) else {path: value}
    return flat


def byte_tokenizer_json(vocab_size: int) -> str:
    """Return the text of a tokenizer.json: all bytes, and made-up tokens up to `vocab_size`."""
    tokens = [f"<0x{i:02X}>" for i in range(256)]
    tokens += [f"token{i}" for i in range(256, vocab_size)]
    return json.dumps(
        {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
            "normalizer": None, "pre_tokenizer": None, "post_processor": None,
            "decoder": {"type": "ByteFallback"},
            "model": {"type": "BPE", "byte_fallback": True, "merges": [],
                      "vocab": {text: i for i, text in enumerate(tokens)}},
        }
    )  # fmt: skip


def scaled(path: str, noise: np.ndarray) -> np.ndarray:
    """Scale random numbers `noise` to a size that suits the weight with this path."""
    if "norm" in path:
        return 1 + 0.2 * noise
    if path.endswith(".bias"):
        return 0.3 * noise
    fan_in = noise.shape[1] if path.startswith("embed") else noise.shape[0]
    # Queries and keys are larger, so that attention is far from uniform and a rotation matters.
    gain = 2.0 if path.split(".")[-2] in ("q", "k", "embed", "unembed") else 1.0
    return gain * noise / math.sqrt(fan_in)
