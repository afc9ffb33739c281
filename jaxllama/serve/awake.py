"""An event loop whose clock stands still while the process does.

Used by the command that serves. A process may be stopped for minutes (SIGSTOP, a debugger, a
virtual machine that is moved). No deadline may pass meanwhile: neither clients nor the engine had a
chance to meet it. Timers of aiohttp and of ours all go by `loop.time`, so this is the only place.
"""

import asyncio
import selectors
import time
from collections.abc import Callable

NAP = 1.0  # seconds that the loop waits for events at most, so that its clock beats
MOST_BETWEEN_BEATS = 3.0  # seconds; what is more was spent stopped


class AwakeClock:
    """Seconds in which a process ran, as far as one thread that beats regularly can tell.

    `time` may be called by any thread, `beat` by one.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._state = monotonic(), 0.0  # the last beat, and seconds lost by then; replaced whole

    def beat(self) -> None:
        """Notice that the process runs."""
        last, lost = self._state
        now = self._monotonic()
        self._state = now, lost + max(0.0, now - last - MOST_BETWEEN_BEATS)

    def time(self) -> float:
        """Seconds since some moment, without those lost."""
        last, lost = self._state
        return min(self._monotonic(), last + MOST_BETWEEN_BEATS) - lost


class BeatingSelector(selectors.DefaultSelector):
    """The system's selector, which waits for a nap at most and beats a clock."""

    def __init__(self, clock: AwakeClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for events; may return none before the timeout."""
        self._clock.beat()
        events = super().select(NAP if timeout is None else min(timeout, NAP))
        self._clock.beat()
        return events


class AwakeLoop(asyncio.SelectorEventLoop):
    """An event loop whose timers wait for seconds in which the process ran."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._awake = AwakeClock(monotonic)
        super().__init__(BeatingSelector(self._awake))

    def time(self) -> float:
        """Seconds in which the process ran, since some moment."""
        return self._awake.time()
