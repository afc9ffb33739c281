"""Flags of another program: their names, defaults, and why some of them cannot be used here.

Used by `jaxllama compat`. A flag is used or refused by name, never accepted without effect: the
values remember which of them were read.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click


@dataclass(frozen=True)
class TheirFlag:
    """One flag of another program."""

    names: tuple[str, ...]  # the last one is the longest
    ours: str  # what it is here, in Markdown
    default: object = None  # theirs
    kind: type = str  # bool: a switch
    many: bool = False
    instead: str | None = None  # refused: what to do instead
    difference: str = ""
    required: bool = False

    @property
    def key(self) -> str:
        """The key of the flag's value in `TheirValues`: its last name, with underscores."""
        return self.names[-1].lstrip("-").replace("-", "_")


def refused(*names: str, instead: str, kind: type = str) -> TheirFlag:
    """Return a flag that raises UsageError if it is given; the error advises to do `instead`.

    `names` are those of the flag, the longest one last; `kind` is the type of its value, bool for a
    flag without a value.
    """
    return TheirFlag(names, "refused", kind=kind, instead=instead, difference=instead)


class TheirValues:
    """The values of the flags, with defaults for those not given; it records which are read."""

    def __init__(self, values: Mapping[str, Any], given: Mapping[str, str]) -> None:
        self._values = values
        self._given = given  # key -> the flag's name
        self._unread = dict(given)

    def __getitem__(self, key: str) -> Any:
        self._unread.pop(key, None)
        return self._values[key]

    def is_given(self, key: str) -> bool:
        """Say whether the flag with this key is on the command line."""
        return key in self._given

    def check_all_read(self, why: str) -> None:
        """Raise UsageError for a flag that is on the command line and has not been read.

        `why` ends the sentence "FLAG has no effect".
        """
        for name in self._unread.values():
            raise click.UsageError(f"{name} has no effect {why}; leave it out")


Translate = Callable[[TheirValues], list[str]]  # returns our command and its arguments


@dataclass(frozen=True)
class Origin:
    """Another program: its flags, and the function that makes a command line of ours of them."""

    name: str
    summary: str
    flags: tuple[TheirFlag, ...]
    translate: Translate
    argument: str | None = None  # of the command line: the model's file


def option(name: str, value: object) -> list[str]:
    """Return a jaxllama option and its value as a list of one argument; [] if the value is None."""
    if value is None:
        return []
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return [f"{name}={text}"]


def switch(name: str, is_on: bool) -> list[str]:
    """Return [name], a jaxllama option without a value, if `is_on`; else []."""
    return [name] if is_on else []


def address(text: str, flag: str) -> list[str]:
    """Return --host and --port for an address HOST:PORT; raise UsageError for another text.

    `flag` is the name of the other program's flag.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit():
        raise click.UsageError(f"{flag} is {text!r}; expected HOST:PORT")
    return [*option("--host", host.strip("[]")), *option("--port", port)]


def folder_of(model: str) -> Path:
    """Return the path of a model if it is a folder, else the folder that holds its file."""
    return Path(model) if Path(model).is_dir() else Path(model).parent


def check_beside(path: str | None, folder: Path, flag: str, names: tuple[str, ...]) -> None:
    """Raise UsageError unless the file `path` is in `folder` and has one of these names.

    None is accepted. `flag` is the name of the other program's flag.
    """
    if path is None:
        return
    if Path(path).name not in names or Path(path).resolve().parent != folder.resolve():
        raise click.UsageError(
            f"{flag} is {path}, which is not read from there; put it into {folder} "
            f"as {' or '.join(names)} and leave {flag} out"
        )
