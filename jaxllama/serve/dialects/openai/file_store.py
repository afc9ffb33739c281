"""File store: the files that clients upload and that batches write, in one folder.

A file is its content beside a JSON description. Names are ids made here, so nothing that a client
sends becomes a file name. Blocks, so call it from a thread. Knows no HTTP.
"""

import contextlib
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from jaxllama.errors import HttpError, InvalidParameter
from jaxllama.serve.whole_files import open_folder, part_in, storing, write_whole

ID = re.compile(r"file-[0-9a-f]{24}")
Purpose = Literal["batch", "batch_output"]
LONGEST_FILE_NAME = 256
MIB = 1 << 20


class FileObject(msgspec.Struct, kw_only=True):
    """Description of a file."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: Purpose
    object: Literal["file"] = "file"
    status: Literal["processed"] = "processed"


class KeptFile(msgspec.Struct):
    """A file as it is described on disk."""

    file: FileObject
    owner: str


class KeptName(NamedTuple):
    """The name of a file, whose it is, and what for."""

    name: str
    owner: str
    purpose: Purpose


class FileStore:
    """The folder of all files, which has at most `most` bytes and files of at most `largest`."""

    def __init__(self, folder: Path, *, most: int, largest: int) -> None:
        self._folder, self._most, self.largest = folder, most, largest

    def open(self) -> None:
        """Make the folder, and remove uploads that a crash left unfinished."""
        open_folder(self._folder)

    @contextlib.contextmanager
    def receive(self, owner: str) -> "Iterator[Upload]":
        """Yield a new upload to write to; at the end it is deleted unless `Upload.keep` was called.

        `owner` is the name of a client with an API key, or "" for all clients without a key.
        """
        upload = Upload(self, part_in(self._folder), owner)
        try:
            with upload:
                yield upload
        finally:
            upload.path.unlink(missing_ok=True)

    def check_room(self, more: int = 0) -> None:
        """Raise HttpError if the folder has no room for `more` bytes."""
        used = sum(path.stat().st_size for path in self._folder.iterdir())
        if used + more > self._most:
            raise HttpError(
                f"the files here have {used // MIB} MiB; at most {self._most // MIB} MiB are kept: "
                f"delete some",
                413,
                "no_room",
            )

    def adopt(self, path: Path, id_: str, kept: "KeptName") -> FileObject:
        """Move the file at `path` into the store under the id `id_`; return its description.

        `kept` has the file's name, its owner and its purpose.
        """
        file = FileObject(
            id=id_,
            bytes=path.stat().st_size,
            created_at=int(time.time()),
            filename=kept.name,
            purpose=kept.purpose,
        )
        write_whole(self._description(id_), msgspec.json.encode(KeptFile(file, kept.owner)))
        path.replace(self.content(id_))
        return file

    def find(self, id_: str, owner: str) -> FileObject:
        """Return the description of a file; raise HttpError 404 if `owner` has none by this id.

        `owner` is the name of a client with an API key, or "" for all clients without a key.
        """
        try:
            if not ID.fullmatch(id_):
                raise FileNotFoundError(id_)
            raw = self._description(id_).read_bytes()
            kept = msgspec.json.decode(raw, type=KeptFile)
        except (OSError, msgspec.DecodeError) as error:
            raise no_file(id_) from error
        if kept.owner != owner:
            raise no_file(id_)
        return kept.file

    def all(self, owner: str) -> list[FileObject]:
        """Return the descriptions of an owner's files, newest first.

        `owner` is the name of a client with an API key, or "" for all clients without a key.
        """
        found = []
        for path in self._folder.glob("file-*.json"):
            try:
                found.append(self.find(path.stem, owner))
            except HttpError:
                continue
        return sorted(found, key=lambda file: (file.created_at, file.id), reverse=True)

    def delete(self, id_: str, owner: str) -> None:
        """Delete the file `id_`; raise HttpError 404 if `owner` has none by this id.

        `owner` is the name of a client with an API key, or "" for all clients without a key.
        """
        self.find(id_, owner)
        self._description(id_).unlink(missing_ok=True)
        self.content(id_).unlink(missing_ok=True)

    def content(self, id_: str) -> Path:
        """Return the path of a file's content; raise HttpError 404 for a malformed id."""
        if not ID.fullmatch(id_):
            raise no_file(id_)
        return self._folder / f"{id_}.data"

    def _description(self, id_: str) -> Path:
        return self._folder / f"{id_}.json"


class Upload:
    """A file that is being received."""

    def __init__(self, store: FileStore, path: Path, owner: str) -> None:
        self.path, self.name = path, ""  # the name as the client sent it
        self._store, self._owner = store, owner
        self._size = 0

    def __enter__(self) -> "Upload":
        with storing():
            self._out = self.path.open("xb")
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):  # of a disk that is full: the file is deleted
            self._out.close()

    def write(self, piece: bytes) -> None:
        """Append a piece to the upload.

        Raises HttpError if it becomes too large, CannotStore if the disk does not take it.
        """
        self._size += len(piece)
        if self._size > self._store.largest:
            most = self._store.largest // MIB
            raise HttpError(f"the file has more than {most} MiB", 413, "file_too_large")
        with storing():
            self._out.write(piece)

    def keep(self) -> FileObject:
        """Move the upload into the store, and return its description.

        Raises InvalidParameter if it is empty, and HttpError if the store has no room.
        """
        with storing():
            self._out.close()
        if not self._size:
            raise InvalidParameter("file is empty; expected a line for each request", "file")
        self._store.check_room()
        kept = KeptName(self.name[:LONGEST_FILE_NAME], self._owner, "batch")
        return self._store.adopt(self.path, new_file_id(), kept)


def new_file_id() -> str:
    """Return the id of a new file."""
    return f"file-{secrets.token_hex(12)}"


def no_file(id_: str) -> HttpError:
    """Make the error for an id without a file."""
    return HttpError(f"there is no file {id_[:100]!r} of yours", 404, "file_not_found")
