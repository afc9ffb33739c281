"""Pace: the rate at which requests end, to estimate when a refused client should try again.

Used by the dispatch. It measures the time between the ends of requests and probes, only while more
work waits: idle time says nothing about the speed of the engine.
"""

from collections.abc import Callable

WEIGHT = 0.1  # weight of the newest interval in the moving average
LEAST, MOST = 1.0, 60.0  # bounds of Retry-After, in seconds


class Pace:
    """The average time between the ends of two requests, of which the latest count most."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seconds: float | None = None  # average interval between two ends
        self._last: float | None = None  # time of the last end; None after idle time

    def note_end(self, remaining: int) -> None:
        """Record that a request or a probe has ended; `remaining` others still wait or run.

        A probe is work that reads known tokens and generates none.
        """
        now = self._clock()
        if self._last is not None:
            gap = now - self._last
            before = gap if self._seconds is None else self._seconds
            self._seconds = before + WEIGHT * (gap - before)
        self._last = now if remaining else None

    def seconds_for(self, items: int) -> float:
        """Estimate the seconds until `items` requests have ended; at least LEAST, at most MOST."""
        return min(max(LEAST, (self._seconds or 0.0) * items), MOST)
