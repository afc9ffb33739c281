"""Suspects: the requests that may have made a program fail, and the one to blame.

Used by `recovery.py` after a fault. A first fault blames no request: all live requests are
replayed. Requests that see a second fault become suspects and run alone, one after the other, until
they have drawn a few more tokens. A request that makes the engine fail while it runs alone is
guilty. Plain Python.
"""

from collections import deque

from jaxllama.engine.generation import Generation

CLEARED_AFTER = 8  # tokens a suspect must draw alone


class Suspects:
    """The requests suspected of a fault: those that wait, and the one that runs alone."""

    def __init__(self) -> None:
        self.waiting: deque[Generation] = deque()
        self.alone: Generation | None = None
        self._drawn = 0  # tokens that the suspect that runs alone has drawn

    def __bool__(self) -> bool:
        """Say whether a request suspected of a fault is waiting, or runs alone to be tested."""
        return self.alone is not None or bool(self.waiting)

    def judge(self, live: list[Generation]) -> tuple[list[Generation], Generation | None]:
        """Return which requests to replay together after a fault, and which request caused it.

        `live` are the requests in progress. The second result is None if the cause is not known. A
        request with a second fault becomes a suspect, which is replayed later, alone.
        """
        self._drawn = 0
        for generation in live:
            generation.faults += 1
        if self.alone is not None or (len(live) == 1 and live[0].faults > 1):
            guilty = self.alone if self.alone is not None else live[0]
            self.alone = None
            return [one for one in live if one is not guilty], guilty
        self.waiting.extend(one for one in live if one.faults > 1)
        return [one for one in live if one.faults == 1], None

    def excuse(self, live: list[Generation]) -> list[Generation]:
        """Return the requests to replay together after a fault that none of them caused.

        `live` are the requests in progress. Suspects stay suspects and are not returned; a suspect
        that ran alone is the next one to run alone.
        """
        if self.alone in live and self.alone is not None:
            self.waiting.appendleft(self.alone)
            self.alone, self._drawn = None, 0
        return [one for one in live if one not in self.waiting]

    def progressed(self, generation: Generation) -> None:
        """Count a drawn token if `generation` is the suspect that runs alone.

        After CLEARED_AFTER tokens the generation is no suspect any more. Other generations are
        ignored.
        """
        if generation is not self.alone:
            return
        self._drawn += 1
        if self._drawn >= CLEARED_AFTER:
            self.forget(generation)

    def forget(self, generation: Generation) -> None:
        """Remove `generation` from the suspects, as it has ended or is no longer suspected."""
        if generation in self.waiting:
            self.waiting.remove(generation)
        if generation is self.alone:
            self.alone, self._drawn = None, 0
            generation.faults = 0
