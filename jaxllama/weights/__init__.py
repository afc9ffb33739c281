"""Weights: opens model files and folders through one socket; `open_checkpoint` finds the format.

Called by `llm.py` and the CLI. Knows no format by name: they come through entry points.
"""

import stat
from pathlib import Path

from jaxllama.errors import BrokenPlugin, CheckpointError, JaxLlamaError, UnknownFormat
from jaxllama.registry import WEIGHTS, load_plugins
from jaxllama.weights.base import Checkpoint
from jaxllama.weights.binary import reason

SHOWN_FILES = 8


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Open the model at `path` with the first format that recognises it.

    Raises UnknownFormat if no format does, and another CheckpointError if the model is unusable.
    """
    path = Path(path)
    check_path(path)
    plugins = load_plugins(WEIGHTS, Checkpoint)  # type: ignore[type-abstract]
    try:
        for name, format_class in plugins.loaded.items():
            if recognizes(name, format_class, path):
                return format_class.open(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {reason(error)}") from error
    broken = "".join(f"; {error}" for error in plugins.broken.values())
    raise UnknownFormat(
        f"{path} ({contents(path)}) is no model in a known format; "
        f"formats: {', '.join(plugins.loaded) or 'none'}{broken}"
    )


def recognizes(name: str, format_class: type[Checkpoint], path: Path) -> bool:
    """Say whether the weight format `name` recognises the model at `path`.

    Raise BrokenPlugin if the code of `format_class` fails with an unexpected error.
    """
    try:
        return format_class.recognizes(path)
    except (JaxLlamaError, OSError):
        raise
    except Exception as error:
        raise BrokenPlugin(
            f"weight format {name!r} failed on {path}: {type(error).__name__}: {error}"
        ) from error


def check_path(path: Path) -> None:
    """Raise CheckpointError unless `path` is a folder or a non-empty regular file."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be opened: {reason(error)}") from error
    if stat.S_ISDIR(status.st_mode):
        return
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path} is neither a file nor a folder; expected a model")
    if status.st_size == 0:
        raise CheckpointError(f"{path} is empty; expected a model")


def contents(path: Path) -> str:
    """Describe a file by its size, or a folder by the first names in it, for an error message."""
    if path.is_file():
        return f"a file of {path.stat().st_size} bytes"
    try:
        names = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be listed: {reason(error)}") from error
    if not names:
        return "an empty folder"
    more = f" and {len(names) - SHOWN_FILES} more" if len(names) > SHOWN_FILES else ""
    return f"a folder with {', '.join(names[:SHOWN_FILES])}{more}"
