"""TorchFile: the tensors of one torch checkpoint, a zip file or the folder it unpacks to.

Called by the Meta and Hugging Face readers. The pickle names tensors, `torch_pickle.py` reads it;
this file finds the storages and checks their sizes. Knows no model and no names of tensors.
"""

import re
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy.lib.stride_tricks import as_strided

from jaxllama.errors import BadHeader, UnsupportedModel
from jaxllama.weights.binary import BinaryFile
from jaxllama.weights.fields import shown
from jaxllama.weights.stored import Index, Stored, part_of, read_rows
from jaxllama.weights.torch_pickle import PickledDict, TorchTensor, described, read_torch_pickle
from jaxllama.weights.zip_archive import MAGIC, STORED, ZipArchive

PICKLE = "data.pkl"
BYTE_ORDER = "byteorder"
MAX_PICKLE = 16 << 20  # bytes; the largest Llama's has 200 kB
MAX_ORDER = 16  # bytes of the file that names the byte order
STORAGE_KEY = re.compile(r"[0-9]{1,9}", re.ASCII)  # torch numbers them
LEGACY = bytes.fromhex("80028a0a6cfc9c46f920")  # the pickled magic number of torch before 1.6
TAR_MAGIC, TAR_OFFSET = b"ustar", 257  # of torch before 0.2


class TorchParts(ABC):
    """The parts of a checkpoint by their path below its root: `data.pkl`, `data/0` and others."""

    where: str

    @abstractmethod
    def size(self, part: str) -> int | None:
        """Return the size in bytes of a part; None if it does not exist.

        `part` is the path of a file within the checkpoint, such as `data.pkl` or `data/0`.
        """

    @abstractmethod
    def read(self, part: str, start: int, count: int) -> UInt8[np.ndarray, " B"]:
        """Read `count` bytes of the part `part`, from its byte `start` on, into new memory.

        `part` is the path of a file within the checkpoint, such as `data/0`.
        """

    def is_compressed(self, part: str) -> bool:
        """Say whether `part`, a file within the checkpoint, is compressed.

        If it is, reading a few bytes takes as long as reading all.
        """
        del part
        return False

    @abstractmethod
    def close(self) -> None:
        """Close the files; may be called again."""


class ZippedParts(TorchParts):
    """The parts in a zip file, below the only folder at its top."""

    def __init__(self, path: Path) -> None:
        self.where = path.name
        self._file = BinaryFile(path)
        try:
            check_form(self._file)
            self._archive = ZipArchive(self._file)
            self._root = self._find_root()
        except BaseException:
            self._file.close()
            raise

    def size(self, part: str) -> int | None:
        """Return the unpacked size in bytes of the zip file's entry `part`; None without one."""
        entry = self._archive.entries.get(self._root + part)
        return None if entry is None else entry.size

    def read(self, part: str, start: int, count: int) -> UInt8[np.ndarray, " B"]:
        """Read `count` bytes of the unpacked entry `part`, from its byte `start` on."""
        return self._archive.read(self._root + part, start, count)

    def is_compressed(self, part: str) -> bool:
        """Say whether the entry `part` is compressed."""
        return self._archive.entries[self._root + part].method != STORED

    def close(self) -> None:
        """Close the zip file."""
        self._file.close()

    def _find_root(self) -> str:
        roots = [
            name.removesuffix(PICKLE)
            for name in self._archive.entries
            if name == PICKLE or name.endswith(f"/{PICKLE}")
        ]
        if len(roots) != 1:
            raise BadHeader(f"{self.where}: holds {len(roots)} files {PICKLE}; expected one")
        return roots[0]


class UnpackedParts(TorchParts):
    """The parts in a folder. Its files are opened for each read: there are hundreds."""

    def __init__(self, folder: Path) -> None:
        self.where = folder.name
        self._folder = folder

    def size(self, part: str) -> int | None:
        """Return the size in bytes of the file `part` in the folder; None if it does not exist."""
        if not (self._folder / part).exists():
            return None
        file = BinaryFile(self._folder / part)
        file.close()
        return file.size

    def read(self, part: str, start: int, count: int) -> UInt8[np.ndarray, " B"]:
        """Read `count` bytes of the file `part`, from its byte `start` on."""
        file = BinaryFile(self._folder / part)
        try:
            return file.read(start, count)
        finally:
            file.close()

    def close(self) -> None:
        """Do nothing: no file is open."""


class TorchFile:
    """An open checkpoint; `tensors` describes them, `read` returns their values."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._parts: TorchParts = UnpackedParts(path) if path.is_dir() else ZippedParts(path)
        try:
            self._check_byte_order()
            self.tensors = self._read_tensors()
            self._check_storages()
        except BaseException:
            self.close()
            raise

    def read(self, name: str) -> np.ndarray:
        """Read one tensor into new memory, in its own element type."""
        return self._read_view(self.tensors[name])

    def read_part(self, name: str, index: Index) -> Stored:
        """Read part `index` of one tensor; only the rows that it needs come from the file."""
        tensor = self.tensors[name]
        is_whole_only = self._parts.is_compressed(f"data/{tensor.storage.key}")
        if is_whole_only or not tensor.shape or 0 in tensor.shape:
            return part_of(self.read(name), index)
        return read_rows(
            index,
            tensor.shape,
            tensor.nbytes,
            lambda *ends: self._read_view(rows_of(tensor, *ends)),
        )

    def close(self) -> None:
        """Close the files; may be called again."""
        self._parts.close()

    def _read_view(self, tensor: TorchTensor) -> np.ndarray:
        kind = tensor.storage.kind.dtype
        raw = self._parts.read(
            f"data/{tensor.storage.key}",
            tensor.offset * kind.itemsize,
            tensor.span * kind.itemsize,
        )
        return strided(raw.view(kind), tensor)

    def _check_byte_order(self) -> None:
        size = self._parts.size(BYTE_ORDER)
        if size is None:
            return
        order = self._parts.read(BYTE_ORDER, 0, min(size, MAX_ORDER)).tobytes()
        if order.strip() != b"little":
            raise UnsupportedModel(
                f"{self._parts.where}: the byte order is {shown(str(order))}; expected little"
            )

    def _read_tensors(self) -> dict[str, TorchTensor]:
        """Return every tensor by name; raise BadHeader if the checkpoint holds anything else."""
        where = f"{self._parts.where}: {PICKLE}"
        size = self._parts.size(PICKLE)
        if size is None or size > MAX_PICKLE:
            raise BadHeader(f"{where} has {size} bytes; expected at most {MAX_PICKLE}")
        held = read_torch_pickle(self._parts.read(PICKLE, 0, size).tobytes(), where).entries
        tensors: dict[str, TorchTensor] = {}
        for name, value in held.items():
            if not isinstance(value, TorchTensor):
                more = " (is this a training checkpoint?)" if isinstance(value, PickledDict) else ""
                raise BadHeader(
                    f"{where}: {shown(name)} is {described(value)}; expected a tensor{more}"
                )
            tensors[name] = value
        return tensors

    def _check_storages(self) -> None:
        """Raise BadHeader unless every storage exists and has the size that the pickle states."""
        seen: dict[str, object] = {}
        for name, tensor in self.tensors.items():
            storage = tensor.storage
            if seen.get(storage.key) == storage:
                continue
            label = f"{self._parts.where}: storage {shown(storage.key)} of tensor {shown(name)}"
            if storage.key in seen:
                raise BadHeader(f"{label} is described twice, differently")
            if not STORAGE_KEY.fullmatch(storage.key):
                raise BadHeader(f"{label} is no number")
            size = self._parts.size(f"data/{storage.key}")
            if size != storage.nbytes:
                raise BadHeader(
                    f"{label} has {'no' if size is None else size} bytes; the pickle states "
                    f"{shown(storage.nbytes)}"
                )
            seen[storage.key] = storage


def rows_of(tensor: TorchTensor, start: int, stop: int) -> TorchTensor:
    """Return the description of the rows from `start` to `stop` of a tensor; nothing is read."""
    return replace(
        tensor,
        offset=tensor.offset + start * tensor.strides[0],
        shape=(stop - start, *tensor.shape[1:]),
    )


def strided(elements: np.ndarray, tensor: TorchTensor) -> np.ndarray:
    """Return a tensor as a contiguous array, with the shape and the strides that `tensor` states.

    `elements` are the stored numbers from the tensor's first element to its last one.
    """
    if not elements.size:
        return np.zeros(tensor.shape, elements.dtype)
    steps = [stride * elements.itemsize for stride in tensor.strides]
    view: Any = as_strided(elements, tensor.shape, steps, writeable=False)
    if view.flags.c_contiguous and view.size == elements.size:
        return elements.reshape(tensor.shape)
    return np.ascontiguousarray(view)


def check_form(file: BinaryFile) -> None:
    """Raise UnsupportedModel for a file of torch before 1.6, BadHeader for another non-zip file."""
    head = file.read(0, min(file.size, TAR_OFFSET + len(TAR_MAGIC))).tobytes()
    if head.startswith(MAGIC):
        return
    if head.startswith(LEGACY) or head[TAR_OFFSET:] == TAR_MAGIC:
        raise UnsupportedModel(
            f"{file.path}: is in the form of torch before 1.6, which is no zip file and is not "
            f"supported; save it again with a newer torch, or as safetensors"
        )
    raise BadHeader(f"{file.path}: is no torch checkpoint: it does not begin like a zip file")
