"""Traffic: the simulated requests, with random times, lengths and shared prefixes.

Used by `simulate.py`. The same seed gives the same requests. Knows nothing of replicas.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Lengths:
    """A random number of tokens: gamma-distributed around a mean, at least 1."""

    mean: float
    spread: float = 0.0  # standard deviation over mean; 0: all are equal, 1: exponential

    def draw(self, chance: random.Random) -> int:
        """Return one length."""
        if not self.spread:
            return max(1, round(self.mean))
        shape = self.spread**-2
        return max(1, round(chance.gammavariate(shape, self.mean / shape)))


@dataclass(slots=True)
class SimulatedRequest:
    """One request: its sizes, and what becomes of it. All times are in seconds of one clock."""

    number: int
    arrived: float
    prompt: int  # tokens, with those of the shared prefix
    answer: int  # tokens
    group: int = -1  # which prefix it begins with; -1: none that another request has
    prefix: int = 0  # tokens of that prefix
    reused: int = 0  # tokens of the prefix that its replica had
    filled: int = 0  # tokens of the prompt that are in the cache
    begun: float = 0.0  # when it got its slot
    first: float | None = None  # when its first token came
    ended: float | None = None  # when its last token came
    is_lost: bool = False  # refused, or given up by its client


@dataclass(frozen=True)
class Traffic:
    """A stream of requests. With `burst` above 1, so many come at the same moment on average."""

    rate: float  # requests per second
    seconds: float
    prompt: Lengths
    answer: Lengths
    burst: float = 1.0
    groups: int = 0  # prefixes that requests share; 0: none
    prefix: int = 0  # tokens of a shared prefix, which come before those of `prompt`
    seed: int = 0

    def __iter__(self) -> Iterator[SimulatedRequest]:
        """Yield the requests by time of arrival; the times are a Poisson process, or its bursts."""
        chance, number, moment = random.Random(self.seed), 0, 0.0
        while True:
            moment += chance.expovariate(self.rate / self.burst)
            if moment >= self.seconds:
                return
            yield self._request(number, moment, chance)
            number += 1
            while chance.random() < 1 - 1 / self.burst:
                yield self._request(number, moment, chance)
                number += 1

    def _request(self, number: int, moment: float, chance: random.Random) -> SimulatedRequest:
        prompt, answer = self.prompt.draw(chance), self.answer.draw(chance)
        group, prefix = (chance.randrange(self.groups), self.prefix) if self.groups else (-1, 0)
        return SimulatedRequest(number, moment, prefix + prompt, answer, group, prefix)
