"""ZipArchive: the entries of a zip file, each found and checked before any is read.

Called by `torch_file.py`. Sizes come from the central directory, as torch leaves them out of the
local headers. Entries must not overlap, an entry's two names must agree, and a compressed entry
must give exactly the size that it states. Knows no tensors.
"""

import struct
import zlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from jaxllama.errors import BadHeader, UnsupportedModel
from jaxllama.weights.binary import BinaryFile
from jaxllama.weights.fields import shown

MAGIC = b"PK\x03\x04"
END = struct.Struct("<4s4H2IH")
END64 = struct.Struct("<4sQ2H2I4Q")
LOCATOR64 = struct.Struct("<4sIQI")
CENTRAL = struct.Struct("<4s6H3I5H2I")
LOCAL = struct.Struct("<4s5H3I2H")
MAX_COMMENT = 2**16 - 1
MAX_ENTRIES = 1 << 16
MAX_DIRECTORY = 16 << 20  # bytes
MAX_RATIO = 32  # of a compressed entry; weights compress to half at best
SMALL = 1 << 16  # bytes that an entry may have at any ratio
STORED, DEFLATED = 0, 8
ENCRYPTED = 1  # a flag
U16, U32 = 2**16 - 1, 2**32 - 1  # a field with this value has its value in 64 bits elsewhere
ZIP64 = 1  # the extra field that holds it


@dataclass(frozen=True)
class ZipEntry:
    """One file in a zip file: where its bytes are, and how many it has when unpacked."""

    name: str
    method: int
    start: int  # of its local header
    offset: int  # of its bytes
    packed: int
    size: int


class ZipArchive:
    """A zip file that is open for bounded reads."""

    def __init__(self, file: BinaryFile) -> None:
        self._file = file
        self.entries: dict[str, ZipEntry] = {}
        directory, count = read_directory(file)
        at = 0
        for _ in range(count):
            entry, at = self._read_entry(directory, at)
            if entry.name in self.entries:
                raise BadHeader(f"{file.path.name}: holds {shown(entry.name)} twice")
            self.entries[entry.name] = entry
        if at != len(directory):
            raise BadHeader(f"{file.path.name}: the directory has {len(directory) - at} more bytes")
        check_apart(list(self.entries.values()), file)

    def read(self, name: str, start: int, count: int) -> UInt8[np.ndarray, " B"]:
        """Read `count` bytes of the unpacked entry `name` from its byte `start` on.

        They are in new memory. Each read unpacks the whole entry if it is compressed.
        """
        entry = self.entries[name]
        if start < 0 or count < 0 or start + count > entry.size:
            raise BadHeader(
                f"{self._file.path.name}: bytes {start} to {start + count} of {shown(name)} were "
                f"asked for; it has {entry.size}"
            )
        if entry.method == STORED:
            return self._file.read(entry.offset + start, count)
        return np.frombuffer(self._unpack(entry), np.uint8)[start : start + count].copy()

    def _unpack(self, entry: ZipEntry) -> bytes:
        label = f"{self._file.path.name}: {shown(entry.name)}"
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            raw = unpacker.decompress(
                self._file.read(entry.offset, entry.packed).data, entry.size + 1
            )
        except zlib.error as error:
            raise BadHeader(f"{label} cannot be unpacked: {error}") from error
        if len(raw) != entry.size or not unpacker.eof or unpacker.unused_data:
            raise BadHeader(f"{label} does not unpack to the {entry.size} bytes that it states")
        return raw

    def _read_entry(self, directory: bytes, at: int) -> tuple[ZipEntry, int]:
        """Return the entry at offset `at` of `directory`, and the offset of its end.

        `directory` are the bytes of the zip file's central directory.
        """
        where = self._file.path.name
        if at + CENTRAL.size > len(directory):
            raise BadHeader(f"{where}: the directory ends inside of an entry")
        fields = CENTRAL.unpack_from(directory, at)
        names, extras, comments = fields[10:13]
        after = at + CENTRAL.size + names + extras + comments
        if fields[0] != b"PK\x01\x02" or after > len(directory):
            raise BadHeader(f"{where}: entry {len(self.entries)} of the directory is damaged")
        middle = at + CENTRAL.size + names
        raw_name = directory[at + CENTRAL.size : middle]
        packed, size, start = widened(
            (fields[8], fields[9], fields[16]), directory[middle : middle + extras], where
        )
        name = checked_name(raw_name, where)
        method = fields[4]
        if fields[3] & ENCRYPTED or method not in (STORED, DEFLATED):
            raise UnsupportedModel(
                f"{where}: {shown(name)} is encrypted or compressed with method {method}; "
                f"expected no compression or method {DEFLATED}"
            )
        if size > max(packed * MAX_RATIO, SMALL) or (method == STORED and size != packed):
            raise BadHeader(
                f"{where}: {shown(name)} states {size} bytes and takes {packed} in the file"
            )
        offset = self._data_offset(start, raw_name, method)
        return ZipEntry(name, method, start, offset, packed, size), after

    def _data_offset(self, start: int, raw_name: bytes, method: int) -> int:
        """Return the offset of an entry's bytes, which follow its local header at offset `start`.

        `raw_name` and `method` are the name and the compression method that the central directory
        states for the entry. Raise BadHeader if the local header states others.
        """
        raw = self._file.read(start, LOCAL.size + len(raw_name)).tobytes()
        fields = LOCAL.unpack_from(raw)
        if fields[0] != MAGIC or fields[3] != method or raw[LOCAL.size :] != raw_name:
            raise BadHeader(
                f"{self._file.path.name}: the local header of {shown(str(raw_name))} is damaged or "
                f"differs from the directory"
            )
        return start + LOCAL.size + fields[9] + fields[10]


def read_directory(file: BinaryFile) -> tuple[bytes, int]:
    """Return the bytes of a zip file's central directory and the number of its entries."""
    where = file.path.name
    tail_start = max(0, file.size - END.size - MAX_COMMENT)
    tail = file.read(tail_start, file.size - tail_start).tobytes()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + END.size > len(tail):
        raise BadHeader(f"{where}: has no zip directory at its end; it is truncated")
    _, disk, first, here, count, size, offset, comment = END.unpack_from(tail, at)
    end = tail_start + at
    if end + END.size + comment != file.size:
        raise BadHeader(f"{where}: bytes follow the zip directory, or it is truncated")
    if U16 in (here, count) or U32 in (size, offset):
        disk, first, here, count, size, offset, end = read_end64(file, end)
    if disk or first or here != count:
        raise UnsupportedModel(f"{where}: is one of several parts of a zip file; expected one file")
    if count > MAX_ENTRIES or size > MAX_DIRECTORY:
        raise BadHeader(
            f"{where}: the directory has {count} entries and {size} bytes; expected at most "
            f"{MAX_ENTRIES} and {MAX_DIRECTORY}"
        )
    if offset + size > end:
        raise BadHeader(f"{where}: the directory of {size} bytes at {offset} ends after byte {end}")
    return file.read(offset, size).tobytes(), count


def read_end64(file: BinaryFile, end: int) -> tuple[int, ...]:
    """Read the 64-bit end record of a zip file; `end` is the offset of the 32-bit end record.

    The result has seven numbers: this disk, the directory's first disk, the entries on this disk,
    all entries, the directory's size, the directory's offset, and the 64-bit record's offset.
    """
    where = file.path.name
    if end >= LOCATOR64.size:
        raw = file.read(end - LOCATOR64.size, LOCATOR64.size).tobytes()
        magic, _, at, _ = LOCATOR64.unpack(raw)
        if magic == b"PK\x06\x07" and at + END64.size <= end:
            fields = END64.unpack(file.read(at, END64.size).tobytes())
            if fields[0] == b"PK\x06\x06":
                _, _, _, _, disk, first, here, count, size, offset = fields
                return disk, first, here, count, size, offset, at
    raise BadHeader(f"{where}: the 64-bit end of the zip directory is missing or damaged")


def widened(values: tuple[int, int, int], extra: bytes, where: str) -> tuple[int, int, int]:
    """Return packed size, unpacked size and offset of an entry of a zip file.

    `values` are these three as 32-bit numbers; a number that does not fit in 32 bits is taken from
    the entry's `extra` field. Errors name the file `where`.
    """
    packed, size, start = values
    if U32 not in values:
        return values
    wide = iter(wide_values(extra))
    try:
        size = next(wide) if size == U32 else size
        packed = next(wide) if packed == U32 else packed
        start = next(wide) if start == U32 else start
    except StopIteration:
        raise BadHeader(f"{where}: an entry lacks its 64-bit sizes") from None
    return packed, size, start


def wide_values(extra: bytes) -> list[int]:
    """Return the 64-bit numbers in the ZIP64 part of an extra field; [] without that part."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == ZIP64:
            part = extra[at + 4 : at + 4 + length]
            return [number for (number,) in struct.iter_unpack("<Q", part[: len(part) // 8 * 8])]
        at += 4 + length
    return []


def checked_name(raw: bytes, where: str) -> str:
    """Return the name of an entry as text; raise BadHeader if it is no path inside the archive.

    The error names the zip file `where`.
    """
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise BadHeader(f"{where}: the name {shown(str(raw))} is not UTF-8") from None
    if not name or name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"):
        raise BadHeader(f"{where}: {shown(name)} is no path inside of the archive")
    return name


def check_apart(entries: list[ZipEntry], file: BinaryFile) -> None:
    """Raise BadHeader if two entries share bytes, or one extends beyond the end of the file."""
    before: ZipEntry | None = None
    for entry in sorted(entries, key=lambda entry: entry.start):
        if before is not None and before.offset + before.packed > entry.start:
            raise BadHeader(
                f"{file.path.name}: {shown(before.name)} and {shown(entry.name)} overlap"
            )
        before = entry
    if before is not None and before.offset + before.packed > file.size:
        raise BadHeader(
            f"{file.path.name}: {shown(before.name)} ends at byte "
            f"{before.offset + before.packed}; the file has {file.size}"
        )
