"""The arrays of our own checkpoints: one zarr array each, in one OCDBT store of TensorStore.

Called by the native reader and by `convert.py`. TensorStore is the layer on which Orbax keeps
arrays, too; it is imported when the first store is opened. Arrays are cut into chunks with
checksums, so a part is read without the rest and damage is found. Knows no model.
"""

from pathlib import Path
from typing import Any

import numpy as np

from jaxllama.errors import BadHeader, CheckpointError
from jaxllama.weights.stored import Index, Shape

CHUNK = 1 << 20  # bytes
COLUMN_BLOCKS = 8  # of a matrix: a mesh splits inputs, too
LEAST_COLUMNS = 256  # bytes of a row in one chunk
CACHE = 0  # bytes: every chunk is read once


class ArrayStore:
    """Arrays by name, in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._context: Any = None

    def write(self, name: str, value: np.ndarray) -> None:
        """Write one array."""
        import tensorstore  # noqa: PLC0415 - heavy

        try:
            store = tensorstore.open(
                self._spec(name),
                create=True,
                dtype=tensorstore.dtype(value.dtype.name),
                shape=value.shape,
                chunk_layout=tensorstore.ChunkLayout(chunk_shape=chunk_shape(value)),
                codec=tensorstore.CodecSpec(
                    {"driver": "zarr3", "codecs": [{"name": "bytes"}, {"name": "crc32c"}]}
                ),
                context=self._shared(tensorstore),
            ).result()
            store.write(value).result()
        except (ValueError, OSError) as error:
            raise CheckpointError(f"{self._folder} cannot be written: {brief(error)}") from error

    def read(self, name: str, shape: Shape, dtype: str, index: Index) -> np.ndarray:
        """Read a part of an array; raise BadHeader unless it has this shape and dtype."""
        import tensorstore  # noqa: PLC0415 - heavy

        try:
            spec = self._spec(name) | {"fill_missing_data_reads": False}
            store = tensorstore.open(
                spec, open=True, read=True, context=self._shared(tensorstore)
            ).result()
            if tuple(store.shape) != shape or store.dtype.numpy_dtype.name != dtype:
                raise BadHeader(
                    f"{self._folder}: {name} is {store.dtype.numpy_dtype.name} "
                    f"{list(store.shape)}; expected {dtype} {list(shape)}"
                )
            return np.asarray(store[index].read().result())
        except (ValueError, OSError) as error:
            raise CheckpointError(
                f"{self._folder}: {name} cannot be read, it is damaged or incomplete: "
                f"{brief(error)}"
            ) from error

    def close(self) -> None:
        """Forget what is cached of the store."""
        self._context = None

    def _spec(self, name: str) -> dict[str, Any]:
        base = {"driver": "ocdbt", "base": f"file://{self._folder}/", "path": f"{name}/"}
        return {"driver": "zarr3", "kvstore": base}

    def _shared(self, tensorstore: Any) -> Any:
        if self._context is None:
            self._context = tensorstore.Context({"cache_pool": {"total_bytes_limit": CACHE}})
        return self._context


def chunk_shape(value: np.ndarray) -> list[int]:
    """Return a shape of about CHUNK bytes that cuts a matrix along both axes."""
    if value.ndim != 2:  # noqa: PLR2004 - a vector is one chunk, a stack one per slice
        return [1] * (value.ndim - 2) + list(value.shape[-2:])
    rows, columns = value.shape
    block = columns // COLUMN_BLOCKS
    if columns % COLUMN_BLOCKS or block * value.itemsize < LEAST_COLUMNS:
        block = columns
    return [max(1, min(rows, CHUNK // (block * value.itemsize))), block]


def brief(error: Exception) -> str:
    """Return the first sentence of TensorStore's message, which names sources at length."""
    return str(error).partition(" [")[0][:200]
