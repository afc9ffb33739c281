"""The starts of requests: a few at a time, in turn among the clients."""

import asyncio
import socket
from collections.abc import Iterable
from contextlib import ExitStack
from itertools import chain

from jaxllama.serve.server import ACCEPTS
from jaxllama.serve.starts import STARTS, RequestStarts
from tests.serve.conftest import running, scenario


def started(clients: Iterable[str], cancelled: Iterable[int] = ()) -> list[list[int]]:
    """Start a request of each client; return the numbers that started in each turn of the loop."""

    async def run() -> list[list[int]]:
        starts, turns = RequestStarts(), [[]]

        async def request(number: int, client: str) -> None:
            await starts.wait(client)
            turns[-1].append(number)

        tasks = [asyncio.create_task(request(*each)) for each in enumerate(clients)]
        await asyncio.sleep(0)
        for number in cancelled:
            tasks[number].cancel()
        while not all(task.done() for task in tasks):
            turns.append([])
            await asyncio.sleep(0)
        return [turn for turn in turns if turn]

    return asyncio.run(run())


def test_a_few_requests_start_at_once():
    assert started("ab") == [[0, 1]]
    assert started("a" * STARTS) == [list(range(STARTS))]


def test_many_requests_start_a_few_in_each_turn_of_the_loop_in_order():
    turns = started("a" * 3 * STARTS)
    assert max(map(len, turns)) == STARTS
    assert list(chain(*turns)) == list(range(3 * STARTS))


def test_the_last_of_a_crowd_starts_soon_if_its_client_sent_only_this_one():
    turns = started("a" * 100 + "b")
    assert 100 in turns[1]


def test_a_cancelled_request_takes_no_turn():
    turns = started("a" * 3 * STARTS, cancelled=range(STARTS, 2 * STARTS))
    assert list(chain(*turns)) == [*range(STARTS), *range(2 * STARTS, 3 * STARTS)]
    assert max(map(len, turns)) == STARTS


def test_every_request_waits_for_its_start_but_those_of_operators(monkeypatch):
    waited = []

    async def wait(_: RequestStarts, client: str) -> None:
        waited.append(client)

    monkeypatch.setattr(RequestStarts, "wait", wait)

    async def body() -> None:
        async with running() as live:
            assert await live.status("/health") == 200
            assert waited == []
            await live.say(prompt="hi")
            assert waited == ["at 127.0.0.1"]

    scenario(body)


def test_connections_wait_in_the_kernel_while_the_event_loop_accepts_none():
    async def body() -> None:
        async with running() as live:
            port = int(live.url.rpartition(":")[2])
            with ExitStack() as opened:  # no await: the loop does nothing meanwhile
                for _ in range(8 * ACCEPTS):
                    opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
            assert await live.status("/health") == 200

    scenario(body)
