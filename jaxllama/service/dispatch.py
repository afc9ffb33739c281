"""Dispatch: choices on their way through the fair queue into the engine, and out of it again.

Made by the service. It lets the engine have about as many as it has slots, hears what becomes of
each, and knows at what pace answers end. Lives on the event loop; must not know HTTP.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from jaxllama.bridge import EngineThread, Told
from jaxllama.errors import QueueFull
from jaxllama.service.answers import Choice
from jaxllama.service.bounds import Bounds
from jaxllama.service.fair_queue import FairQueue

PACE_WEIGHT = 0.1  # of the newest answer in the pace
MOST_PATIENCE = 60.0  # seconds after which to try again, at most


class Dispatch:
    """Whoever waits for one engine, and whoever it has."""

    def __init__(self, bounds: Bounds, ended: Callable[[Choice], None]) -> None:
        """`ended` is told each choice that the engine is done with."""
        self.queue: FairQueue[Choice] = FairQueue(bounds.queue_requests, bounds.queue_tokens)
        self.in_engine = 0
        self._ended = ended
        self._thread: EngineThread | None = None
        self._pace = 0.0  # seconds between the ends of answers, lately
        self._last_end = 0.0

    def start(self, thread: EngineThread) -> None:
        """From now on there is an engine."""
        self._thread = thread

    def check(self, client: str, items: int, tokens: int = 0) -> None:
        """Refuse what does not fit, with a guess at when it might."""
        try:
            self.queue.check(client, items, tokens)
        except QueueFull as error:
            error.retry_after = min(max(1.0, self._pace * len(self.queue)), MOST_PATIENCE)
            raise

    def push(self, client: str, choices: Sequence[Choice]) -> None:
        """Put choices into their client's line."""
        for choice in choices:
            self.queue.push(client, choice, cost=choice.request.cost, size=choice.size)
        self._hand_out()

    def drop(self, choice: Choice) -> None:
        """A choice is not wanted any more."""
        if choice.ticket is not None and self._thread is not None:
            self._thread.cancel(choice.ticket)
        elif self.queue.remove(choice.answers.caller.client, choice):
            choice.is_over = True

    def _hand_out(self) -> None:
        """Let the engine have what it can use, and a few so that no slot waits for the loop."""
        if self._thread is None:
            return
        slots = self._thread.engine.config.slots
        while self.in_engine < slots + max(1, slots // 4):
            choice = self.queue.pop()
            if choice is None:
                return
            self.in_engine += 1
            tell = partial(self._told, choice)
            choice.ticket = self._thread.submit(choice.request, choice.tail, tell)

    def _told(self, choice: Choice, told: Told) -> None:
        """The engine has something to say about a choice."""
        choice.answers.tell(choice, told)
        if choice.is_over:
            self.in_engine -= 1
            now = asyncio.get_running_loop().time()
            self._pace += PACE_WEIGHT * (now - self._last_end - self._pace)
            self._last_end = now
            self.queue.ended(choice.answers.caller.client, choice.unused)
            self._hand_out()
            self._ended(choice)
