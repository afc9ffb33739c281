"""Every format, as its writer: what `test_every_format.py` holds to one contract.

To add a format, add a writer to `FORMATS`. It writes the model and its tokenizer below `folder`
and returns the path to open, with the weights that the file then holds in canonical layout, by an
implementation that shares nothing with the reader.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
from writers import gguf_vocabulary, write_gguf, write_hf, write_tokenizer_json

from jaxllama.config import ModelConfig

Weights = dict[str, np.ndarray]  # by our path, canonical
Writer = Callable[[Path, ModelConfig, Weights], tuple[Path, Weights]]


class Format(NamedTuple):
    """A writer, and how far its weights may be from those it was given."""

    write: Writer
    error: float = 0.0  # root mean square, of the largest matrix error relative to the matrix
    is_packed: bool = False  # whether matrices stay in the file's few bits


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
}
