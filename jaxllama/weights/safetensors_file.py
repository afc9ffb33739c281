"""SafetensorsFile: one safetensors file whose header is checked, open for reading tensors.

Called by the Hugging Face reader. `safetensors_header.py` reads the header. Knows element types, no
model and no names of tensors.
"""

from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxllama.weights.binary import BinaryFile
from jaxllama.weights.safetensors_header import SafeTensor, read_safetensors_header
from jaxllama.weights.stored import Index, Stored, part_of, read_rows

DTYPES: dict[str, Any] = {  # others are listed by `tensors`, and cannot be read
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I32": np.dtype("<i4"),  # codes of GPTQ and AWQ
}


class SafetensorsFile:
    """An open file; `tensors` describes its tensors, `read` returns their values."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = BinaryFile(path)
        try:
            self.tensors = read_safetensors_header(self._file)
        except BaseException:
            self._file.close()
            raise

    def read(self, name: str) -> np.ndarray:
        """Read one tensor into new memory, in its own element type."""
        tensor = self.tensors[name]
        raw = self._file.read(tensor.offset, tensor.nbytes)
        return raw.view(DTYPES[tensor.dtype]).reshape(tensor.shape)

    def read_part(self, name: str, index: Index) -> Stored:
        """Read part `index` of one tensor; only the rows that it needs come from the file."""
        tensor = self.tensors[name]
        if 0 in tensor.shape or not tensor.shape:
            return part_of(self.read(name), index)
        rows = partial(self._read_rows, tensor)
        return read_rows(index, tensor.shape, tensor.nbytes, rows)

    def close(self) -> None:
        """Close the file; may be called again."""
        self._file.close()

    def _read_rows(self, tensor: SafeTensor, start: int, stop: int) -> np.ndarray:
        row = tensor.nbytes // tensor.shape[0]
        raw = self._file.read(tensor.offset + start * row, (stop - start) * row)
        return raw.view(DTYPES[tensor.dtype]).reshape(stop - start, *tensor.shape[1:])
