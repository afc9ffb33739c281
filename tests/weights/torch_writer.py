"""Writes torch checkpoints without torch: the pickle opcode by opcode, the storages beside it.

Called by the tests of this folder and by the fuzz targets. Spells names and opcodes by itself, as
`torch.save` does with protocol 2.
"""

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

STORAGES = {
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "float64": "DoubleStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "int64": "LongStorage",
}


def text(value: str) -> bytes:
    """BINUNICODE."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    """The shortest opcode for a whole number."""
    if 0 <= value < 256:
        return b"K" + struct.pack("<B", value)
    if 0 <= value < 65536:
        return b"M" + struct.pack("<H", value)
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def several(*values: int) -> bytes:
    """A tuple of whole numbers."""
    if not values:
        return b")"
    return b"(" + b"".join(number(value) for value in values) + b"t"


def ask(name: str) -> bytes:
    """GLOBAL: `module name`."""
    module, _, called = name.rpartition(".")
    return f"c{module}\n{called}\n".encode()


def storage(key: str, kind: str, items: int) -> bytes:
    """A persistent id."""
    return (
        b"(" + text("storage") + ask(f"torch.{kind}") + text(key) + text("cpu")
        + number(items) + b"tQ"
    )  # fmt: skip


def tensor(held: bytes, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> bytes:
    """A call of torch's function that makes a tensor."""
    return (
        ask("torch._utils._rebuild_tensor_v2")
        + b"(" + held + number(offset) + several(*shape) + several(*strides)
        + b"\x89" + ask("collections.OrderedDict") + b")R" + b"tR"
    )  # fmt: skip


def pickled(entries: Mapping[str, bytes], *, versions: bool = False) -> bytes:
    """A state dict; with `versions`, the attribute that state_dict() leaves on it."""
    body = b"\x80\x02" + ask("collections.OrderedDict") + b")Rq\x00("
    body += b"".join(text(name) + value for name, value in entries.items()) + b"u"
    if versions:
        inner = ask("collections.OrderedDict") + b")R(" + text("") + b"}" + text("version")
        body += b"}" + text("_metadata") + inner + number(1) + b"su" + b"sb"
    return body + b"."


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements of an array stored row by row."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def parts_of(arrays: Mapping[str, np.ndarray], *, versions: bool = False) -> dict[str, bytes]:
    """The parts of a checkpoint by their path; arrays that are one object share a storage."""
    entries, parts, keys = {}, {}, {}
    for name, array in arrays.items():
        key = keys.setdefault(id(array), str(len(keys)))
        parts[f"data/{key}"] = array.tobytes()
        held = storage(key, STORAGES[array.dtype.name], array.size)
        entries[name] = tensor(held, array.shape, contiguous(array.shape))
    return {
        "data.pkl": pickled(entries, versions=versions),
        "byteorder": b"little",
        **parts,
        "version": b"3\n",
    }


def write_zip(
    path: Path, parts: Mapping[str, bytes], *, root: str = "archive", deflate: bool = False
) -> Path:
    """One zip file, as torch.save leaves it."""
    method = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method) as file:
        for part, raw in parts.items():
            file.writestr(f"{root}/{part}" if root else part, raw)
    return path


def write_unpacked(folder: Path, parts: Mapping[str, bytes]) -> Path:
    """The folder that a zip file unpacks to."""
    (folder / "data").mkdir(parents=True)
    for part, raw in parts.items():
        (folder / part).write_bytes(raw)
    return folder


def save_torch(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    *,
    form: str = "zip",
    versions: bool = False,
) -> Path:
    """Write a checkpoint as "zip", "deflated" or "folder"."""
    parts = parts_of(arrays, versions=versions)
    if form == "folder":
        return write_unpacked(path, parts)
    return write_zip(path, parts, root=path.stem, deflate=form == "deflated")
