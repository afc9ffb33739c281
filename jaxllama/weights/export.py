"""Export: writes a model in another format, tensor by tensor, complete or not at all.

Called by `jaxllama export`. `gguf_writer.py` and `folder_writer.py` know the formats; this file
chooses one, writes beside the target under another name, and opens the result to compare it with
the source before it gets its name.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

from jaxllama.config import ModelConfig, Rope
from jaxllama.errors import CheckpointError, ConfigError, UnsupportedModel
from jaxllama.model.params import abstract_params
from jaxllama.model.rope import frequencies
from jaxllama.weights import open_checkpoint
from jaxllama.weights.base import Checkpoint, CountProgress, check_tensors
from jaxllama.weights.folder_writer import write_folder
from jaxllama.weights.gguf_writer import write_gguf

Writer = Callable[[Checkpoint, Path, CountProgress], None]

GGUF_KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")
DTYPES = {"": None, "-f32": "F32", "-f16": "F16", "-bf16": "BF16"}
TARGETS: dict[str, Writer] = {
    **{f"gguf-{kind.lower()}": partial(write_gguf, kind) for kind in GGUF_KINDS},
    **{f"safetensors{name}": partial(write_folder, dtype) for name, dtype in DTYPES.items()},
}


def export(
    source: Path, target: Path, to: str, *, replaces: bool = False, progress: CountProgress
) -> None:
    """Write the model at `source` to `target` in the format `to`, such as `gguf-q8_0`.

    `progress` is called with the number of tensors written and that of all tensors. Raises
    ConfigError if the target exists and `replaces` is false, and UnsupportedModel if the format has
    no place for something in the model.
    """
    if to not in TARGETS:
        raise ConfigError(f"--to is {to!r}; expected one of {', '.join(TARGETS)}")
    with open_checkpoint(source) as checkpoint, fresh(target, source, replaces=replaces) as made:
        check_tensors(abstract_params(checkpoint.config), checkpoint)
        TARGETS[to](checkpoint, made.path, progress)
        compare(checkpoint.config, made.path)
        made.keep()


@dataclass
class UnfinishedExport:
    """A file or folder that is being written, under a temporary name until it is complete."""

    path: Path
    target: Path

    def keep(self) -> None:
        """Rename the complete file or folder to its target name, and replace what has that name."""
        if self.target.is_dir() and not self.target.is_symlink():
            shutil.rmtree(self.target)
        self.path.replace(self.target)


class fresh:  # noqa: N801 - a context manager, used like a function
    """Within the context, a new folder beside the target; it is deleted at the end."""

    def __init__(self, target: Path, source: Path, *, replaces: bool) -> None:
        if target.exists() and not replaces:
            raise ConfigError(f"{target} exists; choose another name or add --force")
        if target.exists() and (target.samefile(source) or target in source.resolve().parents):
            raise ConfigError(f"{target} is or holds the model to read; choose another name")
        self._target = target

    def __enter__(self) -> UnfinishedExport:
        try:
            self._target.parent.mkdir(parents=True, exist_ok=True)
            self._folder = Path(mkdtemp(prefix=".writing-", dir=self._target.parent))
        except OSError as error:
            raise CheckpointError(f"{self._target} cannot be written: {error.strerror}") from error
        return UnfinishedExport(self._folder / self._target.name, self._target)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise CheckpointError(
                f"{self._target} cannot be written: {error.strerror or error}"
            ) from error


def compare(config: ModelConfig, path: Path) -> None:
    """Raise UnsupportedModel unless the model written at `path` has the configuration `config`."""
    with open_checkpoint(path) as written:
        other = written.config
        check_tensors(abstract_params(other), written)
    found = list(differences(config, other))
    if found:
        raise UnsupportedModel(
            f"the format has no place for {', '.join(found)} of the model; choose another format"
        )


def differences(one: ModelConfig, other: ModelConfig) -> Iterator[str]:
    """Yield "FIELD VALUE" for every field that means something else in `other` than in `one`.

    VALUE is the value in `one`. The names of the two models are not compared.
    """
    for name in type(one).__dataclass_fields__:
        mine, theirs = (meaning_of(name, each) for each in (one, other))
        if name == "name" or mine == theirs:
            continue
        if isinstance(mine, Rope) and isinstance(theirs, Rope):
            is_same = turn_alike(mine, theirs, one.rotated)
        elif isinstance(mine, float) and isinstance(theirs, float):
            is_same = bool(np.float32(mine) == np.float32(theirs))
        else:
            is_same = False
        if not is_same:
            yield f"{name} {mine}"


def meaning_of(name: str, config: ModelConfig) -> object:
    """Return the value of the field `name` of `config`.

    For a query scale of None, return its default, which depends on the size of a head.
    """
    if name == "query_scale":
        return config.query_scale or config.head_dim**-0.5
    return getattr(config, name)


def turn_alike(one: Rope, other: Rope, rotated: int) -> bool:
    """Say whether two rotary embeddings rotate by the same angles at all positions.

    `rotated` is the number of rotated dimensions of a head.
    """
    for is_long in (False, True):
        (slow, scale), (found, factor) = (
            frequencies(of_length(each, is_long=is_long), rotated) for each in (one, other)
        )
        if abs(scale - factor) > 1e-6 * scale or not np.allclose(slow, found, rtol=1e-6, atol=0):
            return False
    is_split = bool(one.long_factors or other.long_factors)
    return not is_split or one.original_context == other.original_context


def of_length(rope: Rope, *, is_long: bool) -> Rope:
    """Return `rope` with the frequency divisors for long texts (`is_long`), or for short ones.

    A long text is longer than the context that the model was first trained with.
    """
    return replace(rope, factors=rope.long_factors) if is_long and rope.long_factors else rope
