"""A server on the scripted engine, with a small dialect for tests."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
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
from jaxllama.serve.dialect import Dialect
from jaxllama.serve.keys import CALLER
from jaxllama.serve.server import Server
from jaxllama.serve.settings import Settings
from jaxllama.serve.wire import ResponseStream, one_json
from jaxllama.service import Ask, GenerationService, Model, ServedEncoder
from jaxllama.service.bounds import Bounds
from jaxllama.service.served_models import ModelNeeds, ModelPlan, ModelRules, ServedModels
from jaxllama.testing import ByteTokenizer, ScriptedEngine
from jaxllama_formats.chatml import ChatMl
from tests.serve.browsing import browser, page, site  # noqa: F401 - fixtures
from tests.support import closed, installed_samplers

SECONDS = 60.0  # time limit of a test


class Say(msgspec.Struct):
    """The request body of the tests' dialect."""

    prompt: str = "hello"
    messages: list[dict[str, Any]] | None = None
    n: int = 1
    stream: bool = False


class TinyDialect(Dialect):
    """POST /say: the texts of all choices, whole or streamed."""

    name = "tiny"

    def routes(self, models: ServedModels) -> list[web.RouteDef]:
        service = models.default.service

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
                async with ResponseStream(request) as sse:
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
    """A running server and an HTTP client of it."""

    server: Server
    engine: Engine
    http: aiohttp.ClientSession
    url: str
    closed: bool = field(default=False)

    @property
    def service(self) -> GenerationService:
        return self.server.models.default.service

    async def say(self, status: int = 200, **body: Any) -> dict[str, Any]:
        """Send one request and return its answer, which must have this status."""
        async with self.http.post(f"{self.url}/say", json=body) as response:
            text = await response.text()
            assert response.status == status, text
            return json.loads(text)

    async def stream(self, **body: Any) -> list[dict[str, Any]]:
        """Send one request and return all events of the streamed answer."""
        async with self.http.post(f"{self.url}/say", json={"stream": True, **body}) as response:
            assert response.status == 200, await response.text()
            return events_of(await response.text())

    async def status(self, path: str, method: str = "GET", **more: Any) -> int:
        async with self.http.request(method, f"{self.url}{path}", **more) as response:
            return response.status

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until `holds` returns True; the time limit of the test ends an endless wait."""
        while not holds():
            await asyncio.sleep(0.001)

    async def settled(self) -> None:
        """Wait until no request is left, then check that the engine's ledger adds up."""
        thread = self.service.thread
        await self.until(lambda: thread.pulse.busy_since is None and not self.service.queue)
        assert closed(self.engine)


async def connect(url: str, raw: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a connection and send some bytes on it."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(raw)
    await writer.drain()
    return reader, writer


def post(body: Any, *more: str, path: str = "/say") -> bytes:
    """Return the bytes of a POST request."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = [f"POST {path} HTTP/1.1", "Host: localhost", *more]
    if not any(line.lower().startswith("content-type") for line in more):
        head.append("Content-Type: application/json")
    if not any(line.lower().startswith(("content-length", "transfer-enc")) for line in more):
        head.append(f"Content-Length: {len(raw)}")
    return "\r\n".join(head).encode() + b"\r\n\r\n" + raw


def events_of(text: str) -> list[Any]:
    """Return the decoded data of Server-Sent Events, without comments."""
    found: list[Any] = []
    for block in text.split("\n\n"):
        data = [line[6:] for line in block.split("\n") if line.startswith("data: ")]
        found += ["[DONE]" if each == "[DONE]" else json.loads(each) for each in data]
    return found


def scripted(answer: bytes = b"Hello!", **sizes: Any) -> ScriptedEngine:
    """Return an engine that gives the same answer to every prompt."""
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
    encoder: ServedEncoder | None = None,
    read_adapter: Callable[[Path], Any] | None = None,
    **settings: Any,
) -> AsyncIterator[Running]:
    """Run a server on a free port; at the end, check that it stops and has freed everything."""
    engine = engine or scripted()
    intake = intake or intake_for(engine)
    model = Model("scripted", engine, intake, aliases, encoder=encoder, read_adapter=read_adapter)
    settings = {"port": 0, "drain_timeout": 0.0} | settings
    log_prompts = settings.get("log_prompts", False)
    service = GenerationService(lambda: model, bounds or Bounds(), log_prompts=log_prompts)
    server = Server(ServedModels.single(service), Settings(**settings), dialects or [TinyDialect()])
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
    """Stops an engine between its steps; `let(n)` allows n more steps, `open` allows all."""

    def __init__(self, engine: Engine) -> None:
        self.steps = 0  # number of steps since the gate was set
        self._allowed = threading.Semaphore(0)
        self._is_open = threading.Event()
        self._step = engine.step
        engine.step = Held(self)  # type: ignore[method-assign]

    def let(self, steps: int = 1) -> None:
        for _ in range(steps):
            self._allowed.release()

    async def advance(self, holds: Callable[[], bool]) -> None:
        """Let the engine make single steps until `holds` returns True."""
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
    """The step function of an engine with a gate."""

    gate: Gate

    def __call__(self) -> list[Event]:
        return self.gate.step()


@dataclass
class ScriptedPlan:
    """A model for `serving`, whose loads a test counts, holds back or lets fail."""

    name: str
    answer: bytes = b"Hello!"
    memory: int = 100
    more: dict[str, Any] = field(default_factory=dict)  # further arguments of its plan
    loads: int = 0
    failure: Exception | None = None  # raised by the next loads
    gate: threading.Event = field(default_factory=threading.Event)  # loads wait for it
    engines: list[ScriptedEngine] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate.set()

    def open(self) -> Model:
        self.loads += 1
        self.gate.wait(SECONDS)
        if self.failure is not None:
            raise self.failure
        size = config(candidates=32, context=1024)
        samplers = installed_samplers()
        engine = ScriptedEngine(lambda _: self.answer, config=size, samplers=samplers)
        self.engines.append(engine)
        aliases = self.more.get("aliases", frozenset())
        return Model(self.name, engine, intake_for(engine), aliases)

    def plan(self, bounds: Bounds) -> ModelPlan:
        return ModelPlan(
            self.name,
            lambda: GenerationService(self.open, bounds),
            lambda _: ModelNeeds(self.memory, 1024),
            **self.more,
        )


@dataclass
class Serving:
    """A running server of several models and an HTTP client of it."""

    server: Server
    http: aiohttp.ClientSession
    url: str

    @property
    def models(self) -> ServedModels:
        return self.server.models

    def state(self, name: str) -> str:
        return self.models.find(name).state

    async def ask(self, path: str = "/v1/completions", **body: Any) -> tuple[int, Any]:
        """Send a body; return status and decoded answer."""
        async with self.http.post(f"{self.url}{path}", json=body) as response:
            text = await response.text()
            try:
                return response.status, json.loads(text)
            except ValueError:
                return response.status, text

    async def say(self, model: str | None = None) -> str:
        """Return the answer of a model to a prompt."""
        named = {} if model is None else {"model": model}
        status, found = await self.ask(prompt="hi", **named)
        assert status == 200, found
        return found["choices"][0]["text"]

    async def get(self, path: str) -> Any:
        async with self.http.get(f"{self.url}{path}") as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until `holds` returns True; the time limit of the test ends an endless wait."""
        while not holds():
            await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def serving(
    *scripts: ScriptedPlan,
    dialects: Sequence[Dialect],
    memory: int = 10**9,
    load_seconds: float = SECONDS,
    default: str | None = None,
    bounds: Bounds | None = None,
    **settings: Any,
) -> AsyncIterator[Serving]:
    """Run a server of several scripted models; at the end, check that it stops."""
    rules = ModelRules(memory, load_seconds, default)
    models = ServedModels([each.plan(bounds or Bounds()) for each in scripts], rules)
    server = Server(models, Settings(**{"port": 0, "drain_timeout": 0.0} | settings), dialects)
    await server.start()
    try:
        many = aiohttp.TCPConnector(limit=0)
        async with asyncio.timeout(SECONDS), aiohttp.ClientSession(connector=many) as http:
            yield Serving(server, http, server.url)
    finally:
        for each in scripts:
            each.gate.set()
            for engine in each.engines:
                if isinstance(engine.step, Held):
                    engine.step.gate.open()
        assert await server.stop()
