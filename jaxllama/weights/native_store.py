"""The arrays of our own checkpoints, in one OCDBT store of TensorStore, as zarr arrays.

Called by `native.py`, and by `native_bundles.py`, which stores small arrays together. TensorStore
is the layer on which Orbax keeps arrays, too; it is imported when the first store is opened. Arrays
are cut into chunks with checksums, so a part is read without the rest and damage is found. A read
is started first and waited for later, so that several arrays come from the disk at the same time.
Knows no model.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jaxllama.errors import BadHeader, CheckpointError
from jaxllama.weights.stored import Index, Shape, whole

CHUNK = 1 << 18  # bytes
COLUMN_BLOCKS = 8  # of a matrix: a mesh splits inputs, too
LEAST_COLUMNS = 256  # bytes of a row in one chunk
BLOCK = 8 << 20  # bytes of memory that arrays share
SHARING = (16 << 10, 2 << 20)  # bytes of such arrays
ALIGNED = 64  # bytes
BATCH = 16 << 20  # bytes of arrays that are written to the disk together
NO_CACHE = {"total_bytes_limit": 0}  # of the arrays: every chunk is read once
INDEX_CACHE = {"total_bytes_limit": 64 << 20}  # of the index: without it every chunk searches it
READS = {"limit": 4}  # at the same time; the memory of more threads stays with the process


class PendingArray:
    """An array, or a part of it, that is being read from the disk."""

    def __init__(self, folder: Path, name: str, array: np.ndarray, future: Any) -> None:
        self._folder, self._name = folder, name
        self._array, self._future = array, future

    def result(self) -> np.ndarray:
        """Wait for the disk and return the array; raise CheckpointError if it is damaged."""
        with read_errors(self._folder, self._name):
            self._future.result()
        return self._array


class Room:
    """Memory for arrays that are read from disk one after the other.

    Arrays of medium size are placed in shared blocks; a block is freed with the last of its arrays.
    Allocated one by one they would leave holes in the heap and cause a page fault for each page;
    blocks have large pages. Small arrays may stay as long as the model, so they are allocated
    alone.
    """

    def __init__(self) -> None:
        self._block = np.empty(0, np.uint8)

    def array(self, shape: Shape, dtype: np.dtype[Any]) -> np.ndarray:
        """Return an uninitialised array of this shape and dtype."""
        size = math.prod(shape) * dtype.itemsize
        if not SHARING[0] <= size <= SHARING[1]:
            return np.empty(shape, dtype)
        if len(self._block) < size:
            self._block = np.empty(BLOCK, np.uint8)
        taken, self._block = self._block[:size], self._block[aligned(size) :]
        return taken.view(dtype).reshape(shape)


class ArrayStore:
    """Arrays by name, in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._context: Any = None
        self._room = Room()
        self._batch: Any = None  # a transaction: one version of the index for many arrays
        self._batched = 0  # bytes
        self._opened: dict[str, Any] = {}  # by name, futures of arrays that are open or opening

    def write(self, name: str, value: np.ndarray) -> None:
        """Write one array; it is on the disk after `finish`."""
        import tensorstore  # noqa: PLC0415 - heavy

        with write_errors(self._folder):
            if self._batch is None:
                self._batch = tensorstore.Transaction()
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
                transaction=self._batch,
            ).result()
            store.write(value).result()
        self._batched += value.nbytes
        if self._batched >= BATCH:
            self.finish()

    def finish(self) -> None:
        """Write to the disk all arrays that `write` has kept in memory until now."""
        if self._batch is not None:
            with write_errors(self._folder):
                self._batch.commit_async().result()
        self._batch, self._batched = None, 0

    def open(self, names: Iterable[str]) -> None:
        """Start to open the arrays with these names, all at once; return without waiting."""
        import tensorstore  # noqa: PLC0415 - heavy

        for name in names:
            if name not in self._opened:
                spec = self._spec(name) | {"fill_missing_data_reads": False}
                context = self._shared(tensorstore)
                self._opened[name] = tensorstore.open(spec, open=True, read=True, context=context)

    def start(self, name: str, shape: Shape, dtype: str, index: Index) -> PendingArray:
        """Start to read part `index` of array `name`; `PendingArray.result` waits for its values.

        Raise BadHeader unless the whole array has this shape and dtype.
        """
        import tensorstore  # noqa: PLC0415 - heavy

        self.open([name])
        with read_errors(self._folder, name):
            store = self._opened[name].result()
            if tuple(store.shape) != shape or store.dtype.numpy_dtype.name != dtype:
                raise BadHeader(
                    f"{self._folder}: {name} is {store.dtype.numpy_dtype.name} "
                    f"{list(store.shape)}; expected {dtype} {list(shape)}"
                )
            if index == whole(shape):
                part = store  # an index costs as much as the read of a small array
            else:
                part = store[index][tensorstore.d[:].translate_to[0]]
            array = self._room.array(part.shape, part.dtype.numpy_dtype)
            future = tensorstore.array(array).write(part)
            return PendingArray(self._folder, name, array, future)

    def close(self) -> None:
        """Close the arrays and free the store's caches."""
        self._opened.clear()
        self._room = Room()
        self._context = None

    def _spec(self, name: str) -> dict[str, Any]:
        base = {
            "driver": "ocdbt",
            "base": f"file://{self._folder}/",
            "path": f"{name}/",
            "cache_pool": "cache_pool#index",
        }
        return {"driver": "zarr3", "kvstore": base}

    def _shared(self, tensorstore: Any) -> Any:
        if self._context is None:
            self._context = tensorstore.Context(
                {
                    "cache_pool": NO_CACHE,
                    "cache_pool#index": INDEX_CACHE,
                    "file_io_concurrency": READS,
                }
            )
        return self._context


@contextmanager
def write_errors(folder: Path) -> Iterator[None]:
    """Convert errors of TensorStore in the `with` block to CheckpointError.

    The error says that `folder` cannot be written.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{folder} cannot be written: {brief(error)}") from error


@contextmanager
def read_errors(folder: Path, name: str) -> Iterator[None]:
    """Convert errors of TensorStore in the `with` block to CheckpointError.

    The error says that array `name` in `folder` cannot be read.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        raise CheckpointError(
            f"{folder}: {name} cannot be read, it is damaged or incomplete: {brief(error)}"
        ) from error


def aligned(size: int) -> int:
    """Return `size`, in bytes, rounded up so that another array may follow."""
    return -(-size // ALIGNED) * ALIGNED


def chunk_shape(value: np.ndarray) -> list[int]:
    """Return the shape of the chunks into which the store cuts an array.

    A matrix is cut along both axes into chunks of about CHUNK bytes at most, as equal as possible
    because the store pads the last one. A vector is one chunk; a stack has one per matrix.
    """
    if value.ndim != 2:  # noqa: PLR2004 - a vector is one chunk, a stack one per slice
        return [1] * (value.ndim - 2) + list(value.shape[-2:])
    rows, columns = value.shape
    block = columns // COLUMN_BLOCKS
    if columns % COLUMN_BLOCKS or block * value.itemsize < LEAST_COLUMNS:
        block = columns
    parts = max(1, -(-rows * block * value.itemsize // CHUNK))
    return [max(1, -(-rows // parts)), block]


def brief(error: Exception) -> str:
    """Return the first sentence of an error of TensorStore, without its list of source lines."""
    return str(error).partition(" [")[0][:200]
