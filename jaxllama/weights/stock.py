"""Stock: the models that are in the store, and the removal of one.

Called by `jaxllama list` and `jaxllama remove`. Knows the names of models by their files in the
store; knows no file format.
"""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jaxllama.errors import CheckpointError, UnknownFormat
from jaxllama.weights import open_checkpoint
from jaxllama.weights.gguf_split import first_parts
from jaxllama.weights.sentence_transformers import SentenceFolder
from jaxllama.weights.store import NAMES, disk_errors, locked, remove, store_folder


@dataclass(frozen=True)
class StockedModel:
    """One model in the store."""

    name: str  # as a command takes it
    origin: str  # hf:owner/name, also of a model that has a name; else that of the file
    path: Path
    nbytes: int
    reader: str  # "" if it is damaged; SentenceFolder: the model makes vectors of texts
    problem: str = ""


def stocked() -> list[StockedModel]:
    """Return the models in the store, sorted by name; files that are no models are left out."""
    with disk_errors():
        return sorted(find_models(store_folder()), key=lambda model: model.name)


def discard(name: str) -> StockedModel:
    """Delete the model `name` from the store and return what was deleted.

    `name` may also be the name of its file, or hf:owner/name. Raise CheckpointError unless exactly
    one model in the store matches.
    """
    models = stocked()
    found = [model for model in models if name in (model.name, model.path.name, model.origin)]
    if len(found) != 1:
        near = difflib.get_close_matches(name, [model.name for model in models], n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise CheckpointError(
            f"the store has no model {name[:80]!r}; it has "
            f"{', '.join(model.name for model in models) or 'none'}{hint}"
        )
    with disk_errors(), locked(store_folder()):
        remove(found[0].path)
    return found[0]


def find_models(folder: Path) -> Iterator[StockedModel]:
    """Yield the models in a folder, damaged ones too; other files and folders are left out."""
    names = {source.file: name for name, source in NAMES.items()}
    for path in folder.iterdir():
        if path.name.startswith(".") or path.suffix == ".part":
            continue
        reader, problem = "", ""
        try:
            with open_checkpoint(opened_path(path)) as checkpoint:
                reader = type(checkpoint).__name__
        except CheckpointError as error:
            if is_sentence_folder(path):
                reader = SentenceFolder.__name__
            elif isinstance(error, UnknownFormat):
                continue
            else:
                problem = str(error)
        owner, separator, rest = path.name.partition("--")
        known = f"hf:{owner}/{rest.replace('--', '/')}" if separator else path.name
        name = names.get(path.name, known)
        yield StockedModel(name, known, path, bytes_of(path), reader, problem)


def is_sentence_folder(path: Path) -> bool:
    """Say whether a file or folder of the store is an encoder that makes vectors of texts."""
    try:
        with SentenceFolder.open(path):
            return True
    except CheckpointError:
        return False


def opened_path(path: Path) -> Path:
    """Return the path to open for a file or folder of the store.

    It is the GGUF file if `path` is a folder with exactly one GGUF model, else `path` itself.
    """
    files = first_parts(path) if path.is_dir() else []
    return files[0] if len(files) == 1 else path


def bytes_of(path: Path) -> int:
    """Return the size in bytes of a file, or of all files in and below a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(each.stat().st_size for each in files if each.is_file())
