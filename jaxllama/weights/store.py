"""The model store: finds, downloads and checks models, and knows the folder they are stored in.

Called by `llm.py` with the value that a user typed after `--model`, and by `jaxllama pull`. A
download gets its final name only when it is complete and checked, so a file with that name is a
valid model. Names map to a table, never to a path. Knows no file format: it calls
`open_checkpoint`.
"""

import difflib
import fcntl
import hashlib
import os
import re
import shutil
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from jaxllama.errors import CheckpointError, ConfigError, DownloadFailed
from jaxllama.startup import Progress
from jaxllama.weights import check_path, open_checkpoint
from jaxllama.weights.binary import reason
from jaxllama.weights.download import PLAIN, fetch, shortened
from jaxllama.weights.hub import hub_encoder, hub_model
from jaxllama.weights.named import DEFAULT, MODELS, RECOMMENDED, spelled_like
from jaxllama.weights.wheel import SCRATCH


class ModelSource(Protocol):
    """The origin of a model, and its name in the store."""

    @property
    def file(self) -> str:
        """Return the name of the model's file or folder in the store, the folder of all models."""

    def is_there(self, target: Path) -> bool:
        """Say whether the store has the model at `target`, without reading it."""

    def check(self, target: Path) -> None:
        """Raise CheckpointError if the model at `target`, in the store, is damaged.

        May read all of it.
        """

    def fetch(self, target: Path, progress: Progress | None) -> None:
        """Download the model to `target`, complete and checked or not at all.

        `progress`, if not None, is called with a label, the bytes so far and their total. The
        caller locks the store meanwhile.
        """

    def model(self, target: Path) -> Path:
        """Return the path of the file or folder to open for the model downloaded to `target`."""


@dataclass(frozen=True)
class WebModel:
    """A model file at an http address."""

    url: str

    @property
    def file(self) -> str:
        """Return the file name in the store: a digest of the address, and the address's last part.

        The digest keeps files of the same name from two sites apart.
        """
        last = re.split("[?#]", self.url)[0].rpartition("/")[2]
        name = last if re.fullmatch(PLAIN, last, re.ASCII) else "model"
        return f"{hashlib.sha256(self.url.encode()).hexdigest()[:8]}-{name}"

    def is_there(self, target: Path) -> bool:
        """Say whether the store has the complete file at `target`."""
        return target.is_file()

    def check(self, target: Path) -> None:
        """Check the header of the file `target`; raise CheckpointError if it is damaged."""
        open_checkpoint(target).close()

    def fetch(self, target: Path, progress: Progress | None) -> None:
        """Download the file to `target`, resuming where the last attempt stopped.

        `progress`, if not None, is called with a label, the bytes received and their total.
        """
        fetch(self.url, target, check=self.check, progress=progress)

    def model(self, target: Path) -> Path:
        """Return the path of the file itself, which is `target`."""
        return target


NAMES: dict[str, ModelSource] = {**MODELS}


def recommended_for(path: Path) -> dict[str, object]:
    """Return the sampler settings to recommend for the model at `path`.

    {} unless it is a downloaded model that this engine knows by a short name, with known settings.
    """
    for name, source in NAMES.items():
        if path.name == source.file and source.is_there(path):
            return RECOMMENDED.get(name, {})
    return {}


def resolve(
    model: str | Path | None = None, *, progress: Progress | None = None, encoder: bool = False
) -> Path:
    """Return the path of a model given by name, address, file or folder; download it if missing.

    None is the default model. `progress`, if not None, is called with a label, the bytes so far and
    their total. With `encoder`, hf:owner/name is an encoder's repository.
    """
    is_hub_encoder = encoder and isinstance(model, str) and model.startswith("hf:")
    source = hub_encoder(str(model)) if is_hub_encoder else find_source(model)
    if isinstance(source, Path):
        return source
    with disk_errors():
        folder = store_folder()
        target = folder / source.file
        if not source.is_there(target):
            with locked(folder):
                if not source.is_there(target):  # another process may have fetched it meanwhile
                    remove(target)
                    source.fetch(target, progress)
    return source.model(target)


def pull(model: str | Path | None = None, *, progress: Progress | None = None) -> Path:
    """Return the path of a model given by name, address, file or folder; download it if missing.

    A model that is in the store is checked first, and downloaded again if it is damaged. None is
    the default model. `progress`, if not None, is called with a label, the bytes so far and their
    total.
    """
    source = find_source(model)
    if isinstance(source, Path):
        open_checkpoint(source).close()
        return source
    with disk_errors():
        folder = store_folder()
        target = folder / source.file
        if source.is_there(target):
            try:
                source.check(target)
            except CheckpointError:
                with locked(folder):
                    remove(target)
    return resolve(model, progress=progress)


def find_source(model: str | Path | None) -> ModelSource | Path:
    """Return the source of a model given by name or address; for an existing path, the path.

    None is the default model. Raise CheckpointError if `model` is none of these.
    """
    if model is None:
        return NAMES[DEFAULT]
    if isinstance(model, str):
        if model in NAMES:
            return NAMES[model]
        if model.startswith("hf:"):
            return hub_model(model)
        if re.match("https?://", model):
            return WebModel(model)
        meant = None if exists(model) else spelled_like(model, NAMES)
        if meant is not None:
            return NAMES[meant]
    return existing_path(model)


def existing_path(model: str | Path) -> Path:
    """Return the path of an existing file or folder; raise CheckpointError if there is none."""
    if not exists(model):
        near = difflib.get_close_matches(str(model), NAMES, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise CheckpointError(
            f"there is no model {shortened(model)}; expected a name (such as {DEFAULT}; "
            f"`jaxllama list --names` shows all), a file or folder, hf:owner/name or an http "
            f"address{hint}"
        )
    path = Path(model)
    check_path(path)
    return path


def exists(model: str | Path) -> bool:
    """Say whether a text or path is the path of an existing file or folder."""
    try:
        return model != "" and Path(model).exists()
    except (OSError, ValueError):  # too long, or no path at all
        return False


def store_folder() -> Path:
    """Return the folder of models and create it if needed.

    It is $JAXLLAMA_HOME, else a folder of the source checkout, else one in the user's cache.
    """
    home = os.environ.get("JAXLLAMA_HOME")
    if home:
        folder = Path(home).expanduser()
    else:
        checkout = checkout_folder()
        folder = checkout / "checkpoints" if checkout else cache_folder() / "models"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cache_folder() -> Path:
    """Return the user's folder for cached files; raise ConfigError if there is no home folder."""
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
    """Return the root of the source tree that this package runs from; None if it is installed."""
    root = Path(__file__).resolve().parents[2]
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return root if project.get("project", {}).get("name") == "jaxllama" else None


def remove(target: Path) -> None:
    """Delete the file or folder `target`; do nothing if there is none."""
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within the context, hold the lock of the model store: one process at a time writes to it.

    `folder` is that of the store. Unfinished downloads of killed processes are deleted first.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        for left in folder.glob(f"{SCRATCH}*"):
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        os.close(handle)


@contextmanager
def disk_errors() -> Iterator[None]:
    """Within the context, convert each OSError to DownloadFailed.

    Its message advises to set JAXLLAMA_HOME, the folder of models.
    """
    try:
        yield
    except OSError as error:
        raise DownloadFailed(
            f"the model store cannot be used: {error.filename or ''} {reason(error)} "
            f"(set JAXLLAMA_HOME to a folder that can be written)"
        ) from error
