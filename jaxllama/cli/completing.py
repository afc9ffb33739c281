"""Tab completion of the lines typed into a chat: commands, knobs, presets, models and files.

Used by `jaxllama chat` on a terminal. Where Python has no readline, nothing is completed.
"""

import glob
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

try:
    import readline as readline  # noqa: PLC0414 - `chat.py` imports it from here
except ImportError:  # this Python was built without readline
    readline = None  # type: ignore[assignment]


@dataclass(frozen=True)
class CompletionWords:
    """The words that Tab completion knows."""

    commands: Sequence[str]
    values: Mapping[str, Sequence[str]]  # of every knob: the values that have a name
    models: Sequence[str]

    def completions(self, line: str) -> list[str]:
        """Return completions of a chat command or of its argument.

        Arguments are knobs (request parameters), their values, models and files.
        """
        name, space, argument = line.partition(" ")
        if not space:
            return (
                words_starting_with(name, [f"/{each} " for each in self.commands])
                if name[:1] == "/"
                else []
            )
        if name == "/set":
            return self._settings(argument)
        if name == "/model":
            return [*words_starting_with(argument, self.models), *files(argument)]
        return files(argument) if name in ("/save", "/load") else []

    def _settings(self, argument: str) -> list[str]:
        """Return the completions of the text after /set: names of knobs, or values of one knob."""
        knob, space, value = argument.partition(" ")
        if not space:
            return words_starting_with(knob, [f"{each} " for each in self.values])
        return words_starting_with(value, self.values.get(knob, ()))


def words_starting_with(prefix: str, words: Sequence[str]) -> list[str]:
    """Return the words that start with a prefix."""
    return [each for each in words if each.startswith(prefix)]


def files(prefix: str) -> list[str]:
    """Return the files and folders whose path starts with a prefix; folders end in a slash."""
    expanded = str(Path(prefix).expanduser()) if prefix.startswith("~/") else prefix
    found = sorted(glob.glob(f"{glob.escape(expanded)}*"))  # noqa: PTH207 - a text, not a path
    return [f"{each}/" if Path(each).is_dir() else each for each in found]


@contextmanager
def tab_completes(completions: Callable[[str], list[str]]) -> Iterator[None]:
    """Within the context, let the Tab key complete the line that is being typed.

    `completions` returns the possible words for a line.
    """
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
