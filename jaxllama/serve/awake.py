"""An event loop whose clock stops while the process is stopped.

Used by the command that serves. A process may be stopped for minutes (SIGSTOP, a debugger, a
virtual machine that is moved). No deadline may pass in that time: neither clients nor the engine
had a chance to meet it. All timers of aiohttp and of ours use `loop.time`, so it suffices to change
that.
"""

import asyncio
import selectors
import time
from collections.abc import Callable

NAP = 1.0  # longest wait of the loop for events, in seconds, so that its clock beats regularly
MOST_BETWEEN_BEATS = 3.0  # seconds; a longer gap means that the process was stopped


class AwakeClock:
    """A clock that counts only the seconds in which the process ran, not those it was stopped.

    A thread calls `beat` regularly; only one thread may. Any thread may call `time`.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        # Time of the last beat, and seconds lost so far: one tuple, so threads see both.
        self._state = (monotonic(), 0.0)

    def beat(self) -> None:
        """Record that the process runs now; a gap since the last beat counts as lost time."""
        last, lost = self._state
        now = self._monotonic()
        self._state = now, lost + max(0.0, now - last - MOST_BETWEEN_BEATS)

    def time(self) -> float:
        """Return seconds since a fixed moment, minus time in which the process stood still."""
        last, lost = self._state
        return min(self._monotonic(), last + MOST_BETWEEN_BEATS) - lost


class BeatingSelector(selectors.DefaultSelector):
    """The system's selector, limited to waits of NAP seconds; each wait beats a clock."""

    def __init__(self, clock: AwakeClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for events; may return an empty list before the timeout."""
        self._clock.beat()
        events = super().select(NAP if timeout is None else min(timeout, NAP))
        self._clock.beat()
        return events


class AwakeLoop(asyncio.SelectorEventLoop):
    """An event loop whose timers count only seconds in which the process ran."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._awake = AwakeClock(monotonic)
        super().__init__(BeatingSelector(self._awake))

    def time(self) -> float:
        """Return the seconds since a fixed moment, without pauses of the whole process."""
        return self._awake.time()
