"""Rows of named values in a file: CSV with a line of names, or one JSON object per line.

Read and written by `jaxllama classify`, read by `jaxllama batch`. The ending of a file's name says
which of the two it is; .txt is one text per line. Knows no models.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from jaxllama.cli.terminal import as_json
from jaxllama.errors import InvalidParameter

CSV, JSONL, TXT = ".csv", ".jsonl", ".txt"
TEXT = "text"  # the name of a line of a .txt file
LONGEST_CELL = 16 << 20  # characters; Python's own bound is 128 KiB


@dataclass(frozen=True)
class FileRow:
    """One row of a file: the number of its last line, and its values by name."""

    line: int
    values: dict[str, Any]


def kind_of(path: Path, kinds: Sequence[str] = (CSV, JSONL, TXT)) -> str:
    """Return the ending of a file's name; raise InvalidParameter if `kinds` does not have it.

    The ending .json counts as .jsonl.
    """
    kind = path.suffix.lower()
    if kind == ".json":
        kind = JSONL
    if kind not in kinds:
        raise InvalidParameter(f"{path} ends in {kind or 'nothing'}; expected {', '.join(kinds)}")
    return kind


def read_rows(path: Path) -> Iterator[FileRow]:
    """Yield the rows of a CSV, JSON Lines or text file, one at a time.

    Raises InvalidParameter, with the number of the line, for a row that cannot be read.
    """
    kind = kind_of(path)
    with path.open(encoding="utf-8-sig", newline="" if kind == CSV else None) as file:
        try:
            yield from READERS[kind](file)
        except UnicodeDecodeError as error:
            raise InvalidParameter(f"{path} is not UTF-8 text: {error}") from error
        except InvalidParameter as error:
            raise InvalidParameter(f"{path} {error}") from error


def csv_rows(file: IO[str]) -> Iterator[FileRow]:
    """Yield the rows of a CSV file, whose first line names the columns."""
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(file, strict=True)
    try:
        names = next(reader, None)
        if names is None:
            raise InvalidParameter("is empty; expected a line with the names of the columns")
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise InvalidParameter(f"line 1: two columns are named {twice[0]!r}")
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(names):
                raise InvalidParameter(
                    f"line {reader.line_num}: has {len(cells)} cells; expected {len(names)}, "
                    f"one per column"
                )
            yield FileRow(reader.line_num, dict(zip(names, cells, strict=True)))
    except csv.Error as error:
        raise InvalidParameter(f"line {reader.line_num}: is not CSV ({error})") from error


def jsonl_rows(file: IO[str]) -> Iterator[FileRow]:
    """Yield the objects of a file with one JSON object per line; blank lines are skipped."""
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InvalidParameter(f"line {number}: is not JSON ({error})") from error
        if not isinstance(values, dict):
            raise InvalidParameter(f"line {number}: is no JSON object")
        yield FileRow(number, values)


def txt_rows(file: IO[str]) -> Iterator[FileRow]:
    """Yield the lines of a text file that are not blank, each as the value `text`."""
    for number, line in enumerate(file, 1):
        if line.strip():
            yield FileRow(number, {TEXT: line.rstrip("\r\n")})


READERS = {CSV: csv_rows, JSONL: jsonl_rows, TXT: txt_rows}


def as_csv(cells: Sequence[object]) -> str:
    """Return a line of CSV with these cells."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


class RowWriter:
    """Writes rows as CSV or as lines of JSON; the first row of CSV names the columns."""

    def __init__(self, file: IO[str], kind: str) -> None:
        self.file = file
        self.kind = kind
        self.names: list[str] | None = None

    def write(self, values: Mapping[str, object]) -> None:
        """Write one row and flush the file.

        `values` are the row's values by column. In CSV, the first row sets the columns; later rows
        lose other values, and a missing value is an empty cell.
        """
        if self.kind == JSONL:
            self.file.write(f"{as_json(values)}\n")
        else:
            if self.names is None:
                self.names = list(values)
                self.file.write(as_csv(self.names))
            self.file.write(as_csv([cell(values.get(name)) for name in self.names]))
        self.file.flush()


def cell(value: object) -> object:
    """Return a value as a cell of CSV: text and numbers as they are, others as JSON."""
    if value is None:
        return ""
    is_plain = isinstance(value, str | int | float) and not isinstance(value, bool)
    return value if is_plain else as_json(value)
