"""The operator's options of basilisk's API: defaults of requests, also from a config.json.

A config.json of basilisk names the model's files and secrets, too; those are options of our server,
so values for them are refused or ignored with a reason.
"""

import json
import logging
from pathlib import Path
from typing import Any

import msgspec

from jaxllama.errors import ConfigError
from jaxllama.serve.dialect import DialectOptions

logger = logging.getLogger(__name__)


class BasiliskDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """Defaults of requests, named as the fields of a request."""

    temperature: float = 0.5
    top_k: int = 32
    top_p: float = 0.2
    min_p: float = 0.0
    repetition_penalty: float = 1.1
    repetition_penalty_sustain: int = 32
    repetition_penalty_decay: int = 64
    positional_repetition_penalty: float = 1.2
    min_length: int = 4
    max_new_tokens: int = 256


class BasiliskOptions(DialectOptions, frozen=True):
    """Options of this dialect: a config.json, and defaults that override those in it."""

    config: str | None = None  # path of a config.json
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    repetition_penalty_sustain: int | None = None
    repetition_penalty_decay: int | None = None
    positional_repetition_penalty: float | None = None
    min_length: int | None = None
    max_new_tokens: int | None = None


# Entries of a config.json that are options of our server -> the option.
ELSEWHERE = {
    "tokenizer": "--tokenizer",
    "model": "--model",
    "directory": "--model",
    "config": "--model",
    "embedding_model": "--embedding-model",
    "length": "--context",
}


def read_defaults(options: BasiliskOptions) -> BasiliskDefaults:
    """Return the default values of request fields: of config.json, overridden by the options."""
    found = {} if options.config is None else read_config(Path(options.config))
    own = {name: getattr(options, name) for name in BasiliskDefaults.__struct_fields__}
    found |= {name: value for name, value in own.items() if value is not None}
    try:
        return msgspec.convert(found, BasiliskDefaults)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{options.config} is wrong: {error}") from error


def read_config(path: Path) -> dict[str, Any]:
    """Return the default values of request fields in a config.json; warn of other entries.

    Raises ConfigError if the file cannot be read, or holds a shared secret.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(entries, dict):
        raise ConfigError(f"{path} holds {type(entries).__name__}; expected a JSON object")
    if entries.get("shared_secret") is not None:
        raise ConfigError(
            f"{path} has a shared_secret; remove it, and start the server with "
            f"--api-key-file: its keys are the secrets of all APIs"
        )
    known = BasiliskDefaults.__struct_fields__
    for name, value in entries.items():
        if name not in known and value is not None:
            option = ELSEWHERE.get(name)
            hint = f"use {option} instead" if option else "there is no such option"
            logger.warning("%s: %s has no effect here; %s", path, name, hint)
    return {name: value for name, value in entries.items() if name in known}
