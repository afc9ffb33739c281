"""A light client in a process of its own: what it measures is the server's delay.

In the process of a flood's client, a thousand connections would be opened before its answer is
read.
"""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context

from tests.chaos.asking import Client, Waits, session


class LightProcess:
    """Measures the seconds to the first token of one request at a time, in another process."""

    def __init__(self, pool: ProcessPoolExecutor, url: str, key: str) -> None:
        self._pool, self._url, self._key = pool, url, key

    async def first_token(self, waits: Waits) -> None:
        """Record the seconds to the first token of a short completion without cached prefix."""
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._pool, measure, self._url, self._key)
        waits.seconds += found.seconds
        waits.failures += found.failures


@contextmanager
def light_process(url: str, key: str) -> Iterator[LightProcess]:
    """Yield a light client with this key of the server at `url`; its process has started."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(measure, url, key).result()
        yield LightProcess(pool, url, key)


def measure(url: str, key: str) -> Waits:
    """Send one request, and return its wait or its failure."""

    async def ask() -> Waits:
        waits = Waits()
        async with session(key) as http:
            await Client(http, url).first_token(waits)
        return waits

    return asyncio.run(ask())
