"""The compiler: makes each program once, where it is called or on a thread behind the callers.

Used by `programs.py`, which knows how a program is made. A call for a program that the thread is
making waits for it. Knows names of programs, no arrays.
"""

import logging
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from jax import monitoring

from jaxllama.errors import CompiledLate

logger = logging.getLogger(__name__)

# Tracing holds Python's lock; a thread that streams tokens waits at most so long for it.
SECONDS_PER_SWITCH = 0.0005
COMPILATION = "/jax/core/compile/backend_compile_duration"  # event that JAX reports


class ProgramCompiler:
    """The programs made so far, and the names of those that the thread has still to make."""

    def __init__(self, make: Callable[[str], Any]) -> None:
        """Prepare to make programs: `make(name)` returns one, and may run on any thread."""
        self.made: dict[str, Any] = {}  # read without the lock: an entry never changes
        self._make = make
        self._queue: list[str] = []  # of the thread
        self._busy: dict[str, bool] = {}  # being made; True: by the thread
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def get(self, name: str) -> Any:
        """Return the program `name`, which is made at its first use.

        If it is not made yet, make it on this thread, or wait if another thread is making it.
        """
        with self._changed:
            self._changed.wait_for(lambda: name not in self._busy)
            if name in self.made:
                return self.made[name]
            self._claim(name, by_thread=False)
        return self._finish(name)

    def is_pending(self, name: str) -> bool:
        """Say whether the background thread is making this program or has it in its queue."""
        if name in self.made:
            return False
        with self._changed:
            return name in self._queue or self._busy.get(name, False)

    @property
    def pending(self) -> tuple[str, ...]:
        """List the programs that the background thread makes now or will make, in order."""
        with self._changed:
            return (*(name for name, by_thread in self._busy.items() if by_thread), *self._queue)

    def hurry(self, name: str) -> None:
        """Move a program to the front of the background thread's queue, if it is in the queue."""
        with self._changed:
            if name in self._queue:
                self._queue.remove(name)
                self._queue.insert(0, name)

    def wait(self, name: str, seconds: float) -> None:
        """Wait until the background thread has made this program, at most `seconds`."""
        with self._changed:
            self._changed.wait_for(
                lambda: name not in self._queue and not self._busy.get(name, False), seconds
            )

    def start(self, names: Sequence[str]) -> None:
        """Start the background thread, which makes the programs `names` in this order."""
        with self._changed:
            self._queue = [name for name in names if name not in self.made]
        self._thread = threading.Thread(target=self._run, name="compiler")
        self._thread.start()

    def stop(self) -> None:
        """Empty the queue and wait until the background thread has made its present program."""
        with self._changed:
            self._queue.clear()
        self.join()

    def join(self) -> None:
        """Wait until the background thread has made all programs of its queue."""
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        """Make the programs of the queue, on the background thread.

        The interpreter's switch interval is short meanwhile, so that other threads run often.
        """
        before = sys.getswitchinterval()
        sys.setswitchinterval(min(before, SECONDS_PER_SWITCH))
        try:
            self._work()
        finally:
            sys.setswitchinterval(before)

    def _work(self) -> None:
        while True:
            with self._changed:
                # A program that a caller makes is not pending any more.
                name = next(iter(self._queue), None)
                if name is None or not threading.main_thread().is_alive():
                    self._queue.clear()
                    self._changed.notify_all()
                    return
                self._claim(name, by_thread=True)
            try:
                self._finish(name)
            except Exception:  # the next call for the program makes it again, and raises
                logger.exception("program %s cannot be compiled", name)

    def _claim(self, name: str, *, by_thread: bool) -> None:
        """Mark a program as being made and take it off the queue; the caller holds the lock.

        `by_thread`: the background thread makes it.
        """
        self._busy[name] = by_thread
        if name in self._queue:
            self._queue.remove(name)

    def _finish(self, name: str) -> Any:
        """Make a program that `_claim` marked, wake the threads that wait for it, and return it."""
        try:
            self.made[name] = self._make(name)
            return self.made[name]
        finally:
            with self._changed:
                del self._busy[name]
                self._changed.notify_all()


def forbid_compilations() -> None:
    """Let every compilation of JAX in this process raise CompiledLate."""
    monitoring.register_event_duration_secs_listener(refuse_compilation)


def allow_compilations() -> None:
    """Undo `forbid_compilations`."""
    monitoring.unregister_event_duration_listener(refuse_compilation)


def refuse_compilation(event: str, duration_secs: float, **_: str | int) -> None:
    """Raise CompiledLate if the JAX monitoring event `event` reports a compilation.

    `duration_secs` is the time that the compilation took; other arguments are ignored.
    """
    if event == COMPILATION:
        raise CompiledLate(
            f"something was compiled after the start, in {duration_secs:.2f} s; expected that "
            f"nothing is (leave out --strict-compile to allow it)"
        )
