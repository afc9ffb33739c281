"""A pool of worker processes; each serves one thread at a time and is replaced when it has died.

Used by the constraint compiler and by confined prompt formats. Does not know the work of the
workers.
"""

import queue
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from jaxllama.errors import NotReady, WorkerDied

ATTEMPTS = 2  # a question is asked once more if its worker died


class PooledWorker(Protocol):
    """A handle on one process."""

    @property
    def alive(self) -> bool:
        """Say whether the process still runs."""

    def kill(self) -> None:
        """End the process and free its resources; may be called again."""


W = TypeVar("W", bound=PooledWorker)
T = TypeVar("T")


class WorkerPool(Generic[W]):
    """At most `size` processes, each started when it is first needed."""

    def __init__(self, start: Callable[[], W], size: int) -> None:
        self._start, self._size = start, size
        self._is_closed = False
        # Last in, first out: only as many processes start as are busy at the same time.
        self._idle: queue.LifoQueue[W | None] = queue.LifoQueue()
        for _ in range(size):
            self._idle.put(None)  # a process that does not run yet

    def ask(self, question: Callable[[W], T]) -> T:
        """Call `question` with a free worker and return its result; blocks until a worker is free.

        `question` is a function of a worker. If the worker raises WorkerDied, `question` is called
        once more with a new worker. Raises NotReady after `close`.
        """
        worker = self._idle.get()
        try:
            for attempt in range(ATTEMPTS):
                if self._is_closed:
                    raise NotReady("the server is closing; ask again elsewhere or later")
                worker = worker or self._start()
                try:
                    return question(worker)
                except WorkerDied:
                    worker.kill()
                    worker = None
                    if attempt == ATTEMPTS - 1:
                        raise
            raise AssertionError("the last attempt returns or raises")
        finally:
            if worker is not None and not worker.alive:
                worker.kill()
                worker = None
            self._idle.put(worker)

    def start(self) -> None:
        """Start one process, so that the first call of `ask` need not wait for it."""
        self.ask(lambda _: None)

    def close(self) -> None:
        """End all processes after the running calls of `ask` have finished; none starts again."""
        self._is_closed = True
        workers = [self._idle.get() for _ in range(self._size)]
        for worker in workers:
            if worker is not None:
                worker.kill()
            self._idle.put(None)
