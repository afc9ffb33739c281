"""LoRA adapters at random, as PEFT writes them, and weights that they were merged into."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from jaxllama.config import ModelConfig
from jaxllama.model.adapters import LAYERS, adapted_weights
from jaxllama.model.params import Tree, abstract_params, nest
from tests.support import at

MODULES = {"attention": "self_attn", "ffn": "mlp"}


def peft_name(path: str) -> str:
    """blocks.0.attention.q.weight: base_model.model.model.layers.0.self_attn.q_proj."""
    _, block, layer, name, _ = path.split(".")
    return f"base_model.model.model.layers.{block}.{MODULES[layer]}.{name}_proj"


def random_adapter(
    model: ModelConfig, *, rank: int = 4, seed: int = 0, targets: Iterable[str] = LAYERS
) -> dict[str, np.ndarray]:
    """The tensors of an adapter that changes these layers, strong enough to change the text."""
    rng, tensors, wanted = np.random.default_rng(seed), {}, set(targets)
    for path, weight in adapted_weights(model).items():
        if path.split(".")[3] not in wanted:
            continue
        a = rng.standard_normal((rank, weight.inward)) / np.sqrt(weight.inward)
        b = rng.standard_normal((weight.outward, rank)) * 0.3
        # Numbers that float16 has exactly.
        tensors[f"{peft_name(path)}.lora_A.weight"] = a.astype(np.float16).astype(np.float32)
        tensors[f"{peft_name(path)}.lora_B.weight"] = b.astype(np.float16).astype(np.float32)
    return tensors


def write_adapter(
    folder: Path, tensors: dict[str, np.ndarray], *, rank: int = 4, **settings: Any
) -> Path:
    """Write a PEFT folder; the scale of its effect is 2 unless `settings` say otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def merged(
    tree: Tree, model: ModelConfig, tensors: dict[str, np.ndarray], scale: float = 2.0
) -> Tree:
    """The weights with the adapter added to them."""
    flat = {path: np.asarray(at(tree, path), np.float32) for path in abstract_params(model)}
    for path in adapted_weights(model):
        a = tensors.get(f"{peft_name(path)}.lora_A.weight")
        if a is not None:
            b = tensors[f"{peft_name(path)}.lora_B.weight"]
            flat[path] = flat[path] + scale * (b @ a).T
    return nest(flat)
