"""Rounds: the requests of one client that follow from the answers to earlier ones, such as beams.

Made by the service. The requests of one round wait together in the fair queue, and the next round
begins when all of them have ended. Runs on the event loop; must not know HTTP.
"""

import asyncio
from collections.abc import Callable, Sequence

from jaxllama.errors import QueueFull
from jaxllama.request import Event, GenerationRequest
from jaxllama.service.answers import Answers

SECONDS_PER_TRY = 0.1  # until a round tries again to get into a full queue

Admit = Callable[[Sequence[GenerationRequest]], None]  # queues requests, or raises QueueFull


class Rounds:
    """Rounds of requests, of which the first may be refused, and later ones wait for room."""

    def __init__(self, answers: Answers, admit: Admit) -> None:
        self._answers, self._admit = answers, admit
        self._is_first = True

    async def ask(self, requests: Sequence[GenerationRequest]) -> list[list[Event]]:
        """Return the events of each request; raises the error that ended one of them."""
        first = len(self._answers.choices)
        self._answers.expect(len(requests))
        await self._queue(requests)
        found: list[list[Event]] = [[] for _ in requests]
        async for index, event in self._answers:
            found[index - first].append(event)
        self._answers.retire()
        return found

    async def _queue(self, requests: Sequence[GenerationRequest]) -> None:
        while True:
            try:
                self._admit(requests)
            except QueueFull:
                if self._is_first:
                    raise
                await asyncio.sleep(SECONDS_PER_TRY)
            else:
                self._is_first = False
                return
