"""Startup: prints the progress of a program that loads a model, as lines for the waiting user.

Made by the commands and the server. `LLM.load` calls `report` with its progress; a thread repeats
an unfinished stage after ten seconds without a line. Knows no model.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

Progress = Callable[[str, int, int], None]  # what, done, total (0: unknown)

COMPILING = "compiling "  # prefix of a stage; the name of a program follows
DOWNLOADING = "downloading "  # prefix of a stage; what it is and its size follow
WORDS = {"weights": "loading weights", "programs": "loading programs"}
SILENCE = 10.0  # most seconds without a line
SECONDS_PER_CHECK = 1.0


@dataclass(frozen=True)
class StartupStage:
    """A stage of a start, with `done` of `total` parts finished."""

    what: str
    done: int
    total: int
    began: float


class Startup:
    """The progress of one start.

    As a context manager, it also repeats long stages from a thread.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        *,
        keeps_programs: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Print lines with `say`; `clock` returns seconds.

        `keeps_programs`: compiled programs are kept for the next start, and the lines say so.
        """
        self.stage: StartupStage | None = None  # replaced whole: other threads read it
        self._say, self._keeps_programs, self._clock = say, keeps_programs, clock
        self._last_line = clock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._remind, name="startup", daemon=True)

    def report(self, what: str, done: int, total: int) -> None:
        """Record progress; print a line when a download or the compilation of a program begins.

        `what` names the stage, such as "weights" or "compiling NAME", of which `done` of `total`
        parts are finished; `total` 0: unknown.
        """
        previous = self.stage
        is_new = previous is None or previous.what != what
        began = self._clock() if previous is None or is_new else previous.began
        self.stage = StartupStage(what, done, total, began)
        if is_new and what.startswith((COMPILING, DOWNLOADING)):
            self._write(f"{describe(what, done, total, keeps_programs=self._keeps_programs)}...")

    def remind(self) -> None:
        """Print the unfinished stage if no line was printed for SILENCE seconds."""
        stage, now = self.stage, self._clock()
        if stage is not None and now - self._last_line >= SILENCE:
            self._write(f"still {describe_progress(stage)}, {now - stage.began:.0f} s")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        self.stage = None

    def _write(self, line: str) -> None:
        self._last_line = self._clock()
        self._say(line)

    def _remind(self) -> None:
        while not self._over.wait(SECONDS_PER_CHECK):
            self.remind()


def describe(what: str, done: int, total: int, *, keeps_programs: bool = True) -> str:
    """Return a text for a stage of the start, such as "loading weights" for "weights".

    `what` names the stage, of which `done` of `total` parts are finished. For the compilation of a
    program, "compiling NAME", the text has NAME and the program's number out of `total`; with
    `keeps_programs` (compiled programs are kept on disk) it says "first start only".
    """
    if not what.startswith(COMPILING):
        return WORDS.get(what, what)
    when = ", first start only" if keeps_programs else ""
    return f"compiling{when}: {what.removeprefix(COMPILING)} ({done + 1} of {total})"


def describe_progress(stage: StartupStage) -> str:
    """Return a stage in words, with the percentage done where that is known."""
    words = WORDS.get(stage.what, stage.what)
    if stage.what.startswith(COMPILING) or not stage.total:
        return words
    return f"{words} ({100 * stage.done // stage.total} %)"
