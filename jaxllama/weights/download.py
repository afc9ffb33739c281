"""Downloads one file over HTTP: streamed, resumable, and renamed only when complete and checked.

Called by `store.py`. Keeps the bytes received so far in NAME.part. Keeps the server's name of this
version in NAME.version, so that halves of two versions are never joined. Knows no model.
"""

import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from jaxllama.errors import CheckpointError, DownloadFailed
from jaxllama.startup import DOWNLOADING, Progress
from jaxllama.weights.binary import reason

CHUNK = 1 << 18  # bytes between two calls of progress
SECONDS_SILENT = 60  # a server that sends nothing for this long is given up
NOT_SATISFIABLE = 416
PARTIAL = 206
PLAIN = r"[\w-][\w.-]{0,95}"  # a name that is no path and no option
RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


def fetch(
    url: str, target: Path, *, check: Callable[[Path], None], progress: Progress | None = None
) -> None:
    """Download `url` to `target`; `check` must raise CheckpointError if the file is not usable.

    Resumes an interrupted download of the same version. Raises DownloadFailed if the download or
    the check fails. `progress`, if not None, is called with a label, the bytes received and those
    of the whole file.
    """
    part = PartialDownload(
        target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.version")
    )
    with download_errors(url):
        receive(url, part, progress)
        try:
            check(part.file)
        except CheckpointError as error:
            part.drop()
            raise DownloadFailed(f"{url} holds no model: {error}") from error
        part.file.replace(target)
        part.drop()


@dataclass(frozen=True)
class PartialDownload:
    """The bytes received so far, and the server's name for the version of the file."""

    file: Path
    version: Path

    @property
    def size(self) -> int:
        """Return the number of bytes received so far; 0 if the download cannot be resumed.

        A download can be resumed only if the server's name for the file's version was stored.
        """
        return self.file.stat().st_size if self.file.exists() and self.version.exists() else 0

    def begin(self, version: str | None) -> None:
        """Delete the bytes received so far, and store the file's version for the new download.

        `version` is the server's ETag or date; with None, the download cannot be resumed.
        """
        self.drop()
        if version is not None:
            self.version.write_text(version, encoding="utf-8")

    def drop(self) -> None:
        """Delete the received bytes and the version's name."""
        self.file.unlink(missing_ok=True)
        self.version.unlink(missing_ok=True)


def receive(url: str, part: PartialDownload, progress: Progress | None) -> None:
    """Request the bytes of `url` that are missing in `part`, the unfinished file, and append them.

    Raise DownloadFailed if the server ends early. `progress`, if not None, is called with a label,
    the bytes received and those of the whole file (0: unknown).
    """
    with open_from(url, part) as answer:
        start, total = extent(answer)
        if not start:
            part.begin(version_of(answer))
        elif start != part.size:
            raise DownloadFailed(f"{url} answered from byte {start}, not from {part.size}")
        label = f"{DOWNLOADING}{last_part(url)}{f', {size_text(total)}' if total else ''}"
        with part.file.open("ab" if start else "wb") as file:
            done = copy(answer, file, start, total, partial(report, progress, label))
    if total and done != total:
        raise DownloadFailed(
            f"{url} ended after {done} of {total} bytes; run it again to fetch the rest"
        )


def copy(
    answer: http.client.HTTPResponse,
    file: IO[bytes],
    done: int,
    total: int,
    progress: Callable[[int, int], None],
) -> int:
    """Append the rest of the response to `file` and sync it to disk; return the file's size.

    `done` is its size before, `total` that of the complete file, 0 if unknown, all in bytes.
    `progress` is called with the size so far and `total`.
    """
    progress(done, total)
    while block := answer.read(CHUNK):
        file.write(block)
        done += len(block)
        progress(done, total)
    file.flush()
    os.fsync(file.fileno())
    return done


def report(progress: Progress | None, label: str, done: int, total: int) -> None:
    """Call `progress(label, done, total)`; do nothing if `progress` is None.

    `label` names the download; `done` of its `total` bytes are received.
    """
    if progress is not None:
        progress(label, done, total)


def open_from(url: str, part: PartialDownload) -> http.client.HTTPResponse:
    """Request the bytes of `url` that are missing in `part`, and return the open response.

    `part` is the unfinished file. The server sends the whole file if it has changed meanwhile.
    """
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
    """Return the position of the response's first byte in the file, and the size of the file.

    The size is 0 if the server does not state it.
    """
    if answer.status != PARTIAL:
        return 0, int(answer.headers.get("Content-Length") or 0)
    found = RANGE.fullmatch(answer.headers.get("Content-Range") or "")
    if found is None:
        raise DownloadFailed(f"{answer.url} answered a range without saying which")
    return int(found[1]), 0 if found[2] == "*" else int(found[2])


def version_of(answer: http.client.HTTPResponse) -> str | None:
    """Return what identifies the file's version: a strong ETag, else Last-Modified, else None.

    A weak ETag is ignored, because it may stay the same when the bytes change.
    """
    tag = answer.headers.get("ETag")
    if tag is not None and not tag.startswith("W/"):
        return tag
    return answer.headers.get("Last-Modified")


@contextmanager
def download_errors(url: str) -> Iterator[None]:
    """Within the context, convert network and disk errors to DownloadFailed, which names `url`."""
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


def last_part(url: str) -> str:
    """Return the last part of an address's path, at most 96 characters of it."""
    return re.split("[?#]", url)[0].rpartition("/")[2][:96]


def size_text(size: int) -> str:
    """Format a number of bytes for display: `1.23 GB`, or `45 MB` below one GB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"  # noqa: PLR2004


def shortened(model: object) -> str:
    """Return in quotes the model name that the user typed, cut to 80 characters, for an error."""
    shown = repr(str(model))
    return shown if len(shown) <= 80 else f"{shown[:76]}...'"  # noqa: PLR2004
