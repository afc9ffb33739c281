"""The crossing between engine thread and event loop."""

import asyncio
import threading

import pytest

from jaxllama.bridge import EngineThread
from jaxllama.errors import EngineStopped, PromptTooLong
from jaxllama.request import Finished, FinishReason, GenerationRequest, Token
from jaxllama.testing import ScriptedEngine
from tests.support import closed


def scripted() -> ScriptedEngine:
    """Answers prompt [n, ...] with n, n + 1, ..."""
    return ScriptedEngine(lambda prompt: [prompt[0] + i for i in range(40)])


def asked(first: int, count: int = 10) -> GenerationRequest:
    return GenerationRequest((first, 1), count, temperature=0.0)


async def tokens_of(thread: EngineThread, request: GenerationRequest) -> list[int]:
    async with thread.open(request) as events:
        return [event.token async for event in events if isinstance(event, Token)]


async def settled(thread: EngineThread) -> None:
    """The engine reads what it sent last, then holds nothing."""
    while not thread.engine.idle:
        await asyncio.sleep(0)
    assert closed(thread.engine)


def with_thread(scenario, engine=None):
    """Run a scenario against a started thread; stop it whatever happens."""

    async def main():
        thread = EngineThread(engine or scripted())
        thread.start()
        try:
            return await asyncio.wait_for(scenario(thread), 60)
        finally:
            await thread.stop()

    return asyncio.run(main())


def test_35_streams_at_once_get_their_own_tokens():
    async def scenario(thread):
        answers = await asyncio.gather(*(tokens_of(thread, asked(n)) for n in range(35)))
        assert answers == [list(range(n, n + 10)) for n in range(35)]
        await settled(thread)
        assert thread.steps > 0

    with_thread(scenario)


def test_leaving_early_cancels_and_frees():
    engine, left = scripted(), threading.Event()
    step = engine.step

    def gated():
        """Hold the engine after its first token until the listener has left."""
        if engine.ledger["told"]:
            left.wait(30)
        events = step()
        engine.ledger["told"] += len(events)
        return events

    engine.step = gated

    async def scenario(thread):
        async with thread.open(asked(3, 40)) as events:
            assert (await anext(events)).token == 3
        left.set()
        assert await tokens_of(thread, asked(5)) == list(range(5, 15))
        await settled(thread)
        assert engine.ledger["cancelled"] == 1

    with_thread(scenario, engine)


def test_refusal_reaches_the_one_who_asked():
    async def scenario(thread):
        with pytest.raises(PromptTooLong):
            await tokens_of(thread, GenerationRequest((1,) * 100_000, 1))
        assert await tokens_of(thread, asked(5)) == list(range(5, 15))

    with_thread(scenario)


def test_last_event_is_finished():
    async def scenario(thread):
        async with thread.open(asked(1)) as events:
            seen = [event async for event in events]
        assert isinstance(seen[-1], Finished)
        assert seen[-1].reason is FinishReason.LENGTH

    with_thread(scenario)


def test_engine_that_cannot_recover_wakes_every_stream():
    engine = scripted()

    def broken():
        raise RuntimeError("no memory left")

    engine.step = broken

    async def scenario(thread):
        with pytest.raises(EngineStopped) as caught:
            await tokens_of(thread, asked(1))
        assert "no memory left" in str(caught.value.__cause__)
        with pytest.raises(EngineStopped):
            await tokens_of(thread, asked(2))
        assert isinstance(thread.failure, RuntimeError)

    with_thread(scenario, engine)


def test_stop_ends_open_streams():
    engine = scripted()
    step = engine.step

    def once():
        """Nothing more comes after the first token."""
        if engine.ledger["told"]:
            return []
        events = step()
        engine.ledger["told"] += len(events)
        return events

    engine.step = once

    async def main():
        thread = EngineThread(engine)
        thread.start()
        async with thread.open(asked(1, 40)) as events:
            await anext(events)
            await thread.stop()
            with pytest.raises(EngineStopped):
                async for _ in events:
                    pass

    asyncio.run(main())
