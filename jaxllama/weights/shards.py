"""Shards: finds the files of a model's weights in a folder and checks them against their index.

Called by the Hugging Face reader. Knows the names of safetensors and torch files, no model.
"""

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from jaxllama.errors import BadHeader, BadTensors, CheckpointError
from jaxllama.weights.fields import read_json, shown
from jaxllama.weights.safetensors_file import SafetensorsFile
from jaxllama.weights.stored import Index, Shape, Stored
from jaxllama.weights.torch_file import TorchFile

logger = logging.getLogger(__name__)

MAX_SHARDS = 1024
MAX_LISTED = 8  # names in one error


class TensorEntry(Protocol):
    """A tensor of a file: its element type by the name in safetensors, its shape and size."""

    @property
    def dtype(self) -> str: ...  # noqa: D102
    @property
    def shape(self) -> Shape: ...  # noqa: D102
    @property
    def nbytes(self) -> int: ...  # noqa: D102


class TensorFile(Protocol):
    """An open file of tensors."""

    @property
    def path(self) -> Path: ...  # noqa: D102
    @property
    def tensors(self) -> Mapping[str, TensorEntry]: ...  # noqa: D102
    def read(self, name: str) -> np.ndarray: ...  # noqa: D102
    def read_part(self, name: str, index: Index) -> Stored: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


@dataclass(frozen=True)
class ShardKind:
    """One kind of file with weights: the names of its files, and the function that opens one."""

    kind: str
    single: str
    pattern: str  # of files that may hold weights
    open: Callable[[Path], TensorFile]

    @property
    def index(self) -> str:
        """Return the name of the file that lists the shards."""
        return f"{self.single}.index.json"

    def files(self, folder: Path) -> list[Path]:
        """Return the files of this kind in a folder, sorted by name."""
        return sorted(folder.glob(self.pattern))


SAFETENSORS = ShardKind("safetensors", "model.safetensors", "*.safetensors", SafetensorsFile)
TORCH = ShardKind("torch", "pytorch_model.bin", "pytorch_model*.bin", TorchFile)
KINDS = (SAFETENSORS, TORCH)  # the first of which a folder has files is read

Located = Mapping[str, TensorFile]  # tensors by name, each with its file


def find_kind(folder: Path) -> ShardKind | None:
    """Return the kind of a folder's weight files: safetensors, else torch; None without any."""
    return next((kind for kind in KINDS if kind.files(folder)), None)


def read_index(folder: Path, kind: ShardKind) -> dict[str, str] | None:
    """Return the shard of every tensor, as the folder's index file lists them; None without a file.

    `kind` has the name of the index file and the suffix of shards. Raise BadHeader if a shard is no
    plain file name, so that none lies outside the folder, and CheckpointError if one is missing.
    """
    if not (folder / kind.index).exists():
        return None
    index = read_json(folder / kind.index)
    plain = re.compile(rf"[\w.-]+{re.escape(Path(kind.single).suffix)}", re.ASCII)
    shards: dict[str, str] = {}
    for tensor, name in index.inner("weight_map").values.items():
        if not isinstance(name, str) or not plain.fullmatch(name):
            raise BadHeader(
                f"{index.where}: weight_map names {shown(name)}; expected a {kind.kind} file "
                f"in the folder"
            )
        shards[tensor] = name
    files = set(shards.values())
    if not 1 <= len(files) <= MAX_SHARDS:
        raise BadHeader(
            f"{index.where}: weight_map names {len(files)} files; expected 1 to {MAX_SHARDS}"
        )
    missing = sorted(name for name in files if not (folder / name).exists())
    if missing:
        raise CheckpointError(
            f"{index.where} names {len(missing)} of {len(files)} shards that are missing: "
            f"{listed(missing)} (download them too)"
        )
    return shards


def find_shards(folder: Path, kind: ShardKind, index: Mapping[str, str] | None) -> list[Path]:
    """Return the files that hold the weights: the shards of the index, or else the single file.

    `index` maps tensors to shards; None if the folder has no index. Without it, raise
    CheckpointError unless the folder has a file of the usual name, such as model.safetensors, or
    exactly one file of this kind.
    """
    if index is not None:
        return [folder / name for name in sorted(set(index.values()))]
    if (folder / kind.single).exists():
        return [folder / kind.single]
    found = kind.files(folder)
    if len(found) != 1:
        raise CheckpointError(
            f"{folder} has {len(found)} {kind.kind} files and neither {kind.single} nor "
            f"{kind.index}; expected one of these"
        )
    return found


def join_shards(shards: Iterable[TensorFile]) -> dict[str, TensorFile]:
    """Map every tensor to its file; raise BadHeader if two hold a tensor of the same name."""
    joined: dict[str, TensorFile] = {}
    for file in shards:
        for name in file.tensors:
            if name in joined:
                raise BadHeader(
                    f"{file.path}: tensor {shown(name)} is in {joined[name].path.name} too"
                )
            joined[name] = file
    return joined


def check_index(where: Path, index: Mapping[str, str], tensors: Located) -> None:
    """Raise BadTensors that lists the tensors which are not in the shard that the index names.

    `index` maps tensors to shards, `tensors` to the files that hold them; errors name `where`.
    """
    wrong = []
    for name, shard in index.items():
        found = tensors[name].path.name if name in tensors else "no shard"
        if found != shard:
            wrong.append(f"{shown(name)} is mapped to {shard} and lies in {found}")
    if wrong:
        raise BadTensors(
            f"{where} maps {len(wrong)} of {len(index)} tensors to a shard that does not hold "
            f"them: {listed(wrong, '; ')} (download the index and all shards again)"
        )


def check_unused(folder: Path, kind: ShardKind, tensors: Located) -> None:
    """Log a warning for each file of this kind in the folder that is not read.

    `tensors` maps the tensors that are read to their files. Raise BadTensors if an unread file has
    a tensor of the same name as one of them.
    """
    used = {file.path for file in tensors.values()}
    for path in sorted(set(kind.files(folder)) - used):
        twice = sorted(tensor_names(path, kind) & tensors.keys())
        if twice:
            file = tensors[twice[0]].path.name
            raise BadTensors(
                f"{folder} holds {len(twice)} tensors twice, in {path.name} and in {file} or "
                f"beside it: {listed(twice)}; move the files that are not meant out of the folder"
            )
        logger.warning("%s is not read: it is not one of the model's shards", path)


def tensor_names(path: Path, kind: ShardKind) -> set[str]:
    """Return the names of the tensors in one file; an empty set if it cannot be read."""
    try:
        file = kind.open(path)
    except CheckpointError:
        return set()
    file.close()
    return set(file.tensors)


def listed(names: list[str], separator: str = ", ") -> str:
    """Return the first few of many names as one text, joined by `separator`, for an error."""
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return f"{separator.join(names[:MAX_LISTED])}{more}"
