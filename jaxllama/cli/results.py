"""The answers of a batch on disk: one JSON object per line, appended as they finish.

Kept by `jaxllama batch`. A run that was killed leaves at most one incomplete line; opening the file
again drops this line and the failed answers, and keeps the rest. Knows JSON, no models.
"""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from jaxllama.cli.terminal import as_json
from jaxllama.errors import ConfigError
from jaxllama.weights.binary import reason

Row = dict[str, Any]
Place = tuple[int, int]  # which prompt, and which of its answers


class Results:
    """An open file of answers, locked against other processes; a context manager."""

    def __init__(self, path: Path, ids: list[object], counts: list[int]) -> None:
        self.path = path
        self.counts = counts  # of answers, by prompt
        self.failed = 0
        with self._as_config_errors(), ExitStack() as opened:
            self._file = self._open()
            opened.callback(self._close)
            kept, whole = self._read(ids)
            if not whole:
                self._rewrite(kept)
            opened.pop_all()
        self.done = {place_of(row): row for row in kept}

    def write(self, row: Row) -> None:
        """Append an answer and flush it to the operating system."""
        self.failed += "error" in row
        with self._as_config_errors():
            self._file.write(as_json(row).encode() + b"\n")
            self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        self._file.close()

    @contextmanager
    def _as_config_errors(self) -> Iterator[None]:
        """Within the context, turn an OSError into a ConfigError that names the file."""
        try:
            yield
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be written: {reason(error)}") from error

    def _open(self) -> IO[bytes]:
        if self.path.exists() and not self.path.is_file():
            raise ConfigError(f"{self.path} is no file; answers need one, to go on where they stop")
        file = self.path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise ConfigError(f"{self.path} is being written by another batch") from error
        return file

    def _read(self, ids: list[object]) -> tuple[list[Row], bool]:
        """Return the answers in the file, and whether the file has nothing but answers.

        Rows with errors, and an incomplete last line, are no answers. Raises ConfigError for a row
        of another input; `ids` are the ids of the prompts, in the order of the input.
        """
        self._file.seek(0)
        lines = self._file.read().split(b"\n")
        torn = lines.pop() != b""
        rows = [self._row(number, line, ids) for number, line in enumerate(lines, 1)]
        kept = {place_of(row): row for row in rows if "error" not in row}
        return list(kept.values()), not torn and len(kept) == len(rows)

    def _row(self, number: int, line: bytes, ids: list[object]) -> Row:
        """Parse one line; raise ConfigError unless it answers a prompt of this input.

        `number` is that of the line; `ids` are the ids of the prompts, in the order of the input.
        """
        try:
            row = json.loads(line)
            index, answer = place_of(row)
            is_place = isinstance(index, int) and isinstance(answer, int) and index >= 0
            if is_place and row.get("id") == ids[index] and 0 <= answer < self.counts[index]:
                return row
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            pass
        raise ConfigError(
            f"{self.path} line {number} answers no prompt of this input; "
            f"name another file with -o, or delete this one"
        )

    def _rewrite(self, rows: list[Row]) -> None:
        """Replace the file atomically by one with these rows only, and open it again."""
        folder = self.path.resolve().parent
        with tempfile.NamedTemporaryFile("wb", dir=folder, prefix=".batch-", delete=False) as new:
            new.writelines(as_json(row).encode() + b"\n" for row in rows)
            new.flush()
            os.fsync(new.fileno())
        shutil.copymode(self.path, new.name)
        Path(new.name).replace(self.path.resolve())
        self._file.close()
        self._file = self._open()


def place_of(row: Row) -> Place:
    """Return the index of the prompt that a row answers, and the number of the answer to it."""
    return row["index"], row.get("answer", 0)
