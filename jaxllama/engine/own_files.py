"""Own files: files that only this user can write, each with a digest of its content.

Used for compiled programs and stored prompts. A file is its magic, the digest of the rest, and the
rest. It is replaced as a whole, so a crash leaves the old file or the new one.
"""

import hashlib
import os
import stat
import tempfile
from pathlib import Path

DIGEST_BYTES = 32


def read_own(path: Path, magic: bytes) -> bytes | None:
    """Read the payload of a file that `write_own` wrote; None if there is no file at `path`.

    Raises PermissionError if another user can write the file or its folder, ValueError if the file
    is damaged or does not begin with `magic`.
    """
    if not path.exists():
        return None
    for place in (path.parent, path):
        if not is_private(place):
            raise PermissionError(f"{place} is not owned by this user alone")
    blob = path.read_bytes()
    digest, payload = blob[len(magic) :][:DIGEST_BYTES], blob[len(magic) + DIGEST_BYTES :]
    if not blob.startswith(magic) or hashlib.sha256(payload).digest() != digest:
        raise ValueError("the file is damaged")
    return payload


def write_own(path: Path, payload: bytes, magic: bytes) -> None:
    """Write `magic`, a digest and `payload` to a file atomically, readable by this user only.

    `magic` are the bytes that say which kind of file it is.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(magic + hashlib.sha256(payload).digest() + payload)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def is_private(path: Path) -> bool:
    """Say whether this user owns a path, no other user can write it, and it is no symbolic link."""
    if not hasattr(os, "getuid"):
        return True
    about = path.lstat()
    shared = about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return about.st_uid == os.getuid() and not shared and not stat.S_ISLNK(about.st_mode)
