"""Dispatch: requests and probes on their way through the fair queue into the engine, and back.

Made by the service. It refuses what the queue has no room for, and receives the events of each
choice. Lives on the event loop; must not know HTTP.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from jaxllama.bridge import Emitted, EngineThread, Probe, Question, Ticket
from jaxllama.errors import QueueFull
from jaxllama.service.answers import Choice
from jaxllama.service.bounds import Bounds
from jaxllama.service.fair_queue import FairQueue
from jaxllama.service.pace import Pace
from jaxllama.service.slot_shares import divide_slots

T = TypeVar("T")


class Dispatch:
    """The way from the event loop into one engine."""

    def __init__(
        self,
        bounds: Bounds,
        ended: Callable[[Choice], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`ended` is called for each choice that the engine is done with."""
        self.queue: FairQueue[Ticket | Probe] = FairQueue(
            bounds.queue_requests, bounds.queue_tokens
        )
        self._reserved = bounds.reserved_slots
        self._ended = ended
        self._pace = Pace(clock)
        self._thread: EngineThread | None = None

    def start(self, thread: EngineThread) -> None:
        """From now on there is an engine; its thread empties the queue."""
        self.queue.shares = divide_slots(thread.engine.config.slots, self._reserved)
        self._thread = thread

    def check(self, client: str, items: int, tokens: int = 0) -> None:
        """Refuse what does not fit, with a guess at when it might."""
        try:
            self.queue.check(client, items, tokens)
        except QueueFull as error:
            error.retry_after = self._pace.seconds_for(len(self.queue))
            raise

    def push(self, client: str, choices: Sequence[Choice]) -> None:
        """Put choices into their client's line."""
        assert self._thread is not None
        for choice in choices:
            tell = partial(self._told, choice)
            choice.ticket = self._thread.submit(choice.request, choice.tail, tell, client)

    def drop(self, choice: Choice) -> None:
        """A choice is not wanted any more."""
        if choice.ticket is None or self._thread is None:
            return
        choice.is_over = not self._thread.cancel(choice.ticket)

    async def ask(self, client: str, questions: Sequence[Question[T]]) -> list[T]:
        """The answers to questions of one request, which are read one after the other."""
        assert self._thread is not None
        self.check(client, 1, sum(question.tokens for question in questions))
        answers = []
        for question in questions:
            answers.append(await self._thread.ask(question, client))
            self._pace.note_end(self._remaining)
        return answers

    @property
    def _remaining(self) -> int:
        return len(self.queue) + self.queue.running

    def _told(self, choice: Choice, told: Emitted) -> None:
        """The engine has events of a choice."""
        choice.answers.tell(choice, told)
        if choice.is_over:
            self._pace.note_end(self._remaining)
            self._ended(choice)
