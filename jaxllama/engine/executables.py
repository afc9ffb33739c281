"""Compiled programs kept on disk, so that a second start compiles nothing.

Used by `programs.py`. One folder per key; `program_key.py` lists the parts of a key. Loading
deserialises native code, so a file is trusted only if this user wrote it, in a folder that no other
user can write, and if its digest matches. A program whose file has any fault is compiled again.
"""

import json
import logging
import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jax.experimental import serialize_executable

from jaxllama.engine.deep_stack import on_deep_stack
from jaxllama.engine.own_files import DIGEST_BYTES, read_own, write_own

logger = logging.getLogger(__name__)

MAGIC = b"jaxllama-program-2\n"
PROGRAMS = "programs"  # folder in the cache
LONGEST_FACTS = 1000  # bytes
KEPT = 16  # folders; the least recently used ones are deleted
# XLA loads the object files of a CPU program by recursion: about 1,000 need 8 MiB of stack.
MOST_OBJECTS = 4000  # half of what fits the stack on which they are loaded
ELF = b"\x7fELF"  # an object file begins with it


class KeptProgram(NamedTuple):
    """A compiled program as it is written to a file."""

    size: int  # bytes
    seconds: float  # that compiling took


class Executables:
    """The files of compiled programs that belong to one key, in a folder."""

    def __init__(self, root: Path, key: str) -> None:
        self.folder = root / key

    def has(self, name: str) -> bool:
        """Say whether a file of this program exists; only loading shows whether it is usable."""
        return self._path(name).exists()

    def about(self, name: str) -> KeptProgram | None:
        """Return the size of a program's file and the seconds of compiling; None without a file."""
        try:
            with self._path(name).open("rb") as file:
                file.seek(len(MAGIC) + DIGEST_BYTES)
                seconds = json.loads(file.readline(LONGEST_FACTS))["seconds"]
            return KeptProgram(self._path(name).stat().st_size, float(seconds))
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def load(self, name: str, trees: tuple[Any, Any], devices: Sequence[Any]) -> Any | None:
        """Load one compiled program; return None if its file is missing, damaged or not private.

        A file is private if this user owns it and no other user can write it. `trees` are the
        pytree structures of the program's arguments and of its results; they are not read from the
        file. `devices` are those on which the program runs.
        """
        try:
            payload = read_own(self._path(name), MAGIC)
            if payload is None:
                return None
            os.utime(self.folder)
            _, _, payload = payload.partition(b"\n")
            return on_deep_stack(
                partial(
                    serialize_executable.deserialize_and_load,
                    payload,
                    *trees,
                    execution_devices=devices,
                )
            )
        except Exception as error:  # a stale or foreign program must never stop a start
            logger.warning("program %s on disk is not usable, compiling: %s", name, error)
            return None

    def save(self, name: str, compiled: Any, seconds: float) -> None:
        """Write a compiled program and the seconds it took to compile; log a warning on failure."""
        try:
            payload, _, _ = serialize_executable.serialize(compiled)
            if (objects := payload.count(ELF)) > MOST_OBJECTS:
                logger.warning(
                    "program %s was not kept: it has %d object files, and XLA can load about %d",
                    name, objects, MOST_OBJECTS,
                )  # fmt: skip
                return
            facts = json.dumps({"seconds": round(seconds, 2)}).encode()
            write_own(self._path(name), facts + b"\n" + payload, MAGIC)
            drop_old(self.folder.parent)
        except Exception as error:
            logger.warning("program %s was not kept: %s", name, error)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.program"


def drop_old(root: Path) -> None:
    """Keep the KEPT most recently used folders of programs in `root`; delete the others."""
    folders = sorted(root.iterdir(), key=lambda folder: folder.stat().st_mtime, reverse=True)
    for folder in folders[KEPT:]:
        shutil.rmtree(folder, ignore_errors=True)
