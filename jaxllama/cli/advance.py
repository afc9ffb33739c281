"""How far a run over many items is: the count, the rate, and the time that is left.

Used by `jaxllama batch` and `jaxllama classify`. On a terminal it is a bar, elsewhere a line every
half minute. Knows no models.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jaxllama.cli.terminal import bars_on_terminal, note

SECONDS_BETWEEN_LINES = 30
MINUTE, HOUR = 60, 3600


class Advance:
    """The rate of a run, counted from the items that were done before it began."""

    def __init__(
        self,
        what: str,
        total: int,
        already: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.what = what
        self.total = total
        self.already = already
        self.clock = clock
        self.started = clock()

    def words(self, done: int) -> str:
        """Return the count, the rate and the time left as text.

        `done` includes the items that were done before the run began; the rate leaves them out.
        """
        count = f"{done} of {self.total} {self.what}"
        now, seconds = done - self.already, self.clock() - self.started
        if now <= 0 or seconds <= 0:
            return count
        rate = now / seconds
        return f"{count}, {rate:.1f}/s, {duration((self.total - done) / rate)} left"


def duration(seconds: float) -> str:
    """Return a time as text in its two largest units: 5 s, 3 min 10 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < MINUTE:
        return f"{whole} s"
    if whole < HOUR:
        return f"{whole // MINUTE} min {whole % MINUTE} s"
    return f"{whole // HOUR} h {whole % HOUR // MINUTE} min"


@contextmanager
def advance_shown(what: str, total: int, already: int = 0) -> Iterator[Callable[[int], None]]:
    """Yield a function that shows the progress of a run; call it with the number of items done.

    `what` names the items, of which there are `total`. `already` of them were done before the run,
    and count as done.
    """
    advance = Advance(what, total, already)
    shown = advance.started
    with bars_on_terminal() as draw:

        def report(done: int) -> None:
            nonlocal shown
            if draw is not None:
                draw(what, advance.words(done), done, total)
            elif advance.clock() - shown >= SECONDS_BETWEEN_LINES:
                shown = advance.clock()
                note(advance.words(done))

        yield report
