"""Writes Hugging Face folders quantised with GPTQ and AWQ, by the formulas of their layouts.

Called by the tests of this folder. Nothing is shared with the reader: codes are put into integers
one by one, and dequantised from the codes themselves, not from the integers.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from writers import hf_config, hf_name, write_tokenizer_json

from jaxllama.config import ModelConfig

AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)  # the output in each nibble of an integer, lowest first


@dataclass(frozen=True)
class Quantizer:
    """One way to quantise a model, and what the folder says about it."""

    method: str = "gptq"
    bits: int = 4
    group: int = 32  # -1: all inputs
    is_symmetric: bool = False
    sorts: bool = False  # act-order: groups of inputs that are not neighbours
    g_idx: bool = True  # whether GPTQ's g_idx is written; zeros if inputs are not sorted
    format: str = "gptq"
    head: bool = False
    says: str = "config"  # in config.json, "file" beside it, or "none"
    is_far: bool = False  # whether one zero is more than the largest code: GPTQ stores one less
    biases: bool = False  # zeros that the model has no use for

    @property
    def error(self) -> float:
        """A bound on the error of the weights: root mean square, relative to the weights."""
        return 0.02 if self.bits == 8 else 0.15

    def write(
        self, folder: Path, config: ModelConfig, weights: dict[str, np.ndarray]
    ) -> tuple[Path, dict[str, np.ndarray]]:
        """Write the folder; returns it, and the weights that it holds."""
        folder = folder / "model"
        folder.mkdir(parents=True)
        tensors: dict[str, np.ndarray] = {}
        held = {}
        for path, value in weights.items():
            name = hf_name(path)
            is_linear = value.ndim == 2 and path not in ("embed.weight", "unembed.weight")
            if is_linear or (self.head and path == "unembed.weight"):
                held[path] = self.matrix(name.removesuffix("weight"), value, tensors)
                continue
            is_turned = value.ndim == 2 and path != "embed.weight"
            tensors[name] = np.ascontiguousarray(value.T if is_turned else value, np.float16)
            held[path] = value.astype(np.float16).astype(np.float32)
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(hf_config(config) | self.in_config()))
        if self.says == "file":
            name = "quantize_config.json" if self.method == "gptq" else "quant_config.json"
            (folder / name).write_text(json.dumps(self.stated()))
        write_tokenizer_json(folder, config.vocab_size)
        return folder, held

    def stated(self) -> dict[str, Any]:
        """The fields of the quantisation's configuration."""
        if self.method == "awq":
            if self.says == "file":
                return {"w_bit": self.bits, "q_group_size": self.group, "version": "GEMM"}
            return {"quant_method": "awq", "bits": 4, "group_size": self.group, "version": "gemm"}
        fields = {"bits": self.bits, "group_size": self.group, "desc_act": self.sorts}
        if self.format != "gptq":
            fields["checkpoint_format"] = self.format
        return fields if self.says == "file" else fields | {"quant_method": "gptq"}

    def in_config(self) -> dict[str, Any]:
        return {"quantization_config": self.stated()} if self.says == "config" else {}

    def matrix(self, stem: str, matrix: np.ndarray, tensors: dict[str, np.ndarray]) -> np.ndarray:
        """Add the tensors of one matrix [in, out]; returns what it then holds."""
        inward, out = matrix.shape
        group = inward if self.group == -1 else self.group
        g_idx = np.arange(inward) // group
        if self.sorts:  # one order for the matrices that read the same inputs
            g_idx = g_idx[np.random.default_rng(inward).permutation(inward)]
        count = -(-inward // group)
        scales, zeros = self.scales(matrix, g_idx, count)
        most = 2**self.bits - 1
        codes = np.clip(np.round(matrix / scales[g_idx] + zeros[g_idx]), 0, most).astype(np.int64)
        offset = 1 if (self.method, self.format) == ("gptq", "gptq") else 0
        if self.method == "awq":
            tensors[f"{stem}qweight"] = columns_in_words(codes, 4, AWQ_COLUMNS)
            tensors[f"{stem}qzeros"] = columns_in_words(zeros, 4, AWQ_COLUMNS)
        else:
            plain = range(32 // self.bits)
            tensors[f"{stem}qweight"] = columns_in_words(codes.T, self.bits, plain).T.copy()
            tensors[f"{stem}qzeros"] = columns_in_words(zeros - offset, self.bits, plain)
            if self.g_idx:
                stored = g_idx if self.sorts else np.zeros_like(g_idx)
                tensors[f"{stem}g_idx"] = stored.astype(np.int32)
        tensors[f"{stem}scales"] = scales
        if self.biases:
            tensors[f"{stem}bias"] = np.zeros(out, np.float16)
        return (codes - zeros[g_idx]).astype(np.float32) * scales[g_idx].astype(np.float32)

    def scales(
        self, matrix: np.ndarray, g_idx: np.ndarray, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """A scale and a zero for every group and output."""
        most = 2**self.bits - 1
        scales = np.empty((count, matrix.shape[1]), np.float16)
        zeros = np.full(scales.shape, 2 ** (self.bits - 1), np.int64)
        for number in range(count):
            rows = matrix[g_idx == number]
            if self.is_symmetric:
                scales[number] = np.abs(rows).max(0) / (most // 2)
                continue
            low, high = np.minimum(rows.min(0), 0), np.maximum(rows.max(0), 0)
            scales[number] = (high - low) / most
            zeros[number] = np.clip(np.round(-low / scales[number]), 1, most)
        if self.is_far:
            zeros[0, 0] = most + 1  # stored as the largest code
        return scales, zeros


def columns_in_words(codes: np.ndarray, bits: int, order: Any) -> np.ndarray:
    """Codes [rows, columns] as integers [rows, columns * bits / 32], place i holding order[i]."""
    per_word = 32 // bits
    words = np.zeros((len(codes), codes.shape[1] // per_word), np.uint32)
    for word in range(words.shape[1]):
        for place, column in enumerate(order):
            each = codes[:, word * per_word + column].astype(np.uint32)
            words[:, word] |= each << np.uint32(bits * place)
    return words.view(np.int32)


def change(folder: Path, **tensors: np.ndarray | None) -> None:
    """Replace tensors of a folder by the last parts of their names; None deletes them."""
    file = folder / "model.safetensors"
    held = load_file(file)
    for name in list(held):
        for ending, value in tensors.items():
            if name.endswith(f"up_proj.{ending}"):
                held.pop(name)
                if value is not None:
                    held[name] = value
    save_file(held, file)
