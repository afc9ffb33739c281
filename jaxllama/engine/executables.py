"""Compiled programs kept on disk, so that a second start compiles nothing.

Used by `programs.py`. One folder per key; `program_key.py` lists the parts of a key. Loading
deserialises native code, so a file is trusted only if this user wrote it, in a folder that no other
user can write, and if its digest matches. A program whose file has any fault is compiled again.
"""

import hashlib
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax.experimental import serialize_executable

logger = logging.getLogger(__name__)

MAGIC = b"jaxllama-program-1\n"
KEPT = 16  # folders; the least recently used ones are deleted


class Executables:
    """The compiled programs of one key, in a folder."""

    def __init__(self, root: Path, key: str) -> None:
        self.folder = root / key

    def load(self, name: str, trees: tuple[Any, Any], devices: Sequence[Any]) -> Any | None:
        """Load one program; return None if its file is missing or cannot be trusted.

        `trees` are the structures of its arguments and results, which the file does not decide.
        """
        path = self.folder / f"{name}.program"
        try:
            payload = read_own(path)
            if payload is None:
                return None
            os.utime(self.folder)
            return serialize_executable.deserialize_and_load(
                payload, *trees, execution_devices=devices
            )
        except Exception as error:  # a stale or foreign program must never stop a start
            logger.warning("program %s on disk is not usable, compiling: %s", name, error)
            return None

    def save(self, name: str, compiled: Any) -> None:
        """Write a program to disk; log a warning if that fails (the next start compiles again)."""
        try:
            payload, _, _ = serialize_executable.serialize(compiled)
            write_own(self.folder / f"{name}.program", payload)
            drop_old(self.folder.parent)
        except Exception as error:
            logger.warning("program %s was not kept: %s", name, error)


def read_own(path: Path) -> bytes | None:
    """Read the payload of a file; None if it does not exist.

    Raises PermissionError if another user can write it, ValueError if it is damaged.
    """
    if not path.exists():
        return None
    for place in (path.parent, path):
        if not is_private(place):
            raise PermissionError(f"{place} is not owned by this user alone")
    blob = path.read_bytes()
    digest, payload = blob[len(MAGIC) :][:32], blob[len(MAGIC) + 32 :]
    if not blob.startswith(MAGIC) or hashlib.sha256(payload).digest() != digest:
        raise ValueError("the file is damaged")
    return payload


def is_private(path: Path) -> bool:
    """Say whether this user owns a path, no other user can write it, and it is no symbolic link."""
    if not hasattr(os, "getuid"):
        return True
    about = path.lstat()
    shared = about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return about.st_uid == os.getuid() and not shared and not stat.S_ISLNK(about.st_mode)


def write_own(path: Path, payload: bytes) -> None:
    """Write a file atomically, with its digest, readable by this user only."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(MAGIC + hashlib.sha256(payload).digest() + payload)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def drop_old(root: Path) -> None:
    """Delete the least recently used key folders, all but KEPT."""
    folders = sorted(root.iterdir(), key=lambda folder: folder.stat().st_mtime, reverse=True)
    for folder in folders[KEPT:]:
        shutil.rmtree(folder, ignore_errors=True)
