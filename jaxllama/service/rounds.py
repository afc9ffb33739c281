"""Rounds: the requests of one client that follow from the answers to earlier ones, such as beams.

Made by the service. The requests of one round wait together in the fair queue, and the next round
begins when all of them have ended. Runs on the event loop; must not know HTTP.
"""

from collections.abc import Callable, Sequence

from jaxllama.request import Event, GenerationRequest
from jaxllama.service.answers import Answers
from jaxllama.service.patience import until_room

Admit = Callable[[Sequence[GenerationRequest]], None]  # queues requests, or raises QueueFull


class Rounds:
    """Rounds of requests, of which the first may be refused, and later ones wait for room."""

    def __init__(self, answers: Answers, admit: Admit) -> None:
        self._answers, self._admit = answers, admit
        self._is_first = True

    async def ask(self, requests: Sequence[GenerationRequest]) -> list[list[Event]]:
        """Queue requests, wait until all have ended, and return the events of each.

        Raises the error that ended one of them. If the queue is full, the first call on this object
        raises QueueFull; every later call waits for room instead.
        """
        first = len(self._answers.choices)
        self._answers.expect(len(requests))

        async def queue() -> None:
            self._admit(requests)

        await (queue() if self._is_first else until_room(queue))
        self._is_first = False
        found: list[list[Event]] = [[] for _ in requests]
        async for index, event in self._answers:
            found[index - first].append(event)
        self._answers.retire()
        return found
