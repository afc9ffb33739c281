"""Crowds that hold connections: a thousand that dawdle, ten thousand that say nothing more."""

import asyncio
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.conftest import connect, post

ROOT = Path(__file__).parents[2]
DAWDLERS, IDLERS = 1000, 10_000
AT_A_TIME = 500  # connections being made
SPARE = 500  # files that a process has open anyway
GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"

pytestmark = pytest.mark.skipif(
    resource.getrlimit(resource.RLIMIT_NOFILE)[1] < IDLERS + SPARE,
    reason=f"needs {IDLERS + SPARE} open files: ulimit -n",
)


@pytest.fixture(autouse=True, scope="module")
def room() -> Iterator[None]:
    """As many open files as allowed, here and in the server."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def url(request) -> Iterator[str]:
    """A server in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.serve.program", json.dumps(request.param)],
        cwd=ROOT,
        env=os.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    with process.stdout:
        yield process.stdout.readline().decode().strip()
    process.kill()
    process.wait()


async def answer(url: str, raw: bytes) -> bytes:
    """The first piece of an answer, on a connection of its own."""
    reader, writer = await connect(url, raw)
    try:
        return await reader.read(1000)
    finally:
        writer.close()


async def ready(url: str) -> None:
    while b"200 OK" not in await answer(url, GET.replace(b"health", b"ready")):
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "url", [{"header_seconds": 2.0, "body_seconds": 2.0, "connections": 1100}], indirect=True
)
def test_a_thousand_slow_requests_are_each_given_up_and_hold_up_nobody(url):
    whole = post({"prompt": "a" * 50})
    half, wholes = len(whole) - 40, []

    async def dawdle(number: int, all_here: asyncio.Barrier) -> bytes:
        """A piece now and a piece then: of the head, or of the body."""
        cut = 10 if number % 2 else half
        reader, writer = await connect(url, whole[:cut])
        await all_here.wait()
        for place in range(cut, cut + 20):
            writer.write(whole[place : place + 1])
            try:
                said = await asyncio.wait_for(reader.read(100), 0.5)
            except TimeoutError:
                continue
            writer.close()
            return said
        return b""

    async def body() -> None:
        await ready(url)
        all_here = asyncio.Barrier(DAWDLERS + 1)
        async with asyncio.timeout(60):
            dawdlers = [asyncio.create_task(dawdle(i, all_here)) for i in range(DAWDLERS)]
            await all_here.wait()
            while not all(each.done() for each in dawdlers):
                wholes.append(await answer(url, whole))
            said = await asyncio.gather(*dawdlers)
        assert {each[:12] for each in said} == {b"HTTP/1.1 408"}
        assert {each[:15] for each in wholes} == {b"HTTP/1.1 200 OK"}

    asyncio.run(body())


@pytest.mark.parametrize("url", [{}], indirect=True)
def test_health_is_answered_beside_more_idle_connections_than_there_is_room_for(url):
    async def body() -> None:
        await ready(url)
        idlers = []
        async with asyncio.timeout(60):
            for number in range(1200):
                idlers.append(await connect(url, b"" if number % 2 else GET[:-2]))
                if number % 50 == 0 or number > 1000:
                    assert (await answer(url, GET)).startswith(b"HTTP/1.1 200")
        for _, writer in idlers:
            writer.close()

    asyncio.run(body())


@pytest.mark.slow
@pytest.mark.parametrize(
    "url", [{"keepalive_seconds": 8.0, "connections": IDLERS + 10}], indirect=True
)
def test_ten_thousand_idle_connections_are_borne_and_let_go(url):
    async def idle(turn: asyncio.Semaphore) -> asyncio.StreamReader:
        async with turn:
            reader, writer = await connect(url, GET)
            assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200")
        kept.append(writer)
        return reader

    kept: list[asyncio.StreamWriter] = []

    async def body() -> None:
        await ready(url)
        turn = asyncio.Semaphore(AT_A_TIME)
        async with asyncio.timeout(100):
            readers = await asyncio.gather(*(idle(turn) for _ in range(IDLERS)))
            assert (await answer(url, GET)).startswith(b"HTTP/1.1 200")
            assert await asyncio.gather(*(each.read() for each in readers)) == [b""] * IDLERS
            assert (await answer(url, GET)).startswith(b"HTTP/1.1 200")
        for writer in kept:
            writer.close()

    asyncio.run(body())
