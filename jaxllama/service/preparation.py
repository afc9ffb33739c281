"""Preparation: the work on requests before the engine - tokenizing, templates, constraints.

Made by the service. Each piece of work waits in the line of its client, in a lane of cheap or of
dear work; each lane has threads of its own, so cheap work never waits for dear work. A client has
at most one piece less at work than a lane has threads, so one that floods a lane leaves a thread
to the others, and of these the client that has used the least time comes next. Lives on the event
loop; must not know HTTP or what the work is.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from jaxllama.errors import NotReady, QueueFull

T = TypeVar("T")

THREADS = 2  # of each lane
CHEAP_CHARACTERS = 16 << 10  # longer work is dear
MOST_CHARACTERS = 32 << 20  # that wait in a lane


@dataclass(eq=False)
class Piece:
    """One piece of work."""

    client: str
    work: Callable[[], Any]
    size: int  # characters
    done: asyncio.Future[Any]


@dataclass
class Line:
    """The work of one client in one lane."""

    used: float  # seconds; a new client begins with the least of all lines
    waiting: deque[Piece] = field(default_factory=deque)
    running: int = 0

    @property
    def size(self) -> int:
        """Characters that wait."""
        return sum(piece.size for piece in self.waiting)


class Lane:
    """Work of one kind: a line for each client, and threads."""

    def __init__(
        self, name: str, most: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`most` pieces may wait."""
        self._most = most
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix=name)
        self._clock = clock
        self._lines: dict[str, Line] = {}  # of clients that wait or are at work
        self._running = 0

    @property
    def waiting(self) -> int:
        """Pieces that wait for a thread."""
        return sum(len(line.waiting) for line in self._lines.values())

    async def do(self, client: str, work: Callable[[], T], size: int) -> T:
        """Do a piece of work once its turn has come; raises QueueFull if it may not wait.

        Cancelling it takes it out of its line, or forgets its result if it is at work.
        """
        self._check(client, size)
        piece = Piece(client, work, size, asyncio.get_running_loop().create_future())
        least = min((line.used for line in self._lines.values()), default=0.0)
        self._lines.setdefault(client, Line(least)).waiting.append(piece)
        self._hand_out()
        try:
            return await piece.done
        finally:
            self._drop(piece)

    def close(self) -> None:
        """Refuse what waits and end the threads after the work they do."""
        for line in self._lines.values():
            for piece in line.waiting:
                if not piece.done.done():
                    piece.done.set_exception(NotReady("the server is closed"))
            line.waiting.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _check(self, client: str, size: int) -> None:
        """Raise QueueFull where a client would take more of the lane than it leaves free."""
        line = self._lines.get(client)
        mine, characters = (len(line.waiting), line.size) if line else (0, 0)
        free = self._most - self.waiting
        room = MOST_CHARACTERS - sum(line.size for line in self._lines.values())
        if not mine and free > 0 and room > 0:
            return
        if mine + 1 > free or characters + size > room:
            raise QueueFull(
                f"{mine} requests of yours with {characters} characters wait to be prepared; the "
                f"limits for all clients are {self._most} and {MOST_CHARACTERS}, and no client "
                f"may take more than it leaves free; try again later"
            )

    def _hand_out(self) -> None:
        """Give every free thread the next piece."""
        while self._running < THREADS:
            piece = self._next()
            if piece is None:
                return
            self._running += 1
            self._lines[piece.client].running += 1
            work = asyncio.get_running_loop().run_in_executor(self._pool, self._timed, piece)
            work.add_done_callback(partial(self._ended, piece))

    def _next(self) -> Piece | None:
        """The first piece of the client that has used the least time and may have a thread."""
        able = [
            line for line in self._lines.values() if line.waiting and line.running < THREADS - 1
        ]
        if not able:
            return None
        return min(able, key=lambda line: (line.running, line.used)).waiting.popleft()

    def _timed(self, piece: Piece) -> tuple[Any, BaseException | None, float]:
        """On a thread: do the work, and tell how long it took."""
        began = self._clock()
        try:
            found, error = piece.work(), None
        except BaseException as failure:  # belongs to the request, and so does a panic in Rust
            found, error = None, failure
        return found, error, self._clock() - began

    def _ended(self, piece: Piece, work: "asyncio.Future[Any]") -> None:
        """A thread is free again."""
        self._running -= 1
        line = self._lines[piece.client]
        line.running -= 1
        if not work.cancelled():
            found, error, seconds = work.result()
            line.used += seconds
            if not piece.done.done():
                settle(piece.done, found, error)
        self._forget_if_idle(piece.client)
        self._hand_out()

    def _drop(self, piece: Piece) -> None:
        """Take a piece out of its line if it still waits there."""
        line = self._lines.get(piece.client)
        if line is not None and piece in line.waiting:
            line.waiting.remove(piece)
            self._forget_if_idle(piece.client)

    def _forget_if_idle(self, client: str) -> None:
        line = self._lines[client]
        if not line.waiting and not line.running:
            del self._lines[client]


class Preparation:
    """All work on requests before the engine, in two lanes."""

    def __init__(self, most: int) -> None:
        """`most` pieces may wait in each lane."""
        self.cheap, self.dear = Lane("prepare", most), Lane("prepare-dear", most)

    @property
    def waiting(self) -> int:
        """Pieces that wait for a thread."""
        return self.cheap.waiting + self.dear.waiting

    async def do(
        self, client: str, work: Callable[[], T], *, size: int = 0, is_dear: bool = False
    ) -> T:
        """Do a piece of work on `size` characters in a thread, in the client's turn."""
        lane = self.dear if is_dear or size > CHEAP_CHARACTERS else self.cheap
        return await lane.do(client, work, size)

    def close(self) -> None:
        """Refuse what waits and end the threads."""
        self.cheap.close()
        self.dear.close()


def settle(done: asyncio.Future[Any], found: Any, error: BaseException | None) -> None:
    """Give a piece its result."""
    if error is not None:
        done.set_exception(error)
    else:
        done.set_result(found)
