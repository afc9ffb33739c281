"""BinaryFile: a regular file, open for bounded reads, that detects when it changes meanwhile.

Opened by weight readers. Files are read, never mapped: if another process truncates a mapped file,
this process is killed; a read raises an error instead. Knows bytes, no format.
"""

import io
import os
import stat
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from jaxllama.errors import BadHeader, CheckpointError


class BinaryFile:
    """An open file that returns bytes by offset.

    Every failure is a CheckpointError with its path.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._stream = io.FileIO(path, opener=open_without_waiting)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be opened: {reason(error)}") from error
        status = os.fstat(self._stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise CheckpointError(f"{path} is not a regular file; expected a model file")
        self.size = status.st_size
        self._stamp = stamp(status)

    def read(self, offset: int, count: int) -> UInt8[np.ndarray, " B"]:
        """Read `count` bytes from `offset` into new memory.

        Raises CheckpointError if the file has changed since it was opened.
        """
        if offset < 0 or count < 0 or offset + count > self.size:
            raise BadHeader(
                f"{self.path.name}: bytes {offset} to {offset + count} were asked for; "
                f"the file has {self.size}"
            )
        held = np.empty(count, np.uint8)
        try:
            self._fill(held.data, offset)
            status = os.fstat(self._stream.fileno())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.path} cannot be read: {reason(error)}") from error
        if stamp(status) != self._stamp:
            raise CheckpointError(f"{self.path} changed while it was read; load it again")
        return held

    def _fill(self, view: memoryview, offset: int) -> None:
        self._stream.seek(offset)
        done = 0
        while done < len(view):
            got = self._stream.readinto(view[done:])
            if not got:
                raise CheckpointError(
                    f"{self.path} ends at byte {offset + done} and had {self.size} when it was "
                    f"opened; it was truncated meanwhile"
                )
            done += got

    def close(self) -> None:
        """Close the file; may be called again."""
        self._stream.close()


def open_without_waiting(path: str, flags: int) -> int:
    """Open a file and return its descriptor; do not wait for a writer if it has become a FIFO.

    `flags` are those of `os.open`.
    """
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def stamp(status: os.stat_result) -> tuple[int, int]:
    """Return the size and the modification time of a file, to detect that it was written to.

    `status` is the file's status.
    """
    return status.st_size, status.st_mtime_ns


def reason(error: Exception) -> str:
    """Return the message of an error; of an OSError only the system's message, without the path."""
    return (isinstance(error, OSError) and error.strerror) or str(error)
