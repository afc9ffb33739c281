"""Too much at once: refused before any work, shared fairly, and a slow reader harms only itself."""

import asyncio
import socket

import pytest

from jaxllama.config import EngineConfig
from jaxllama.serve import connection
from jaxllama.service.bounds import Bounds
from jaxllama.testing import ScriptedEngine
from tests.serve.conftest import Gate, config, connect, post, running, scenario, scripted

ENDLESS = b"x" * 200


def test_a_full_queue_refuses_before_any_work_and_says_when_to_come_back():
    async def body():
        engine = scripted(ENDLESS, slots=1)
        async with running(engine, bounds=Bounds(queue_requests=4)) as live:
            gate = Gate(engine)
            clients = [await connect(live.url, post({}))]
            await gate.advance(lambda: engine.slots.claimed == 1)
            # One has the slot, two wait in the queue: half of it.
            clients += [await connect(live.url, post({})) for _ in range(2)]
            await live.until(lambda: live.service.queue.items == 2)
            live.service.model.intake.completion = None  # any work would fail
            async with live.http.post(f"{live.url}/say", json={}) as response:
                assert response.status == 429
                assert int(response.headers["Retry-After"]) >= 1
                error = (await response.json())["error"]
            assert error["code"] == "queue_full"
            assert live.service.queue.items == 2
            gate.open()
            for reader, writer in clients:
                assert b"200 OK" in await reader.readline()
                writer.close()

    scenario(body)


def test_prompts_that_wait_are_bounded_in_tokens():
    async def body():
        engine = scripted(ENDLESS, slots=1)
        bounds = Bounds(queue_tokens=100)
        async with running(engine, bounds=bounds, api_keys=("one", "two")) as live:
            gate = Gate(engine)
            one, two = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
            tasks, queue = [], live.service.queue
            for body in ({}, {"prompt": "p" * 60}):  # one has the slot, the other waits
                asking = live.status("/say", "POST", json=body, headers=one)
                tasks.append(asyncio.create_task(asking))
                await live.until(lambda: queue.running + queue.items == len(tasks))
                await gate.advance(lambda: queue.running == 1)
            assert queue.tokens == 60
            # Of the 40 left, one may not take more than it leaves; two has taken nothing.
            assert await live.status("/say", "POST", json={}, headers=one) == 429
            tasks.append(asyncio.create_task(live.status("/say", "POST", json={}, headers=two)))
            await live.until(lambda: live.service.queue.items == 2)
            gate.open()
            assert await asyncio.gather(*tasks) == [200] * 3

    scenario(body)


def test_200_requests_at_once_on_16_slots_lose_none():
    async def body():
        engine = ScriptedEngine(lambda prompt: prompt[::-1], config=config(slots=16))
        async with running(engine) as live:
            prompts = [f"request {i}" for i in range(200)]
            answers = await asyncio.gather(*(live.say(prompt=each) for each in prompts))
            assert [answer["texts"] for answer in answers] == [[each[::-1]] for each in prompts]
            await live.settled()
            assert engine.ledger["finished"] == 201  # the warm-up, too

    scenario(body)


def test_a_thousand_requests_of_one_client_do_not_starve_the_one_of_another():
    async def body():
        engine = scripted(b"abc", slots=2)
        bounds = Bounds(queue_requests=4000)
        async with running(engine, bounds=bounds, api_keys=("many", "one")) as live:
            gate = Gate(engine)
            many, one = ({"Authorization": f"Bearer {key}"} for key in ("many", "one"))
            ended = []

            async def ask(headers, name):
                assert await live.status("/say", "POST", json={}, headers=headers) == 200
                ended.append(name)

            async with asyncio.TaskGroup() as group:
                for _ in range(1000):
                    group.create_task(ask(many, "many"))
                await live.until(lambda: live.service.queue.items > 90)
                group.create_task(ask(one, "one"))
                await live.until(lambda: len(live.service.queue._accounts) == 2)
                gate.open()
            assert ended.index("one") < 20

    scenario(body)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"n": 0}, "n"),
        ({"n": -1}, "n"),
        ({"n": 17}, "n"),
        ({"n": 2**31}, "n"),
        ({"n": 2**63}, "n"),
        ({"n": 3, "max_tokens": 200}, "max_tokens"),
    ],
)
def test_more_answers_than_allowed_are_refused_before_any_work(fields, field):
    async def body():
        engine = scripted()
        async with running(engine, bounds=Bounds(request_tokens=500)) as live:
            assert (await live.say(400, **fields))["error"]["param"] == field
            assert engine.ledger["accepted"] == 1

    scenario(body)


def test_a_request_that_takes_too_long_is_answered_and_freed():
    async def body():
        engine = scripted(ENDLESS)
        async with running(engine, bounds=Bounds(request_seconds=0.05)) as live:
            gate = Gate(engine)
            assert (await live.say(504))["error"]["code"] == "timeout"
            gate.let(2)
            await live.until(lambda: not engine._live)
            gate.open()
            await live.settled()

    scenario(body)


def test_a_long_prompt_holds_up_others_by_one_chunk_at_a_time():
    """Between two tokens of a stream there is never more than one call for somebody's prompt."""
    engine = ScriptedEngine(
        lambda _: ENDLESS, config=EngineConfig(slots=4, context=2048, steps_per_sync=1)
    )
    calls = []
    prefill, decode = engine.programs.prefill, engine.programs.decode
    engine.programs.prefill = lambda *args: calls.append("prefill") or prefill(*args)
    engine.programs.decode = lambda *args: calls.append("decode") or decode(*args)

    async def body():
        async with running(engine) as live:
            gate = Gate(engine)
            stream = asyncio.create_task(live.stream(max_tokens=150))
            await gate.advance(lambda: engine.counts["running"] == 1)
            calls.clear()
            long = asyncio.create_task(live.say(prompt="p" * 1800, max_tokens=1))
            await gate.advance(lambda: engine.counts["filling"] == 1)
            gate.open()
            await asyncio.gather(stream, long)

    scenario(body)
    filling = "".join(call[0] for call in calls)
    assert filling.count("p") > 40
    assert "pp" not in filling


async def reads_nothing(live, body):
    """A client that asks and then takes nothing in; little of it fits on the way."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    host, port = live.url.removeprefix("http://").split(":")
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, (host, int(port)))
    await loop.sock_sendall(sock, post(body))
    return sock


def writing_much():
    """An engine that answers "slow" with 60,000 tokens: some 4 MB, more than any buffer takes."""
    return ScriptedEngine(
        lambda prompt: b"y" * (60_000 if prompt[0] == ord("s") else 50),
        config=EngineConfig(slots=4, context=1 << 16, steps_per_sync=1),
    )


def test_a_slow_reader_is_bounded_then_dropped_and_slows_nobody(monkeypatch):
    """It takes nothing in; what is kept for it stays within its bound, others get everything."""
    engine = writing_much()
    monkeypatch.setattr(connection, "SEND_BUFFER", 4 << 10)  # so that it is full soon

    async def body():
        bounds = Bounds(behind_events=64, behind_seconds=0.02)  # far less than the answer takes
        async with running(engine, bounds=bounds, stall_seconds=4.0) as live:
            lazy = await reads_nothing(live, {"prompt": "slow", "stream": True})
            await live.until(lambda: live.service._open)
            (answers,) = live.service._open.values()
            while live.service._open and answers.error is None:
                events = await live.stream(prompt="quick")
                assert len(events) == 52
            assert answers.error.code == "slow_reader"
            await live.settled()
            await live.until(lambda: len(live.server.crowd) <= 1)
            lazy.close()

    scenario(body)


def test_a_client_that_takes_nothing_in_is_dropped_after_the_stall_time(monkeypatch):
    monkeypatch.setattr(connection, "SEND_BUFFER", 4 << 10)

    async def body():
        async with running(writing_much(), stall_seconds=0.3) as live:
            ended = []
            live.service.observer.ended = ended.append
            lazy = await reads_nothing(live, {"prompt": "slow", "stream": True})
            await live.until(lambda: live.service._open)
            await live.until(lambda: not live.service._open)
            await live.until(lambda: not live.server.crowd)
            await live.settled()
            lazy.close()
            # Whichever is first to give it up: the writer, or the kernel.
            assert [outcome.reason in ("slow_reader", "left") for outcome in ended] == [True]

    scenario(body)
