"""Dispatch: sends requests and probes through the fair queue to the engine, and events back.

Made by the service. It refuses requests that do not fit in the queue, and passes the engine's
events on to the answers. Runs on the event loop; must not know HTTP.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from jaxllama.bridge import Emitted, EngineThread, Probe, Question, Ticket
from jaxllama.errors import QueueFull
from jaxllama.service.answers import AnswerChoice
from jaxllama.service.bounds import Bounds
from jaxllama.service.fair_queue import FairQueue
from jaxllama.service.pace import Pace
from jaxllama.service.slot_shares import divide_slots

T = TypeVar("T")


class Dispatch:
    """Connects the event loop with one engine."""

    def __init__(
        self,
        bounds: Bounds,
        ended: Callable[[AnswerChoice], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make an empty queue for the requests of all clients.

        `bounds` has the limits of the queue and the number of reserved slots. `ended` is called
        with each answer that the engine has ended. `clock` returns a time in seconds.
        """
        self.queue: FairQueue[Ticket | Probe] = FairQueue(
            bounds.queue_requests, bounds.queue_tokens
        )
        self._reserved = bounds.reserved_slots
        self._ended = ended
        self._pace = Pace(clock)
        self._thread: EngineThread | None = None

    def start(self, thread: EngineThread) -> None:
        """Set the engine thread that takes work from the queue, and reserve some of its slots."""
        self.queue.shares = divide_slots(thread.engine.config.slots, self._reserved)
        self._thread = thread

    def check(self, client: str, items: int, tokens: int = 0) -> None:
        """Raise QueueFull unless the client may queue `items` more requests.

        `tokens` is the number of their prompt tokens. The error says in `retry_after` how many
        seconds to wait.
        """
        try:
            self.queue.check(client, items, tokens)
        except QueueFull as error:
            error.retry_after = self._pace.seconds_for(len(self.queue))
            raise

    def push(self, client: str, choices: Sequence[AnswerChoice]) -> None:
        """Put answers to be generated into the queue, from which the engine thread takes them.

        `client` is the name of the client who asked for them.
        """
        assert self._thread is not None
        for choice in choices:
            receive = partial(self._receive, choice)
            choice.ticket = self._thread.submit(choice.request, choice.tail, receive, client)

    def drop(self, choice: AnswerChoice) -> None:
        """Cancel an answer, `choice`, that waits in the queue or is being generated."""
        if choice.ticket is None or self._thread is None:
            return
        choice.is_over = not self._thread.cancel(choice.ticket)

    async def ask(self, client: str, questions: Sequence[Question[T]]) -> list[T]:
        """Return the engine's result for each question, computed one after the other.

        A question is an engine task that draws no tokens. Raises QueueFull if the client may not
        queue the tokens of all questions.
        """
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

    def _receive(self, choice: AnswerChoice, update: Emitted) -> None:
        """Pass on what the engine reports about the answer `choice` to the client's stream.

        `update` is the answer's new events or its error. If the answer has ended, also calls the
        function `ended` that the constructor got. Runs on the event loop.
        """
        choice.answers.receive(choice, update)
        if choice.is_over:
            self._pace.note_end(self._remaining)
            self._ended(choice)
