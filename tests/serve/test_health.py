"""Health tells the truth: by progress while serving, and not ready before a token was made."""

import asyncio
import threading
import time

import aiohttp
import pytest

from jaxllama.bridge import EngineThread, Pulse
from jaxllama.serve.server import Server
from jaxllama.serve.settings import Settings
from jaxllama.service import GenerationService, Model
from jaxllama.service.bounds import Bounds
from jaxllama.service.fair_queue import FairQueue
from jaxllama.service.served_models import ServedModels
from jaxllama.testing import ScriptedEngine
from tests.serve.conftest import (
    Gate,
    TinyDialect,
    config,
    events_of,
    intake_for,
    running,
    scenario,
    scripted,
)

ENDLESS = b"x" * 200


def test_the_port_answers_while_the_model_loads():
    async def body():
        engine = scripted()
        gate = Gate(engine)
        async with running(engine, wait=False) as live:
            assert await live.status("/health") == 200
            assert await live.status("/ready") == 503
            assert (await live.say(503))["error"]["code"] == "not_ready"
            await live.until(lambda: live.service.thread is not None)
            assert await live.status("/ready") == 503  # loaded, but has not made a token
            gate.open()
            await live.until(lambda: live.service.state == "ready")
            assert await live.status("/ready") == 200

    scenario(body)


def test_a_ready_server_says_what_it_still_compiles(monkeypatch):
    async def body():
        engine = scripted()
        pending = property(lambda _: ("decode", "peek"))
        monkeypatch.setattr(type(engine.programs), "pending", pending)
        async with running(engine) as live, live.http.get(f"{live.url}/ready") as response:
            found = await response.json()
            assert response.status == 200
            assert found["compiling"] == {"what": "decode", "remaining": 2}

    scenario(body)


def test_while_the_model_loads_ready_says_what_is_compiled_and_how_much_remains():
    async def body():
        engine, loading, go_on = scripted(), threading.Event(), threading.Event()
        model = Model("scripted", engine, intake_for(engine))

        def open_model():
            service.startup.report("compiling decode", 1, 9)
            loading.set()
            go_on.wait(20)
            return model

        service = GenerationService(open_model, Bounds())
        server = Server(
            ServedModels.single(service), Settings(port=0, drain_timeout=0.0), [TinyDialect()]
        )
        await server.start()
        try:
            await asyncio.to_thread(loading.wait, 20)
            async with aiohttp.ClientSession() as http:
                async with http.get(f"{server.url}/ready") as response:
                    found = await response.json()
                    assert response.status == 503
                assert found["loading"].pop("seconds") >= 0
                assert found == {
                    "status": "loading",
                    "loading": {"what": "compiling decode", "done": 1, "remaining": 8},
                }
                go_on.set()
                await service.ready.wait()
                async with http.get(f"{server.url}/ready") as response:
                    assert await response.json() == {"status": "ready"}
        finally:
            assert await server.stop()

    scenario(body)


def test_an_engine_whose_first_token_is_no_number_never_becomes_ready():
    async def body():
        async with running(ScriptedEngine(lambda _: [None], config=config())) as live:
            assert live.service.state == "failed"
            assert await live.status("/health") == 503
            assert await live.status("/ready") == 503
            assert live.service.failed.is_set()

    scenario(body)


def test_an_engine_that_hangs_is_unhealthy_and_everybody_is_told():
    async def body():
        engine = scripted(ENDLESS)
        async with running(engine, bounds=Bounds(patience_seconds=0.2)) as live:
            gate = Gate(engine)
            gate.let(3)
            asked = [asyncio.create_task(live.say(503)) for _ in range(6)]
            async with live.http.post(f"{live.url}/say", json={"stream": True}) as response:
                await live.until(lambda: live.service.state == "stalled")
                assert await live.status("/health") == 503
                assert await live.status("/ready") == 503
                events = events_of(await response.text())
            assert events[-1]["error"]["code"] == "engine_stopped"
            assert [(await each)["error"]["code"] for each in asked] == ["engine_stopped"] * 6
            assert (await live.say(503))["error"]["code"] == "not_ready"
            gate.open()
            await live.settled()
            assert await live.status("/health") == 200
            assert (await live.say())["texts"] == ["x" * 200]

    scenario(body)


@pytest.mark.parametrize(
    ("longest", "waited", "stalled"),
    [(0.1, 9.0, False), (0.1, 11.0, True), (4.0, 19.0, False), (4.0, 21.0, True)],
)
def test_stalled_is_ten_seconds_or_five_times_the_longest_step(longest, waited, stalled):
    thread = EngineThread(scripted(), FairQueue(1, 1))
    thread.pulse = Pulse(9, 1.0, longest, time.monotonic() - waited)
    assert (thread.stalled() is not None) is stalled


def test_an_engine_with_nothing_to_do_is_never_stalled():
    thread = EngineThread(scripted(), FairQueue(1, 1))
    thread.pulse = Pulse(9, 1.0, 0.1, None)
    assert thread.stalled() is None


def test_an_engine_that_dies_gives_each_request_one_clear_error():
    async def body():
        engine = scripted(ENDLESS)
        async with running(engine) as live:
            gate = Gate(engine)
            gate.let(3)
            asked = [asyncio.create_task(live.say(503)) for _ in range(9)]
            async with live.http.post(f"{live.url}/say", json={"stream": True}) as response:
                await live.until(lambda: len(live.service._open) == 10)
                engine.programs.empty = lambda: 1 / 0  # nothing to start over with
                engine.programs.decode = lambda *_: 1 / 0
                gate.open()
                events = events_of(await response.text())
            assert [event for event in events if "error" in event] == events[-1:]
            assert [(await each)["error"]["code"] for each in asked] == ["engine_stopped"] * 9
            await live.until(live.service.failed.is_set)
            assert await live.status("/health") == 503

    scenario(body)


def test_a_fault_that_can_be_replayed_is_not_noticed():
    """Of eight requests in eight threads of time, none is lost when a program fails once."""

    async def body():
        engine = scripted(b"0123456789", slots=4)
        async with running(engine) as live:
            decode, calls = engine.programs.decode, []

            def fails_once(*args):
                calls.append(args)
                if len(calls) == 4:
                    raise RuntimeError("the device is gone")
                return decode(*args)

            engine.programs.decode = fails_once
            answers = await asyncio.gather(*(live.say() for _ in range(8)))
            assert [answer["texts"] for answer in answers] == [["0123456789"]] * 8
            assert engine.recovery.faults == 1

    scenario(body)
