"""The official OpenAI client on a server with a scripted engine."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import openai

from jaxllama.engine.engine import Engine
from jaxllama.intake import Intake
from jaxllama.serve.dialects.native import Native
from jaxllama.serve.dialects.openai import OpenAI
from jaxllama.testing import ByteTokenizer, ScriptedEngine
from jaxllama_formats.chatml import ChatMl
from tests.serve.conftest import Running, config, running

MODEL = "scripted"
HI = [{"role": "user", "content": "hi"}]
DIALECTS = [OpenAI(), Native()]


def saying(answer: bytes | Sequence[bytes], **sizes: Any) -> ScriptedEngine:
    """Return an engine that always gives the same answer, or one answer after the other."""
    if isinstance(answer, bytes):
        return ScriptedEngine(lambda _: answer, config=config(**sizes))
    turns = iter(answer)
    return ScriptedEngine(lambda _: next(turns), config=config(**sizes))


@contextlib.asynccontextmanager
async def asked(
    engine: Engine | None = None, **more: Any
) -> AsyncIterator[tuple[Running, openai.AsyncOpenAI]]:
    """Run a server and yield it with an OpenAI client."""
    engine = engine or saying(b"Hello!")
    async with running(engine, dialects=DIALECTS, **more) as live, client_of(live) as client:
        yield live, client


@contextlib.asynccontextmanager
async def client_of(live: Running, **more: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    settings = {"api_key": "none", "max_retries": 0} | more
    async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", **settings) as client:
        yield client


async def post(live: Running, path: str, body: Any, status: int = 200) -> Any:
    """Send one POST without the OpenAI client and return its JSON answer."""
    async with live.http.post(f"{live.url}{path}", json=body) as response:
        found = await response.json()
        assert response.status == status, found
        return found


async def fetch(live: Running, path: str) -> Any:
    """Send one GET and return its JSON answer."""
    async with live.http.get(f"{live.url}{path}") as response:
        assert response.status == 200, await response.text()
        return await response.json()


def plain_intake(engine: Engine) -> Intake:
    return Intake(ByteTokenizer(), ChatMl(), engine.bank, engine.config)
