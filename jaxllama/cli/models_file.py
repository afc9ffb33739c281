"""The models file of `jaxllama serve --models-file`: which models a server has, and its rules.

TOML. Each model has a name, what `-m` takes as its path, and settings of `LLM.load` under the names
of the Python API. Read once at the start. Loads no model.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from jaxllama.durations import bytes_in, seconds_in
from jaxllama.errors import ConfigError

KEEP_ALIVE = "5m"
LOAD_TIMEOUT = "5m"
OWN = ("name", "path", "aliases", "adapters", "keep_alive", "preload")  # no settings of LLM.load


class ModelEntry(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One model of the file; the settings below `preload` are arguments of `LLM.load`."""

    name: str
    path: str | None = None  # whatever -m takes; None: the name
    aliases: list[str] = []
    adapters: dict[str, str] = {}  # folders by the names that requests give them
    keep_alive: str | float | None = None  # None: that of the file
    preload: bool = False

    slots: int | None = None
    context: int | None = None
    dtype: str | None = None
    cache_dtype: str | None = None
    kernels: str | None = None
    packed: bool | None = None
    prefill_chunk: int | None = None
    pack_prompts: bool | None = None
    steps_per_sync: int | None = None
    draft_tokens: int | None = None
    draft_model: str | None = None
    sync_ms: float | None = None
    tokenizer: str | None = None
    rope_scale: float | None = None
    rope_alpha: float | None = None
    rope_theta: float | None = None
    lora_slots: int | None = None
    lora_rank: int | None = None
    prompt_format: str | None = None
    sampling_defaults: str | None = None
    prompt_cache_mib: float | None = None
    prompt_cache_dir: str | None = None

    @property
    def loading(self) -> dict[str, Any]:
        """The arguments of `LLM.load` that the file sets for this model."""
        given = {each: getattr(self, each) for each in self.__struct_fields__ if each not in OWN}
        found = {name: value for name, value in given.items() if value is not None}
        found["model"] = self.path or self.name
        return found | ({"lora": self.adapters} if self.adapters else {})


class ModelsDocument(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The content of a models file, as parsed from TOML and not yet converted."""

    model: list[ModelEntry]
    memory: str | int | None = None  # of all models together; None: a part of the free memory
    default: str | None = None  # for requests that name no model; None: the first one
    keep_alive: str | float = KEEP_ALIVE
    load_timeout: str | float = LOAD_TIMEOUT


@dataclass(frozen=True)
class ModelsFile:
    """The models of a server, in the order of the file, with settings in seconds and bytes."""

    models: tuple[ModelEntry, ...]
    memory: int | None
    default: str | None
    load_seconds: float
    keep_alive: Mapping[str, float | None]  # by the model's name; None: for ever


def read_models_file(path: Path) -> ModelsFile:
    """Read and check a models file: TOML with the models of a server and their settings.

    Raises ConfigError if the file cannot be read or has a mistake.
    """
    try:
        written = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), ModelsDocument)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"the models file {path} cannot be read: {error}") from error
    except msgspec.ValidationError as error:
        known = ", ".join(ModelEntry.__struct_fields__)
        raise ConfigError(f"the models file {path}: {error}; a [[model]] has {known}") from error
    if not written.model:
        raise ConfigError(f"the models file {path} has no [[model]]; expected at least one")
    usual = forever_or_seconds(written.keep_alive, "keep_alive", path)
    load_seconds = forever_or_seconds(written.load_timeout, "load_timeout", path)
    if not load_seconds:
        raise ConfigError(f"the models file {path}: load_timeout must be more than 0")
    kept = {
        each.name: usual
        if each.keep_alive is None
        else forever_or_seconds(each.keep_alive, f"keep_alive of {each.name}", path)
        for each in written.model
    }
    memory = None if written.memory is None else size_of(written.memory, path)
    return ModelsFile(tuple(written.model), memory, written.default, load_seconds, kept)


def forever_or_seconds(value: str | float, name: str, path: Path) -> float | None:
    """Return the duration `value` in seconds; None, which means for ever, if it is negative.

    `value` is a number of seconds, or text such as "5m". Raises ConfigError for any other text; the
    message has `name`, the key in the models file, and `path`, the file.
    """
    seconds = seconds_in(value) if isinstance(value, str) else value
    if seconds is None:
        raise ConfigError(
            f"the models file {path}: {name} is {value!r}; expected seconds, or a text such as "
            f'"5m" (-1: for ever)'
        )
    return None if seconds < 0 else seconds


def size_of(value: str | int, path: Path) -> int:
    """Return `value`, the setting `memory` of the models file `path`, in bytes.

    `value` is a number of bytes, or text such as "16GB". Raises ConfigError for anything else.
    """
    found = bytes_in(value) if isinstance(value, str) else value
    if not found or found < 0:
        raise ConfigError(
            f'the models file {path}: memory is {value!r}; expected a size such as "16GB"'
        )
    return found
