"""A server on the scripted engine, with a dialect of a few lines."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec
from aiohttp import web

from jaxllama.config import EngineConfig
from jaxllama.engine.engine import Engine
from jaxllama.errors import JaxLlamaError
from jaxllama.intake import Intake
from jaxllama.request import Event
from jaxllama.serve.decode import read_json
from jaxllama.serve.dialects import Dialect
from jaxllama.serve.keys import CALLER
from jaxllama.serve.server import Server
from jaxllama.serve.settings import Settings
from jaxllama.serve.wire import Sse, one_json
from jaxllama.service import Ask, GenerationService, Model
from jaxllama.service.bounds import Bounds
from jaxllama.testing import ByteTokenizer, ScriptedEngine
from jaxllama_formats.chatml import ChatMl
from tests.support import closed

SECONDS = 60.0  # no test takes as long


class Say(msgspec.Struct):
    """What the tests' dialect is asked."""

    prompt: str = "hello"
    messages: list[dict[str, Any]] | None = None
    n: int = 1
    stream: bool = False


class TinyDialect:
    """POST /say: the texts of all choices, whole or streamed."""

    def routes(self, service: GenerationService) -> list[web.RouteDef]:
        async def say(request: web.Request) -> web.StreamResponse:
            body, knobs = await read_json(request, Say, knobs=service.model.knobs)
            prompts = [] if body.messages is not None else [body.prompt]
            ask = Ask(prompts, body.messages, knobs, body.n)
            async with service.open(ask, request[CALLER]) as answers:
                if not body.stream:
                    texts = [""] * len(answers.requests)
                    async for index, event in answers:
                        texts[index] += event.text
                    seeds = [each.seed for each in answers.requests]
                    return one_json({"id": f"say-{answers.id}", "texts": texts, "seeds": seeds})
                async with Sse(request) as sse:
                    async for index, event in answers:
                        await sse.send(chunk(index, event))
                    await sse.finish()
            return sse.response

        return [web.post("/say", say)]

    def error_body(self, error: JaxLlamaError) -> dict[str, Any]:
        field_ = getattr(error, "field", None)
        return {"error": {"message": str(error), "code": error.code, "param": field_}}


def chunk(index: int, event: Event) -> dict[str, Any]:
    return {"index": index, "text": event.text, "kind": type(event).__name__}


@dataclass
class Running:
    """A server that listens, and a client of it."""

    server: Server
    engine: Engine
    http: aiohttp.ClientSession
    url: str
    closed: bool = field(default=False)

    @property
    def service(self) -> GenerationService:
        return self.server.service

    async def say(self, status: int = 200, **body: Any) -> dict[str, Any]:
        """The answer to one request, which must have this status."""
        async with self.http.post(f"{self.url}/say", json=body) as response:
            text = await response.text()
            assert response.status == status, text
            return json.loads(text)

    async def stream(self, **body: Any) -> list[dict[str, Any]]:
        """All events of one streamed answer."""
        async with self.http.post(f"{self.url}/say", json={"stream": True, **body}) as response:
            assert response.status == 200, await response.text()
            return events_of(await response.text())

    async def status(self, path: str, method: str = "GET", **more: Any) -> int:
        async with self.http.request(method, f"{self.url}{path}", **more) as response:
            return response.status

    async def until(self, holds: Callable[[], bool]) -> None:
        """Come back when something holds; the test's own time limit ends what never does."""
        while not holds():
            await asyncio.sleep(0.001)

    async def settled(self) -> None:
        """Nothing is held any more and the ledger adds up."""
        thread = self.service.thread
        await self.until(lambda: thread.pulse.busy_since is None and not self.service.queue)
        assert closed(self.engine)


async def connect(url: str, raw: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection of our own, on which something has been sent."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(raw)
    await writer.drain()
    return reader, writer


def post(body: Any, *more: str, path: str = "/say") -> bytes:
    """A request as it goes over the wire."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = [f"POST {path} HTTP/1.1", "Host: localhost", *more]
    if not any(line.lower().startswith("content-type") for line in more):
        head.append("Content-Type: application/json")
    if not any(line.lower().startswith(("content-length", "transfer-enc")) for line in more):
        head.append(f"Content-Length: {len(raw)}")
    return "\r\n".join(head).encode() + b"\r\n\r\n" + raw


def events_of(text: str) -> list[Any]:
    """The data of Server-Sent Events, decoded; comments are left out."""
    found: list[Any] = []
    for block in text.split("\n\n"):
        data = [line[6:] for line in block.split("\n") if line.startswith("data: ")]
        found += ["[DONE]" if each == "[DONE]" else json.loads(each) for each in data]
    return found


def scripted(answer: bytes = b"Hello!", **sizes: Any) -> ScriptedEngine:
    """An engine that says the same to everybody."""
    return ScriptedEngine(lambda _: answer, config=config(**sizes))


def config(**sizes: Any) -> EngineConfig:
    return EngineConfig(**{"slots": 4, "context": 256, "steps_per_sync": 1} | sizes)


def intake_for(engine: Engine, **tokenizer: Any) -> Intake:
    return Intake(ByteTokenizer(**tokenizer), ChatMl(), engine.bank, engine.config)


@contextlib.asynccontextmanager
async def running(
    engine: Engine | None = None,
    *,
    bounds: Bounds | None = None,
    intake: Intake | None = None,
    dialects: Sequence[Dialect] = (),
    wait: bool = True,
    seconds: float = SECONDS,
    aliases: frozenset[str] = frozenset(),
    **settings: Any,
) -> AsyncIterator[Running]:
    """A server on a free port; at the end it must have let go of everything."""
    engine = engine or scripted()
    model = Model("scripted", engine, intake or intake_for(engine), aliases)
    settings = {"port": 0, "drain_timeout": 0.0} | settings
    log_prompts = settings.get("log_prompts", False)
    service = GenerationService(lambda: model, bounds or Bounds(), log_prompts=log_prompts)
    server = Server(service, Settings(**settings), dialects or [TinyDialect()])
    await server.start()
    try:
        many = aiohttp.TCPConnector(limit=0)
        async with asyncio.timeout(seconds), aiohttp.ClientSession(connector=many) as http:
            live = Running(server, engine, http, server.url)
            if wait:
                await live.until(lambda: service.state != "loading")
            yield live
    finally:
        if isinstance(engine.step, Held):
            engine.step.gate.open()
        assert await server.stop()


def scenario(body: Any) -> None:
    """Run an async test."""
    asyncio.run(body())


class Gate:
    """Holds an engine between its steps; `let(n)` lets it make n more, `open` all of them."""

    def __init__(self, engine: Engine) -> None:
        self.steps = 0  # made since the gate was put up
        self._allowed = threading.Semaphore(0)
        self._is_open = threading.Event()
        self._step = engine.step
        engine.step = Held(self)  # type: ignore[method-assign]

    def let(self, steps: int = 1) -> None:
        for _ in range(steps):
            self._allowed.release()

    async def advance(self, holds: Callable[[], bool]) -> None:
        """Step by step, until something holds."""
        while not holds():
            before = self.steps
            self.let()
            while self.steps == before and not holds():
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.001)

    def open(self) -> None:
        self._is_open.set()
        self._allowed.release()

    def step(self) -> list[Event]:
        if not self._is_open.is_set():
            self._allowed.acquire()
        events = self._step()
        self.steps += 1
        return events


@dataclass
class Held:
    """The step of an engine behind a gate."""

    gate: Gate

    def __call__(self) -> list[Event]:
        return self.gate.step()
