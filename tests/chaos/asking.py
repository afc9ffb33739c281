"""Well-behaved clients: their requests, and the times they wait.

Used by every attack. Sends only fields that every version of the server knows.
"""

import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import aiohttp

from tests.chaos.report import spread
from tests.chaos.target import Target

PATIENCE = 120.0  # seconds that a request may take
WORDS = (
    *("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world"),
    *("school", "state", "family", "student", "group", "country", "problem", "hand", "part"),
)


def words(count: int, seed: object) -> str:
    """Return a text of `count` words; different seeds give different texts."""
    return " ".join(random.Random(str(seed)).choices(WORDS, k=count))


class Client:
    """A client with one key; it opens a connection for every request."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self.http, self.url = http, url
        self.sent = 0

    async def ask(self, path: str, body: dict[str, Any] | bytes) -> tuple[int, bytes]:
        """Send one POST; return status and body of the answer, status 0 if the connection broke."""
        given = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        try:
            async with self.http.post(self.url + path, data=given, headers=headers) as response:
                return response.status, await response.read()
        except (aiohttp.ClientError, OSError) as error:
            return 0, type(error).__name__.encode()

    async def stream(self, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Yield the events of a streamed completion; raise ClientError if it is refused or cut."""
        path, body = "/v1/completions", body | {"stream": True}
        async with self.http.post(self.url + path, json=body) as response:
            response.raise_for_status()
            async for line in response.content:
                if line.startswith(b"data: {"):
                    yield json.loads(line[6:])

    async def first_token(self, waits: "Waits") -> None:
        """Record the seconds to the first token of a short completion without cached prefix."""
        started = time.perf_counter()
        moments = await self._moments(2, waits)
        waits.seconds += [moment - started for moment in moments[:1]]

    async def between_tokens(self, tokens: int, waits: "Waits") -> None:
        """Record the seconds between the events of one stream."""
        moments = await self._moments(tokens, waits)
        waits.seconds += [late - early for early, late in pairwise(moments)]

    async def _moments(self, count: int, waits: "Waits") -> list[float]:
        """Stream a completion without cached prefix; return the event times, record failures."""
        self.sent += 1
        prompt = words(8, f"{os.getpid()}, {id(self)}, {self.sent}")
        body = {"prompt": prompt, "max_tokens": count, "temperature": 0, "ignore_eos": True}
        moments: list[float] = []
        try:
            async with asyncio.timeout(PATIENCE):
                async for event in self.stream(body):
                    if event.get("choices"):
                        moments.append(time.perf_counter())
                    elif "error" in event:
                        waits.failures[f"error event {event['error'].get('code')}"] += 1
        except TimeoutError:
            waits.seconds.append(PATIENCE)
            waits.failures["timed out"] += 1
        except aiohttp.ClientResponseError as error:
            waits.failures[f"status {error.status}"] += 1
        except (aiohttp.ClientError, OSError) as error:
            waits.failures[type(error).__name__] += 1
        return moments


@dataclass
class Waits:
    """The times that one client waits, and counts of its failures by kind."""

    seconds: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.seconds) + self.failures.total() - self.failures["timed out"]

    @property
    def figures(self) -> dict[str, Any]:
        """The median, 99th percentile and maximum of the times, and the failures by kind."""
        return {
            **spread(self.seconds),
            **({"failed": dict(self.failures)} if +self.failures else {}),
        }


@asynccontextmanager
async def client(server: Target, key: str) -> AsyncIterator[Client]:
    """Yield a client with this key."""
    async with session(key) as http:
        yield Client(http, server.url)


@asynccontextmanager
async def session(key: str) -> AsyncIterator[aiohttp.ClientSession]:
    """Yield a session with this key, which opens a connection for every request."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    limits = aiohttp.ClientTimeout(total=None)
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(connector=connector, timeout=limits, headers=headers) as http:
        yield http


async def statuses(answers: Iterable[Awaitable[tuple[int, bytes]]]) -> Counter[int]:
    """Run the requests and count the statuses of their answers."""
    return Counter(status for status, _ in await asyncio.gather(*answers))
