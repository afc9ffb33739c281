"""Reads the GGUF header and checks every number against the file's size before it is used.

Called by the GGUF reader. Every count is compared with the bytes left before anything is allocated.
Every tensor must lie inside the file and overlap no other. Knows types and sizes, no model.
"""

import itertools
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from jaxllama.errors import BadHeader, UnsupportedModel
from jaxllama.weights.binary import BinaryFile
from jaxllama.weights.fields import shown
from jaxllama.weights.gguf_blocks import KINDS, GgmlType, kind_name

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER = 128 << 20  # bytes; the largest vocabularies take about 20 MiB
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 16
MAX_NAME = 65535  # bytes of a key or tensor name
MAX_DIMS = 4
ALIGNMENTS = (8, 4096)
CHUNK = 1 << 20
SMALLEST_KEY = 8 + 1 + 4 + 1  # name length, name, type, value
SMALLEST_TENSOR = 8 + 1 + 4 + 8 + 4 + 8  # name length, name, count of dims, dim, type, offset

U32 = struct.Struct("<I")
U64 = struct.Struct("<Q")
FLOAT32, BOOL, STRING, ARRAY = 6, 7, 8, 9
SCALARS: dict[int, str] = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", FLOAT32: "<f4", BOOL: "<u1",
    10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip


@dataclass(frozen=True)
class GgufTensor:
    """Type, shape (rows first) and position of one tensor in its file."""

    file: BinaryFile
    name: str
    kind: GgmlType
    shape: tuple[int, ...]
    offset: int  # from the start of the file
    nbytes: int

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read the bytes of the tensor from byte `start` to byte `stop`; by default all of them."""
        stop = self.nbytes if stop is None else stop
        return self.file.read(self.offset + start, stop - start)


@dataclass(frozen=True)
class ArrayField:
    """An array value whose bounds are checked; its items are decoded later."""

    kind: int
    count: int
    start: int


class Metadata(Mapping[str, object]):
    """The key-value part of a header; arrays are decoded when they are read."""

    def __init__(self, values: dict[str, object], buffer: bytes, where: str) -> None:
        self._values = values
        self._buffer = buffer
        self._where = where

    def __getitem__(self, key: str) -> object:
        value = self._values[key]
        if not isinstance(value, ArrayField):
            return value
        if value.kind == STRING:
            return self._strings(key, value)
        items = np.frombuffer(self._buffer, SCALARS[value.kind], value.count, value.start)
        return (items.astype(bool) if value.kind == BOOL else items).tolist()

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def count(self, key: str) -> int | None:
        """Return the length of the array in field `key` without decoding it; None if no array."""
        value = self._values.get(key)
        return value.count if isinstance(value, ArrayField) else None

    def _strings(self, key: str, array: ArrayField) -> list[str]:
        buffer, at, length_at = self._buffer, array.start, U64.unpack_from
        strings = []
        try:
            for _ in range(array.count):
                stop = at + 8 + length_at(buffer, at)[0]
                strings.append(str(buffer[at + 8 : stop], "utf-8"))
                at = stop
        except UnicodeDecodeError as error:
            raise BadHeader(
                f"{self._where}: {key}: item {len(strings)} is not UTF-8: {error}"
            ) from error
        return strings


@dataclass(frozen=True)
class GgufHeader:
    """The checked header: everything before the data of the tensors."""

    metadata: Metadata
    tensors: dict[str, GgufTensor]


def read_header(file: BinaryFile) -> GgufHeader:
    """Return the whole header of an open file, checked against the size of the file.

    Raise BadHeader if it is damaged, UnsupportedModel if the GGUF version or a tensor type is not
    supported.
    """
    where = file.path.name
    cursor = Cursor(file)
    check_version(cursor, where)
    tensor_count = cursor.count("tensor count", SMALLEST_TENSOR, MAX_TENSORS)
    key_count = cursor.count("key count", SMALLEST_KEY, MAX_KEYS)
    values: dict[str, object] = {}
    for _ in range(key_count):
        key = cursor.name("a key")
        if key in values:
            raise BadHeader(f"{where}: key {shown(key)} is given twice")
        values[key] = read_value(cursor, key)
    alignment = alignment_of(values, where)
    entries = [read_entry(cursor) for _ in range(tensor_count)]
    start = -(-cursor.at // alignment) * alignment
    tensors = place_entries(entries, start, alignment, file)
    return GgufHeader(Metadata(values, bytes(cursor.buffer), where), tensors)


class Cursor:
    """Reads the header forward; checks that data lies inside the file before it reads."""

    def __init__(self, file: BinaryFile) -> None:
        self.file = file
        self.where = file.path.name
        self.buffer = bytearray()
        self.end = min(file.size, MAX_HEADER)
        self.at = 0

    def need(self, size: int, what: str) -> None:
        """Load the next `size` bytes into the buffer; raise BadHeader if the file ends before.

        `what` names the data in the error.
        """
        stop = self.at + size
        if stop > self.end:
            limit = "the file" if self.end == self.file.size else f"a header of {MAX_HEADER} bytes"
            raise BadHeader(
                f"{self.where}: {shown(what)} at byte {self.at} needs {size} bytes; "
                f"{limit} ends at byte {self.end}"
            )
        held = len(self.buffer)
        if stop > held:
            more = min(max(stop - held, CHUNK), self.end - held)
            self.buffer += self.file.read(held, more).tobytes()

    def number(self, form: struct.Struct, what: str) -> int:
        """Read the next number, which has the layout `form`; errors name it by `what`."""
        self.need(form.size, what)
        value: int = form.unpack_from(self.buffer, self.at)[0]
        self.at += form.size
        return value

    def count(self, what: str, smallest: int, most: int) -> int:
        """Read the count of the items that follow, called `what` in an error message.

        Raise BadHeader if it is above `most`, or if so many items of at least `smallest` bytes do
        not fit in the rest of the file.
        """
        count = self.number(U64, what)
        fits = (self.file.size - self.at) // smallest
        if count > min(fits, most):
            raise BadHeader(
                f"{self.where}: {shown(what)} is {count}; at most {min(fits, most)} can follow"
            )
        return count

    def string(self, what: str, longest: int = MAX_HEADER) -> str:
        """Read the next string, which is `what` in an error message.

        Raise BadHeader if it has more than `longest` bytes or is no UTF-8.
        """
        length = self.number(U64, what)
        if length > longest:
            raise BadHeader(
                f"{self.where}: {shown(what)} has {length} bytes; expected at most {longest}"
            )
        self.need(length, what)
        raw = self.buffer[self.at : self.at + length]
        self.at += length
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadHeader(f"{self.where}: {shown(what)} is not UTF-8") from error

    def name(self, what: str) -> str:
        """Read the next string, the name of `what`, such as "a tensor" in an error message.

        Raise BadHeader if the name is empty or has more than MAX_NAME bytes.
        """
        name = self.string(f"the name of {what}", MAX_NAME)
        if not name:
            raise BadHeader(f"{self.where}: {what} has an empty name")
        return name

    def skip(self, size: int, what: str) -> None:
        """Skip `size` bytes, which hold `what`; raise BadHeader if the file ends before."""
        self.need(size, what)
        self.at += size

    def skip_strings(self, count: int, what: str) -> None:
        """Skip `count` strings of the array `what`; raise BadHeader if the file ends before.

        The loop avoids method calls for speed: a vocabulary has 100,000 strings.
        """
        length_at = U64.unpack_from
        at, held = self.at, len(self.buffer)
        for _ in range(count):
            if at + 8 > held:
                self.at = at
                self.need(8, what)
                held = len(self.buffer)
            at += 8 + length_at(self.buffer, at)[0]
        self.at = at
        self.need(0, what)


def check_version(cursor: Cursor, where: str) -> None:
    """Read the magic bytes and the version of the file `where`.

    Raise BadHeader or UnsupportedModel if one of them is not supported.
    """
    cursor.need(8, "magic and version")
    if cursor.buffer[:4] != MAGIC:
        raise BadHeader(f"{where}: begins with {bytes(cursor.buffer[:4])!r}; expected {MAGIC!r}")
    cursor.at = 4
    version = cursor.number(U32, "version")
    if version in VERSIONS:
        return
    if version & 0xFFFF == 0 and version:
        raise UnsupportedModel(f"{where}: is big-endian; convert it to a little-endian GGUF")
    raise UnsupportedModel(
        f"{where}: GGUF version {version} is not supported; expected one of {VERSIONS}; "
        f"convert the model again with a current converter"
    )


def read_value(cursor: Cursor, key: str) -> object:
    """Read the value of the metadata key `key`; of an array, only its type, length and position."""
    kind = cursor.number(U32, key)
    if kind == STRING:
        return cursor.string(key)
    if kind == ARRAY:
        return read_array(cursor, key)
    dtype = scalar_type(kind, key, cursor.where)
    cursor.need(dtype.itemsize, key)
    value = np.frombuffer(bytes(cursor.buffer[cursor.at : cursor.at + dtype.itemsize]), dtype)[0]
    cursor.at += dtype.itemsize
    if kind == FLOAT32:
        return float(str(value))  # 1e-05 as it was written, not the nearest float32
    return bool(value) if kind == BOOL else value.item()


def read_array(cursor: Cursor, key: str) -> ArrayField:
    """Skip the array of the metadata key `key`; return its element type, length and position."""
    kind = cursor.number(U32, key)
    if kind == ARRAY:
        raise BadHeader(f"{cursor.where}: {shown(key)} is an array of arrays; expected a flat one")
    size = 8 if kind == STRING else scalar_type(kind, key, cursor.where).itemsize
    count = cursor.count(f"the length of {key}", size, MAX_HEADER)
    start = cursor.at
    if kind == STRING:
        cursor.skip_strings(count, key)
    else:
        cursor.skip(count * size, key)
    return ArrayField(kind, count, start)


def scalar_type(kind: int, key: str, where: str) -> np.dtype[np.generic]:
    """Return the NumPy type of the GGUF value type that has the number `kind`.

    Raise BadHeader if it is unknown; the error names the file `where` and the metadata key `key`.
    """
    if kind not in SCALARS:
        raise BadHeader(f"{where}: {shown(key)} has value type {kind}; expected 0 to 12")
    return np.dtype(SCALARS[kind])


def alignment_of(values: dict[str, object], where: str) -> int:
    """Return `general.alignment` of the metadata `values` in bytes; 32 if it is absent.

    Raise BadHeader, naming the file `where`, unless it is a power of two in the allowed range.
    """
    value = values.get("general.alignment", 32)
    low, high = ALIGNMENTS
    if not isinstance(value, int) or not low <= value <= high or value & (value - 1):
        raise BadHeader(
            f"{where}: general.alignment is {shown(value)}; expected a power of two "
            f"in [{low}, {high}]"
        )
    return value


def read_entry(cursor: Cursor) -> GgufTensor:
    """Read one tensor's name, dimensions, type and offset within the data."""
    where = cursor.where
    name = cursor.name("a tensor")
    dims = cursor.number(U32, name)
    if not 1 <= dims <= MAX_DIMS:
        raise BadHeader(
            f"{where}: tensor {shown(name)} has {dims} dimensions; expected 1 to {MAX_DIMS}"
        )
    sizes = [cursor.number(U64, name) for _ in range(dims)]
    if min(sizes) < 1:
        raise BadHeader(
            f"{where}: tensor {shown(name)} has dimensions {sizes}; each must be at least 1"
        )
    number = cursor.number(U32, name)
    if number not in KINDS:
        supported = ", ".join(kind.name for kind in KINDS.values())
        raise UnsupportedModel(
            f"{where}: tensor {shown(name)} has type {kind_name(number)}, which is not supported; "
            f"expected one of {supported}"
        )
    kind = KINDS[number]
    if sizes[0] % kind.block:
        raise BadHeader(
            f"{where}: tensor {shown(name)} has rows of {sizes[0]} weights; {kind.name} needs "
            f"a multiple of {kind.block}"
        )
    weights = 1
    for size in sizes:
        weights *= size
    offset = cursor.number(U64, name)
    nbytes = weights // kind.block * kind.size
    return GgufTensor(cursor.file, name, kind, tuple(sizes[::-1]), offset, nbytes)


def place_entries(
    entries: list[GgufTensor], start: int, alignment: int, file: BinaryFile
) -> dict[str, GgufTensor]:
    """Return the tensors by name, with offsets from the start of the file.

    The offsets in `entries` count from `start`, the offset of all tensors' data, and must be
    multiples of `alignment` bytes. Raises BadHeader if they are not, or if a tensor lies outside
    the file or overlaps another one.
    """
    where = file.path.name
    tensors: dict[str, GgufTensor] = {}
    for entry in entries:
        if entry.name in tensors:
            raise BadHeader(f"{where}: tensor {shown(entry.name)} is given twice")
        if entry.offset % alignment:
            raise BadHeader(
                f"{where}: tensor {shown(entry.name)} has offset {entry.offset}; expected "
                f"a multiple of {alignment}"
            )
        offset = start + entry.offset
        if offset + entry.nbytes > file.size:
            raise BadHeader(
                f"{where}: tensor {shown(entry.name)} reaches byte {offset + entry.nbytes}; "
                f"the file has {file.size}; it is truncated or corrupt"
            )
        tensors[entry.name] = replace(entry, offset=offset)
    in_order = sorted(tensors.values(), key=lambda entry: entry.offset)
    for before, after in itertools.pairwise(in_order):
        if before.offset + before.nbytes > after.offset:
            raise BadHeader(
                f"{where}: tensors {shown(before.name)} and {shown(after.name)} overlap"
            )
    return tensors
