"""Stopping: what runs may finish, the rest is told, and the process ends with 0."""

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from jaxllama.serve.server import Server
from jaxllama.serve.settings import Settings
from jaxllama.service import GenerationService, Model
from jaxllama.service.bounds import Bounds
from jaxllama.service.served_models import ServedModels
from tests.serve.conftest import (
    Gate,
    TinyDialect,
    events_of,
    intake_for,
    running,
    scenario,
    scripted,
)

ROOT = Path(__file__).parents[2]
ENDLESS = b"x" * 200


def test_while_draining_streams_finish_and_new_requests_are_sent_away():
    async def body():
        engine = scripted(b"0123456789")
        async with running(engine, drain_timeout=20.0) as live:
            gate = Gate(engine)
            stream = asyncio.create_task(live.stream())
            queued = [asyncio.create_task(live.say()) for _ in range(9)]
            await live.until(lambda: len(live.service._open) == 10)
            stopping = asyncio.create_task(live.server.stop())
            await live.until(lambda: live.service.is_draining)
            assert await live.status("/ready") == 503
            assert await live.status("/health") == 200
            async with live.http.post(f"{live.url}/say", json={}) as response:
                assert response.status == 503
                assert response.headers["Connection"] == "close"
                assert "Retry-After" in response.headers
            gate.open()
            events = await stream
            assert "".join(event["text"] for event in events[:-1]) == "0123456789"
            assert [(await each)["texts"] for each in queued] == [["0123456789"]] * 9
            assert await stopping

    scenario(body)


def test_what_does_not_finish_in_time_is_told():
    async def body():
        engine = scripted(ENDLESS)
        async with running(engine, drain_timeout=0.1) as live:
            gate = Gate(engine)
            gate.let(3)
            whole = asyncio.create_task(live.say(503))
            async with live.http.post(f"{live.url}/say", json={"stream": True}) as response:
                stopping = asyncio.create_task(live.server.stop())
                events = events_of(await response.text())
            assert events[-1]["error"]["code"] == "not_ready"
            assert (await whole)["error"]["code"] == "not_ready"
            gate.open()
            assert await stopping

    scenario(body)


@dataclass
class Program:
    """A server in a process of its own."""

    process: asyncio.subprocess.Process
    url: str
    http: aiohttp.ClientSession

    async def ended(self) -> int:
        return await asyncio.wait_for(self.process.wait(), 20)


@contextlib.asynccontextmanager
async def program(**settings) -> AsyncIterator[Program]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.serve.program", json.dumps(settings)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        url = (await process.stdout.readline()).decode().strip()
        async with aiohttp.ClientSession() as http:
            yield Program(process, url, http)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def is_ready(live) -> None:
    while True:
        async with live.http.get(f"{live.url}/ready") as response:
            if response.status == 200:
                return
        await asyncio.sleep(0.02)


def test_sigterm_lets_a_stream_finish_and_exits_with_0():
    async def body():
        async with program(pace=0.002) as live:
            await is_ready(live)
            async with live.http.post(f"{live.url}/say", json={"stream": True}) as response:
                live.process.send_signal(signal.SIGTERM)
                events = events_of(await response.text())
            assert events[-1] == "[DONE]"
            assert len(events) == 202
            assert await live.ended() == 0

    scenario(body)


def test_a_second_signal_ends_it_now():
    async def body():
        async with program(pace=0.1) as live:
            await is_ready(live)
            async with live.http.post(f"{live.url}/say", json={"stream": True}) as response:
                await response.content.readline()
                live.process.send_signal(signal.SIGTERM)
                async with live.http.get(f"{live.url}/ready") as ready:
                    assert ready.status == 503
                live.process.send_signal(signal.SIGTERM)
                assert await live.ended() == 128 + signal.SIGTERM

    scenario(body)


def test_ready_is_said_when_a_token_was_made_and_not_before(caplog, monkeypatch):
    async def body():
        engine = scripted()
        gate = Gate(engine)
        service = GenerationService(lambda: Model("scripted", engine, intake_for(engine)), Bounds())
        server = Server(
            ServedModels.single(service), Settings(port=0, drain_timeout=0.0), [TinyDialect()]
        )
        stop = {}
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "add_signal_handler", lambda _, __, *about: stop.update([about]))
        running = asyncio.create_task(server.run())
        while service.thread is None:
            await asyncio.sleep(0.001)
        assert f"listening on {server.url}, loading the model" in caplog.text
        assert "ready" not in caplog.text
        gate.open()
        while f"ready: open {server.url}" not in caplog.text:
            await asyncio.sleep(0.001)
        next(iter(stop)).set()
        assert await running == (0, True)

    with caplog.at_level("INFO"):
        scenario(body)


@pytest.mark.parametrize(("host", "opens"), [("0.0.0.0", "localhost"), ("127.0.0.1", "127.0.0.1")])
def test_the_address_to_open_is_one_that_a_browser_can(host, opens):
    async def body():
        async with running(host=host) as live:
            assert live.server.open_url.startswith(f"http://{opens}:")

    scenario(body)


def test_sigterm_while_the_model_loads_ends_it():
    async def body():
        async with program(loading=0.5) as live:
            live.process.send_signal(signal.SIGTERM)
            assert await live.ended() == 0

    scenario(body)
