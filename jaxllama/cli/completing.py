"""Tab completion of the lines typed into a chat: commands, knobs, presets, models and files.

Used by `jaxllama chat` on a terminal. Where Python has no readline, nothing is completed.
"""

import glob
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

try:
    import readline as readline  # noqa: PLC0414 - the chat edits lines with it, too
except ImportError:  # built without it
    readline = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Vocabulary:
    """The words that a line may hold."""

    commands: Sequence[str]
    values: Mapping[str, Sequence[str]]  # of every knob: the values that have a name
    models: Sequence[str]

    def completions(self, line: str) -> list[str]:
        """The last words that the beginning of a line may be completed to."""
        name, space, argument = line.partition(" ")
        if not space:
            return (
                starting(name, [f"/{each} " for each in self.commands]) if name[:1] == "/" else []
            )
        if name == "/set":
            return self._settings(argument)
        if name == "/model":
            return [*starting(argument, self.models), *files(argument)]
        return files(argument) if name in ("/save", "/load") else []

    def _settings(self, argument: str) -> list[str]:
        """The knobs, or the values of one."""
        knob, space, value = argument.partition(" ")
        if not space:
            return starting(knob, [f"{each} " for each in self.values])
        return starting(value, self.values.get(knob, ()))


def starting(beginning: str, words: Sequence[str]) -> list[str]:
    """The words that begin with a text."""
    return [each for each in words if each.startswith(beginning)]


def files(beginning: str) -> list[str]:
    """The files and folders whose path begins with a text; folders end in a slash."""
    expanded = str(Path(beginning).expanduser()) if beginning.startswith("~/") else beginning
    found = sorted(glob.glob(f"{glob.escape(expanded)}*"))  # noqa: PTH207 - a text, not a path
    return [f"{each}/" if Path(each).is_dir() else each for each in found]


@contextmanager
def tab_completes(completions: Callable[[str], list[str]]) -> Iterator[None]:
    """Within, the Tab key completes the line that is being typed."""
    if readline is None:
        yield
        return
    reader = readline

    def complete(_: str, number: int) -> str | None:
        found = completions(reader.get_line_buffer()[: reader.get_endidx()])
        return found[number] if number < len(found) else None

    before, delimiters = reader.get_completer(), reader.get_completer_delims()
    reader.set_completer(complete)
    reader.set_completer_delims(" ")
    is_libedit = "libedit" in (reader.__doc__ or "")
    reader.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")
    try:
        yield
    finally:
        reader.set_completer(before)
        reader.set_completer_delims(delimiters)
