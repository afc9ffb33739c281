"""One file over HTTP: streamed, resumable, and given its name only when whole and checked.

Called by `store.py`. Keeps what has arrived in NAME.part, and beside it what the server called that
version of the file, so that halves of two versions are never joined. Knows no model.
"""

import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from jaxllama.errors import CheckpointError, DownloadFailed
from jaxllama.weights.binary import reason

Progress = Callable[[str, int, int], None]  # what, done, total (0: unknown)

CHUNK = 1 << 18  # bytes between two calls of progress
SECONDS_SILENT = 60  # a server that sends nothing for this long is given up
NOT_SATISFIABLE = 416
PARTIAL = 206
PLAIN = r"[\w-][\w.-]{0,95}"  # a name that is no path and no option
RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


def fetch(
    url: str, target: Path, *, check: Callable[[Path], None], progress: Progress | None = None
) -> None:
    """Put the file at `url` at `target`; `check` raises CheckpointError if it is not wanted."""
    part = Part(target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.version"))
    with worded(url):
        receive(url, part, progress)
        try:
            check(part.file)
        except CheckpointError as error:
            part.drop()
            raise DownloadFailed(f"{url} holds no model: {error}") from error
        part.file.replace(target)
        part.drop()


@dataclass(frozen=True)
class Part:
    """What has arrived so far, and the server's name for the version it is part of."""

    file: Path
    version: Path

    @property
    def size(self) -> int:
        """Bytes that can be kept: none of a version that has no name."""
        return self.file.stat().st_size if self.file.exists() and self.version.exists() else 0

    def begin(self, version: str | None) -> None:
        """Forget what there was; a version without a name will not be resumed."""
        self.drop()
        if version is not None:
            self.version.write_text(version, encoding="utf-8")

    def drop(self) -> None:
        """Forget it."""
        self.file.unlink(missing_ok=True)
        self.version.unlink(missing_ok=True)


def receive(url: str, part: Part, progress: Progress | None) -> None:
    """Ask for what is missing and append it."""
    with open_from(url, part) as answer:
        start, total = extent(answer)
        if not start:
            part.begin(version_of(answer))
        elif start != part.size:
            raise DownloadFailed(f"{url} answered from byte {start}, not from {part.size}")
        with part.file.open("ab" if start else "wb") as file:
            done = copy(answer, file, start, total, progress)
    if total and done != total:
        raise DownloadFailed(
            f"{url} ended after {done} of {total} bytes; run it again to fetch the rest"
        )


def copy(
    answer: http.client.HTTPResponse,
    file: IO[bytes],
    done: int,
    total: int,
    progress: Progress | None,
) -> int:
    """Write the answer to disk, past any cache; returns the bytes the file now has."""
    while block := answer.read(CHUNK):
        file.write(block)
        done += len(block)
        if progress is not None:
            progress("downloading", done, total)
    file.flush()
    os.fsync(file.fileno())
    return done


def open_from(url: str, part: Part) -> http.client.HTTPResponse:
    """The server's answer: the rest of the file, or all of it if it has changed meanwhile."""
    headers = {"User-Agent": "jaxllama"}
    size = part.size
    if size:
        headers["Range"] = f"bytes={size}-"
        headers["If-Range"] = part.version.read_text(encoding="utf-8")
    request = urllib.request.Request(url, headers=headers)
    try:
        answer: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=SECONDS_SILENT)
    except urllib.error.HTTPError as error:
        if error.code != NOT_SATISFIABLE or not size:
            raise
        error.close()
        part.drop()
        return open_from(url, part)
    return answer


def extent(answer: http.client.HTTPResponse) -> tuple[int, int]:
    """(first byte of the answer, bytes of the whole file or 0 if the server does not say)."""
    if answer.status != PARTIAL:
        return 0, int(answer.headers.get("Content-Length") or 0)
    found = RANGE.fullmatch(answer.headers.get("Content-Range") or "")
    if found is None:
        raise DownloadFailed(f"{answer.url} answered a range without saying which")
    return int(found[1]), 0 if found[2] == "*" else int(found[2])


def version_of(answer: http.client.HTTPResponse) -> str | None:
    """A name that changes with the content; a weak ETag does not promise that."""
    tag = answer.headers.get("ETag")
    if tag is not None and not tag.startswith("W/"):
        return tag
    return answer.headers.get("Last-Modified")


@contextmanager
def worded(url: str) -> Iterator[None]:
    """Whatever networks and disks raise, as DownloadFailed."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        raise DownloadFailed(f"{url} answers {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        cause = error.reason
        words = reason(cause) if isinstance(cause, Exception) else str(cause)
        raise DownloadFailed(f"{url} cannot be reached: {words}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DownloadFailed(
            f"{url} could not be fetched: {reason(error) or type(error).__name__}"
        ) from error


def shortened(model: object) -> str:
    """What was typed, fit for one line."""
    shown = repr(str(model))
    return shown if len(shown) <= 80 else f"{shown[:76]}...'"  # noqa: PLR2004
