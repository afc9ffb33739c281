"""Pace: how fast waiting work is done, for a guess at when to try again.

Used by the dispatch. It measures the time between the ends of requests and probes, only while there
is more to do: a quiet hour says nothing about how fast the engine is.
"""

from collections.abc import Callable

WEIGHT = 0.1  # of the newest time between two ends
LEAST, MOST = 1.0, 60.0  # seconds a client is told to wait


class Pace:
    """The mean time between two ends, lately."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seconds: float | None = None  # between two ends
        self._last: float | None = None  # when the last one was; None after a quiet time

    def note_end(self, remaining: int) -> None:
        """A request or probe has ended; so many wait or run."""
        now = self._clock()
        if self._last is not None:
            gap = now - self._last
            before = gap if self._seconds is None else self._seconds
            self._seconds = before + WEIGHT * (gap - before)
        self._last = now if remaining else None

    def seconds_for(self, items: int) -> float:
        """How long so many requests may take, within bounds."""
        return min(max(LEAST, (self._seconds or 0.0) * items), MOST)
