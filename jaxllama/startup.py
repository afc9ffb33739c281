"""The start of a program that loads a model: what it is doing, in lines for the person who waits.

Made by the commands and the server. `report` is what `LLM.load` calls with its progress; a thread
says every ten seconds what still goes on. Knows no model.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

COMPILING = "compiling "  # and the name of a program
WORDS = {"weights": "loading weights", "programs": "loading programs"}
SILENCE = 10.0  # seconds without a line at most
SECONDS_PER_LOOK = 1.0


@dataclass(frozen=True)
class StartupStage:
    """A part of a start: something of which `done` of `total` is done."""

    what: str
    done: int
    total: int
    began: float


class Startup:
    """The progress of one start; as a context, it also says what goes on for long."""

    def __init__(
        self,
        say: Callable[[str], None],
        *,
        keeps_programs: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`keeps_programs`: the next start will not compile again."""
        self.stage: StartupStage | None = None  # replaced whole: other threads read it
        self._say, self._keeps_programs, self._clock = say, keeps_programs, clock
        self._last_line = clock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._remind, name="startup", daemon=True)

    def report(self, what: str, done: int, total: int) -> None:
        """Take in progress; each program that has to be compiled gets a line."""
        previous = self.stage
        is_new = previous is None or previous.what != what
        began = self._clock() if previous is None or is_new else previous.began
        self.stage = StartupStage(what, done, total, began)
        if is_new and what.startswith(COMPILING):
            self._write(f"{describe(what, done, total, keeps_programs=self._keeps_programs)}...")

    def remind(self) -> None:
        """Say what still goes on, if nothing was said for long."""
        stage, now = self.stage, self._clock()
        if stage is not None and now - self._last_line >= SILENCE:
            self._write(f"still {words_of(stage)}, {now - stage.began:.0f} s")

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
        while not self._over.wait(SECONDS_PER_LOOK):
            self.remind()


def describe(what: str, done: int, total: int, *, keeps_programs: bool = True) -> str:
    """A stage in words: of a program that is compiled, which it is and of how many."""
    if not what.startswith(COMPILING):
        return WORDS.get(what, what)
    when = ", first start only" if keeps_programs else ""
    return f"compiling{when}: {what.removeprefix(COMPILING)} ({done + 1} of {total})"


def words_of(stage: StartupStage) -> str:
    """A stage and how far it has come."""
    words = WORDS.get(stage.what, stage.what)
    if stage.what.startswith(COMPILING) or not stage.total:
        return words
    return f"{words} ({100 * stage.done // stage.total} %)"
