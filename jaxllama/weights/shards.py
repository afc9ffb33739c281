"""Shards: finds the safetensors files of a model in a folder and checks them against its index.

Called by the Hugging Face reader. Knows names of files and tensors, no model.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from jaxllama.errors import BadHeader, BadTensors, CheckpointError
from jaxllama.weights.binary import BinaryFile
from jaxllama.weights.fields import read_json, shown
from jaxllama.weights.safetensors_header import SafeTensor, read_safetensors_header

logger = logging.getLogger(__name__)

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_SHARDS = 1024
MAX_LISTED = 8  # names in one error
PLAIN_NAME = re.compile(r"[\w.-]+\.safetensors", re.ASCII)

Located = Mapping[str, tuple[BinaryFile, SafeTensor]]  # tensors by name, each with its file


def read_index(folder: Path) -> dict[str, str] | None:
    """Map every tensor to its shard by the folder's index; None without an index.

    Every shard must be a plain file name, so that none lies outside the folder.
    """
    if not (folder / INDEX).exists():
        return None
    index = read_json(folder / INDEX)
    shards: dict[str, str] = {}
    for tensor, name in index.inner("weight_map").values.items():
        if not isinstance(name, str) or not PLAIN_NAME.fullmatch(name):
            raise BadHeader(
                f"{index.where}: weight_map names {shown(name)}; expected a safetensors file "
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


def find_shards(folder: Path, index: Mapping[str, str] | None) -> list[Path]:
    """Return the files that hold the weights: the shards of the index, or the only file."""
    if index is not None:
        return [folder / name for name in sorted(set(index.values()))]
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    found = sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        raise CheckpointError(
            f"{folder} has {len(found)} safetensors files and neither {SINGLE} nor {INDEX}; "
            f"expected one of these"
        )
    return found


def join_shards(shards: Iterable[BinaryFile]) -> dict[str, tuple[BinaryFile, SafeTensor]]:
    """Read the header of every shard; raise BadHeader if two hold a tensor of the same name."""
    joined: dict[str, tuple[BinaryFile, SafeTensor]] = {}
    for file in shards:
        for name, tensor in read_safetensors_header(file).items():
            if name in joined:
                raise BadHeader(
                    f"{file.path}: tensor {shown(name)} is in {joined[name][0].path.name} too"
                )
            joined[name] = (file, tensor)
    return joined


def check_index(where: Path, index: Mapping[str, str], tensors: Located) -> None:
    """Raise BadTensors that lists the tensors which are not in the shard that the index names."""
    wrong = []
    for name, shard in index.items():
        found = tensors[name][0].path.name if name in tensors else "no shard"
        if found != shard:
            wrong.append(f"{shown(name)} is mapped to {shard} and lies in {found}")
    if wrong:
        raise BadTensors(
            f"{where} maps {len(wrong)} of {len(index)} tensors to a shard that does not hold "
            f"them: {listed(wrong, '; ')} (download the index and all shards again)"
        )


def check_unused(folder: Path, tensors: Located) -> None:
    """Warn about safetensors files that are not read; raise if one repeats a tensor."""
    used = {file.path for file, _ in tensors.values()}
    for path in sorted(set(folder.glob("*.safetensors")) - used):
        twice = sorted(tensor_names(path) & tensors.keys())
        if twice:
            file = tensors[twice[0]][0].path.name
            raise BadTensors(
                f"{folder} holds {len(twice)} tensors twice, in {path.name} and in {file} or "
                f"beside it: {listed(twice)}; move the files that are not meant out of the folder"
            )
        logger.warning("%s is not read: it is not one of the model's shards", path)


def tensor_names(path: Path) -> set[str]:
    """Return the names of the tensors in one file; an empty set if it cannot be read."""
    try:
        file = BinaryFile(path)
    except CheckpointError:
        return set()
    try:
        return set(read_safetensors_header(file))
    except CheckpointError:
        return set()
    finally:
        file.close()


def listed(names: list[str], separator: str = ", ") -> str:
    """Return the first few of many names as one text."""
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return f"{separator.join(names[:MAX_LISTED])}{more}"
