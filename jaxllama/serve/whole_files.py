"""Whole files: written so that a crash leaves the old file or the new one.

Used by dialects that keep files. Until a file is whole, its name ends with `.part`.
"""

import contextlib
import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from jaxllama.errors import CannotStore

PART = ".part"


def open_folder(folder: Path) -> None:
    """Make a folder that only this user can read; delete unfinished files in it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for path in folder.glob(f"*{PART}"):
        path.unlink(missing_ok=True)


def part_in(folder: Path) -> Path:
    """Return a new path in a folder for a file that is still being written."""
    return folder / f"{secrets.token_hex(8)}{PART}"


def write_whole(path: Path, raw: bytes) -> None:
    """Write `raw` to a file at once: after a crash, the path has the old content or the new one.

    Raises CannotStore if the disk does not take it; then the old content stays.
    """
    part = part_in(path.parent)
    try:
        with storing():
            part.write_bytes(raw)
            part.replace(path)
    except CannotStore:
        part.unlink(missing_ok=True)
        raise


def append_whole(path: Path, raw: bytes) -> None:
    """Append `raw` to a file; raise CannotStore if the disk does not take all of it.

    Then nothing is appended. Several threads may append to one file.
    """
    with storing(), path.open("ab", buffering=0) as out:
        fcntl.flock(out, fcntl.LOCK_EX)
        size = out.seek(0, os.SEEK_END)
        try:
            if out.write(raw) < len(raw):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            out.truncate(size)
            raise


@contextlib.contextmanager
def storing() -> Iterator[None]:
    """Within the context, an OSError becomes CannotStore."""
    try:
        yield
    except OSError as error:
        raise CannotStore(
            f"the server cannot write to its disk: {error.strerror}; delete some of your files, or "
            f"ask its operator for room"
        ) from error
