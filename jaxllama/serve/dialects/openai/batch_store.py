"""Batch store: the batches of all clients and how far they are, in one folder.

Each batch is a JSON description, and two files that grow by a line for each request that is done.
Such a line has the number of its request, so that a restart knows what is left. Blocks, so call it
from a thread. Knows no HTTP.
"""

import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from jaxllama.errors import HttpError
from jaxllama.serve.whole_files import append_whole, open_folder, write_whole

BATCH_ID = re.compile(r"batch_[0-9a-f]{24}")

BatchStatus = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]
GrowingKind = Literal["output", "errors"]
OVER = ("failed", "completed", "expired", "cancelled")


class RequestCounts(msgspec.Struct):
    """Counts of all requests of a batch, and of the answered ones."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class LineProblem(msgspec.Struct):
    """An error in a line of an input file."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class BatchProblems(msgspec.Struct):
    """All errors in an input file."""

    data: list[LineProblem]
    object: Literal["list"] = "list"


class RequestBatch(msgspec.Struct, kw_only=True):
    """Description of a batch."""

    id: str
    endpoint: str
    input_file_id: str
    completion_window: Literal["24h"]
    created_at: int
    expires_at: int
    status: BatchStatus = "validating"
    metadata: dict[str, str] | None = None
    request_counts: RequestCounts = msgspec.field(default_factory=RequestCounts)
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: BatchProblems | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    object: Literal["batch"] = "batch"

    @property
    def is_over(self) -> bool:
        """Whether the batch has ended: completed, failed, expired or cancelled."""
        return self.status in OVER


class KeptBatch(msgspec.Struct):
    """A batch as it is described on disk."""

    batch: RequestBatch
    owner: str  # who may see it
    client: str  # whose turn in the fair queue its requests take


class LineAnswer(msgspec.Struct):
    """The answer to a request: its status and its body."""

    status_code: int
    request_id: str
    body: msgspec.Raw


class LineError(msgspec.Struct):
    """Why a request was not answered."""

    code: str
    message: str


class OutputLine(msgspec.Struct):
    """A line of an output or error file."""

    id: str
    custom_id: str
    response: LineAnswer | None
    error: LineError | None = None


class OutputId(msgspec.Struct):
    """The id of a line of an output file, which ends with the number of its request."""

    id: str | UnsetType = UNSET


class BatchStore:
    """The folder of all batches."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self) -> list[KeptBatch]:
        """Make the folder if needed; return all batches in it, oldest first."""
        open_folder(self._folder)
        found = []
        for path in self._folder.glob("batch_*.json"):
            try:
                found.append(msgspec.json.decode(path.read_bytes(), type=KeptBatch))
            except (OSError, msgspec.DecodeError):
                continue
        return sorted(found, key=lambda kept: (kept.batch.created_at, kept.batch.id))

    def save(self, kept: KeptBatch) -> None:
        """Write the description of a batch to its JSON file."""
        write_whole(self._folder / f"{kept.batch.id}.json", msgspec.json.encode(kept))

    def forget(self, kept: KeptBatch) -> None:
        """Delete a batch from this folder; its files in the file store stay."""
        for path in self._folder.glob(f"{kept.batch.id}.*"):
            path.unlink(missing_ok=True)

    def growing(self, batch: RequestBatch, kind: GrowingKind) -> Path:
        """Return the path of the file to which a running batch appends answers, or errors.

        `kind` is "output" for the answers, "errors" for the errors.
        """
        return self._folder / f"{batch.id}.{kind}.jsonl"

    def append(self, batch: RequestBatch, kind: GrowingKind, line: OutputLine) -> None:
        """Append the line of an answered or failed request to one of the batch's files.

        `kind` is "output" for the file of answers, "errors" for that of errors. Raises CannotStore
        if the disk does not take the line.
        """
        append_whole(self.growing(batch, kind), msgspec.json.encode(line) + b"\n")

    def done(self, batch: RequestBatch) -> tuple[set[int], RequestCounts]:
        """Return the numbers of the requests with an output or error line, and their counts.

        A request's number is its place in the input file, from 0. An incomplete last line,
        which a crash has left, is cut off the file.
        """
        numbers: set[int] = set()
        counts = RequestCounts(batch.request_counts.total)
        for number in self._numbers(self.growing(batch, "output")):
            numbers.add(number)
            counts.completed += 1
        for number in self._numbers(self.growing(batch, "errors")):
            numbers.add(number)
            counts.failed += 1
        return numbers, counts

    def _numbers(self, path: Path) -> Iterator[int]:
        if not path.exists():
            return
        whole = 0
        with path.open("rb+") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                id_ = msgspec.json.decode(line, type=OutputId).id
                yield int(str(id_).rpartition("_")[2])
            lines.truncate(whole)


def new_batch_id() -> str:
    """Return the id of a new batch."""
    return f"batch_{secrets.token_hex(12)}"


def no_batch(id_: str) -> HttpError:
    """Make the error for an id without a batch."""
    return HttpError(f"there is no batch {id_[:100]!r} of yours", 404, "batch_not_found")
