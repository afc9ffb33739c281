"""Every format, as its writer: what `test_every_format.py` holds to one contract.

To add a format, add a writer to `FORMATS`. It writes the model and its tokenizer below `folder`
and returns the path to open, with the weights that the file then holds in canonical layout, by an
implementation that shares nothing with the reader.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import llama2c_reference
import ml_dtypes
import numpy as np
from hf_writer import write_float8, write_hf_torch
from llama2c_writer import byte_pieces, write_llama2c, write_tokenizer
from meta_writer import write_meta, write_sentencepiece
from quantized_writer import Quantizer
from writers import gguf_vocabulary, write_gguf, write_hf, write_tokenizer_json

from jaxllama.config import ModelConfig

Weights = dict[str, np.ndarray]  # by our path, canonical
Writer = Callable[[Path, ModelConfig, Weights], tuple[Path, Weights]]


class Format(NamedTuple):
    """A writer, and how far its weights may be from those it was given."""

    write: Writer
    error: float = 0.0  # root mean square, of the largest matrix error relative to the matrix
    is_packed: bool = False  # whether matrices stay in the file's few bits
    dense: tuple[str, ...] = ()  # matrices that do not


def gguf_of(kind: str) -> Writer:
    """A GGUF file whose matrices have this type."""

    def write(folder: Path, config: ModelConfig, weights: Weights) -> tuple[Path, Weights]:
        path = folder / "model.gguf"
        metadata = gguf_vocabulary(config.vocab_size)
        return path, write_gguf(path, config, weights, kind=kind, metadata=metadata)

    return write


def hugging_face(dtype: str, shards: int = 1) -> Writer:
    """A Hugging Face folder in one dtype."""

    def write(folder: Path, config: ModelConfig, weights: Weights) -> tuple[Path, Weights]:
        kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
        held = {path: value.astype(kind) for path, value in weights.items()}
        write_hf(folder / "model", config, held, shards=shards)
        write_tokenizer_json(folder / "model", config.vocab_size)
        return folder / "model", {path: value.astype(np.float32) for path, value in held.items()}

    return write


def hugging_face_torch(dtype: str, shards: int = 1) -> Writer:
    """A Hugging Face folder with pytorch_model.bin, in one file or in shards."""

    def write(folder: Path, config: ModelConfig, weights: Weights) -> tuple[Path, Weights]:
        kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
        held = {path: value.astype(kind) for path, value in weights.items()}
        write_hf_torch(folder / "model", config, held, shards=shards)
        write_tokenizer_json(folder / "model", config.vocab_size)
        return folder / "model", {path: value.astype(np.float32) for path, value in held.items()}

    return write


def hugging_face_float8(dtype: str, scaling: str) -> Writer:
    """A Hugging Face folder whose blocks' matrices are float8 with scales."""

    def write(folder: Path, config: ModelConfig, weights: Weights) -> tuple[Path, Weights]:
        write_tokenizer_json(folder, config.vocab_size)
        return write_float8(folder, config, weights, dtype=dtype, scaling=scaling)

    return write


def meta(dtype: str, shards: int = 1, *, embedding_axis: int = 1) -> Writer:
    """A folder as Meta publishes it."""

    def write(folder: Path, config: ModelConfig, weights: Weights) -> tuple[Path, Weights]:
        kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
        write_meta(
            folder / "model",
            config,
            weights,
            shards=shards,
            dtype=dtype,
            embedding_axis=embedding_axis,
        )
        write_sentencepiece(folder / "model/tokenizer.model", config.vocab_size)
        held = {path: value.astype(kind).astype(np.float32) for path, value in weights.items()}
        return folder / "model", held

    return write


def llama2c(version: int) -> Writer:
    """A llama2.c file; what version 2 holds is what the reference reads from it."""

    def write(folder: Path, config: ModelConfig, weights: Weights) -> tuple[Path, Weights]:
        write_tokenizer(folder / "tokenizer.bin", byte_pieces(config.vocab_size))
        path = write_llama2c(folder / "model.bin", config, weights, version=version)
        return path, llama2c_reference.weights(path)

    return write


DENSE = ("embed.weight", "unembed.weight")
QUANTIZERS = {
    "GPTQ": Quantizer(is_symmetric=True),
    "GPTQ 8-bit": Quantizer(bits=8, biases=True),
    "GPTQ 8-bit symmetric": Quantizer(bits=8, group=16, is_symmetric=True, says="file"),
    "GPTQ sorted": Quantizer(sorts=True),
    "GPTQ 8-bit sorted": Quantizer(bits=8, sorts=True, says="none"),
    "GPTQ of one group": Quantizer(bits=8, group=-1, g_idx=False, says="none"),
    "GPTQ v2": Quantizer(format="gptq_v2", says="file", head=True),
    "AWQ": Quantizer("awq"),
    "AWQ of another writer": Quantizer("awq", group=16, says="file"),
    "AWQ without a word": Quantizer("awq", says="none"),
}
FORMATS: dict[str, Format] = {
    "GGUF F32": Format(gguf_of("F32")),
    "GGUF F16": Format(gguf_of("F16"), 3e-4),
    "GGUF BF16": Format(gguf_of("BF16"), 3e-3),
    "GGUF Q8_0": Format(gguf_of("Q8_0"), 0.006, is_packed=True),
    "GGUF Q5_1": Format(gguf_of("Q5_1"), 0.04, is_packed=True),
    "GGUF Q4_0": Format(gguf_of("Q4_0"), 0.1, is_packed=True),
    "Hugging Face float32": Format(hugging_face("float32")),
    "Hugging Face bfloat16": Format(hugging_face("bfloat16"), 3e-3),
    "Hugging Face in shards": Format(hugging_face("float16", shards=3), 3e-4),
    "Hugging Face torch": Format(hugging_face_torch("float32")),
    "Hugging Face torch in shards": Format(hugging_face_torch("bfloat16", shards=2), 3e-3),
    "Hugging Face float8 in blocks": Format(
        hugging_face_float8("F8_E4M3", "block"), 0.04, True, DENSE
    ),
    "Hugging Face float8 by rows": Format(hugging_face_float8("F8_E5M2", "row"), 0.08, True, DENSE),
    "Hugging Face float8 by matrices": Format(
        hugging_face_float8("F8_E4M3", "tensor"), 0.04, True, DENSE
    ),
    "Meta": Format(meta("bfloat16"), 3e-3),
    "Meta in shards": Format(meta("float16", shards=2), 3e-4),
    "Meta in shards, embedding by rows": Format(meta("float32", shards=4, embedding_axis=0)),
    "llama2.c version 0": Format(llama2c(0)),
    "llama2.c version 1": Format(llama2c(1)),
    "llama2.c version 2": Format(llama2c(2), 0.006, is_packed=True),
    **{
        name: Format(each.write, each.error, True, DENSE[: 1 if each.head else 2])
        for name, each in QUANTIZERS.items()
    },
}
