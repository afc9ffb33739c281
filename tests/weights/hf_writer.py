"""Writes Hugging Face folders of other kinds: pytorch_model.bin, and float8 with scales.

Called by the tests of this folder. Spells file names and scales by itself.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from torch_writer import save_torch
from writers import hf_config, hf_tensors

from jaxllama.config import ModelConfig

FLOAT8 = {
    "F8_E4M3": (ml_dtypes.float8_e4m3fn, 448.0),  # the type, and its largest number
    "F8_E5M2": (ml_dtypes.float8_e5m2, 57344.0),
}
SHORT = {"float32": "F32", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}


def write_hf_torch(
    folder: Path,
    config: ModelConfig,
    params: dict[str, np.ndarray],
    *,
    shards: int = 1,
    deflate: bool = False,
) -> Path:
    """A folder as old versions of `save_pretrained` leave it; a tied head shares its storage."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf_config(config)))
    tensors = hf_tensors(params)
    if config.tied:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    form = "deflated" if deflate else "zip"
    if shards == 1:
        save_torch(folder / "pytorch_model.bin", tensors, form=form, versions=True)
        return folder
    weight_map = {}
    for number, names in enumerate(np.array_split(sorted(tensors), shards), 1):
        file = f"pytorch_model-{number:05}-of-{shards:05}.bin"
        save_torch(folder / file, {str(name): tensors[str(name)] for name in names}, form=form)
        weight_map |= {str(name): file for name in names}
    (folder / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    return folder


def rounded(
    matrix: np.ndarray, dtype: str, scaling: str, block: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """A matrix in float8 and its scales: of "tensor", each "row" or each "block"."""
    kind, largest = FLOAT8[dtype]
    rows, columns = {
        "tensor": matrix.shape, "row": (1, matrix.shape[1]), "block": block,
    }[scaling]  # fmt: skip
    high, wide = (
        -(-size // each) for size, each in zip(matrix.shape, (rows, columns), strict=True)
    )
    scales = np.zeros((high, wide), np.float32)
    values = np.zeros(matrix.shape, kind)
    for i in range(high):
        for j in range(wide):
            part = (slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns))
            scales[i, j] = np.abs(matrix[part]).max() / largest
            values[part] = (matrix[part] / scales[i, j]).astype(kind)
    return values, scales


def restored(values: np.ndarray, scales: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """What float8 values and scales stand for, element by element."""
    if scales.size == 1:
        block = values.shape
    elif scales.shape == (len(values), 1):
        block = (1, values.shape[1])
    whole = np.repeat(np.repeat(scales, block[0], 0), block[1], 1)
    return values.astype(np.float32) * whole[: values.shape[0], : values.shape[1]]


def write_float8(
    folder: Path,
    config: ModelConfig,
    params: dict[str, np.ndarray],
    *,
    dtype: str = "F8_E4M3",
    scaling: str = "block",
    block: tuple[int, int] = (24, 16),
    quantization: Mapping[str, object] | None = None,
) -> tuple[Path, dict[str, np.ndarray]]:
    """A folder whose matrices in blocks are float8; returns our path -> what they stand for."""
    folder.mkdir(parents=True, exist_ok=True)
    method = quantization or {"quant_method": "fp8", "weight_block_size": list(block)}
    described = hf_config(config) | {"quantization_config": method}
    (folder / "config.json").write_text(json.dumps(described))
    tensors, expected = {}, {}
    ending = "_scale_inv" if scaling == "block" else "_scale"
    for path, (name, matrix) in zip(params, hf_tensors(params).items(), strict=True):
        if matrix.ndim == 1 or not path.startswith("blocks."):
            tensors[name], expected[path] = matrix, params[path]
            continue
        values, scales = rounded(matrix, dtype, scaling, block)
        tensors[name] = values
        tensors[name + ending] = scales.reshape(()) if scaling == "tensor" else scales
        stem = name.removesuffix(".weight")
        tensors[f"{stem}.input_scale"] = np.ones((), np.float32)
        expected[path] = np.ascontiguousarray(restored(values, scales, block).T)
    save_safetensors(folder / "model.safetensors", tensors)
    return folder, expected


def save_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """A safetensors file, of any element type."""
    header, raw = {}, b""
    for name, tensor in tensors.items():
        held = tensor.tobytes()
        header[name] = {
            "dtype": SHORT[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [len(raw), len(raw) + len(held)],
        }
        raw += held
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw)
