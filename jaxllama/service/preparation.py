"""Preparation: CPU work on requests before the engine, such as tokenizing and templates.

Made by the service. Each work item waits in the line of its client, in the lane of cheap or of dear
(expensive) work; each lane has its own threads, so cheap work never waits for dear work. A client
runs at most one item less than a lane has threads, so a client that floods a lane leaves a thread
to the others; among these, the client that has used the least time is next. Runs on the event loop;
must not know HTTP or what the work is.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from jaxllama.errors import NotReady, QueueFull

T = TypeVar("T")

THREADS = 2  # in each lane
CHEAP_CHARACTERS = 16 << 10  # work on longer texts is dear
MOST_CHARACTERS = 32 << 20  # characters that may wait in a lane


@dataclass(eq=False)
class WorkItem:
    """A function to call in a thread for a client, and the future of its result."""

    client: str
    work: Callable[[], Any]
    size: int  # characters
    done: asyncio.Future[Any]


@dataclass
class Line:
    """Work items of one client in one lane."""

    used: float  # seconds; a new client starts with the least of all lines
    waiting: OrderedDict[WorkItem, None] = field(default_factory=OrderedDict)
    running: int = 0
    size: int = 0  # characters of all work items that wait in the line

    def add(self, item: WorkItem) -> None:
        """Put a work item at the end of the line."""
        self.waiting[item] = None
        self.size += item.size

    def remove(self, item: WorkItem) -> None:
        """Remove a work item that waits in the line."""
        del self.waiting[item]
        self.size -= item.size

    def clear(self) -> None:
        """Remove all work items that wait in the line."""
        self.waiting.clear()
        self.size = 0

    def pop(self) -> WorkItem:
        """Remove and return the first work item of the line."""
        item, _ = self.waiting.popitem(last=False)
        self.size -= item.size
        return item


class Lane:
    """Cheap or expensive work: one line of items for each client, and threads that run them."""

    def __init__(
        self, name: str, most: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Make an empty lane, a queue of work for threads, in which `most` items may wait.

        `name` is the prefix of the threads' names; `clock` returns seconds.
        """
        self._most = most
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix=name)
        self._clock = clock
        self._lines: dict[str, Line] = {}  # lines of clients with waiting or running items
        self._running = 0

    @property
    def waiting(self) -> int:
        """Number of items that wait for a thread."""
        return sum(len(line.waiting) for line in self._lines.values())

    async def do(self, client: str, work: Callable[[], T], size: int) -> T:
        """Call `work` in a thread when it is the client's turn, and return its result.

        `size` is the number of characters to process. Raises QueueFull if the client may not add
        work. Cancelling the call removes the work from the queue, or drops its result if it is
        running.
        """
        self._check(client, size)
        item = WorkItem(client, work, size, asyncio.get_running_loop().create_future())
        least = min((line.used for line in self._lines.values()), default=0.0)
        self._lines.setdefault(client, Line(least)).add(item)
        self._start_next()
        try:
            return await item.done
        finally:
            self._drop(item)

    def close(self) -> None:
        """Fail waiting items with NotReady; threads end after the item they run."""
        for line in self._lines.values():
            for item in line.waiting:
                if not item.done.done():
                    item.done.set_exception(NotReady("the server is closed"))
            line.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _check(self, client: str, size: int) -> None:
        """Raise QueueFull if the client may not add a work item of `size` characters.

        The lane (a queue for threads) has room for a number of waiting items and a number of
        characters. The client's waiting items and the new one together may take at most as much of
        both as is free. A client without waiting items may add one if any room is left.
        """
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

    def _start_next(self) -> None:
        """Give waiting work items to the free threads."""
        while self._running < THREADS:
            item = self._next()
            if item is None:
                return
            self._running += 1
            self._lines[item.client].running += 1
            work = asyncio.get_running_loop().run_in_executor(self._pool, self._run_timed, item)
            work.add_done_callback(partial(self._finish, item))

    def _next(self) -> WorkItem | None:
        """Remove and return the item to run next; None if no client may start one.

        The client with the fewest running items comes first; among equals, the one that has used
        the least time.
        """
        able = [
            line for line in self._lines.values() if line.waiting and line.running < THREADS - 1
        ]
        if not able:
            return None
        return min(able, key=lambda line: (line.running, line.used)).pop()

    def _run_timed(self, item: WorkItem) -> tuple[Any, BaseException | None, float]:
        """Run an item, on a thread; return its result, its error and the seconds it took."""
        began = self._clock()
        try:
            found, error = item.work(), None
        except BaseException as failure:  # the request gets every error, including a panic in Rust
            found, error = None, failure
        return found, error, self._clock() - began

    def _finish(self, item: WorkItem, work: "asyncio.Future[Any]") -> None:
        """Set the result of an item that a thread has run, and start the next items.

        `work` is the thread's future with the result, the error and the seconds of `item`; the
        seconds are added to the time that the client has used.
        """
        self._running -= 1
        line = self._lines[item.client]
        line.running -= 1
        if not work.cancelled():
            found, error, seconds = work.result()
            line.used += seconds
            if not item.done.done():
                set_outcome(item.done, found, error)
        self._forget_if_idle(item.client)
        self._start_next()

    def _drop(self, item: WorkItem) -> None:
        """Remove a work item from its client's queue if it still waits there."""
        line = self._lines.get(item.client)
        if line is not None and item in line.waiting:
            line.remove(item)
            self._forget_if_idle(item.client)

    def _forget_if_idle(self, client: str) -> None:
        line = self._lines[client]
        if not line.waiting and not line.running:
            del self._lines[client]


class RequestPreparation:
    """Runs CPU work on requests before the engine, in a lane of cheap and one of dear work."""

    def __init__(self, most: int) -> None:
        """Make a lane for cheap and one for expensive work; in each, `most` items may wait.

        A lane is a queue of work items with threads of its own.
        """
        self.cheap, self.dear = Lane("prepare", most), Lane("prepare-dear", most)

    @property
    def waiting(self) -> int:
        """Number of items that wait for a thread."""
        return self.cheap.waiting + self.dear.waiting

    async def do(
        self, client: str, work: Callable[[], T], *, size: int = 0, is_dear: bool = False
    ) -> T:
        """Call `work` in a thread when it is the client's turn, and return its result.

        `size` is the number of characters to process. Long work, and work marked `is_dear`
        (expensive), has threads of its own, so that it does not delay cheap work. Raises QueueFull
        if too much work waits.
        """
        lane = self.dear if is_dear or size > CHEAP_CHARACTERS else self.cheap
        return await lane.do(client, work, size)

    def close(self) -> None:
        """Fail waiting items with NotReady and end the threads."""
        self.cheap.close()
        self.dear.close()


def set_outcome(done: asyncio.Future[Any], found: Any, error: BaseException | None) -> None:
    """Set the error of the future `done` if there is one, else the result `found`."""
    if error is not None:
        done.set_exception(error)
    else:
        done.set_result(found)
