"""The event loop is never held up for long, whatever clients send."""

import asyncio
import gc
import io
import json
import random
import time

import pytest

from jaxllama.testing import ScriptedEngine
from tests.serve.conftest import config, running, scenario

MOST_SECONDS = 0.05


@pytest.fixture
def longest(monkeypatch):
    """The most processor time that one callback of a loop has taken, and which it was.

    Time on the processor, not on the wall: what other processes do is not the loop's fault.
    """
    gc.collect()
    gc.freeze()  # as the program does once the model is loaded
    seen = [(0.0, "")]
    run = asyncio.events.Handle._run

    def timed(handle):
        began = time.thread_time()
        run(handle)
        seconds = time.thread_time() - began
        if seconds > seen[0][0]:
            seen[0] = seconds, repr(handle)

    monkeypatch.setattr(asyncio.events.Handle, "_run", timed)
    yield seen
    gc.unfreeze()


def test_a_callback_that_takes_long_is_seen(longest):
    async def body():
        began = time.thread_time()
        while time.thread_time() - began < MOST_SECONDS:
            pass

    scenario(body)
    assert longest[0][0] > MOST_SECONDS


def test_nothing_that_clients_send_holds_the_loop(longest):
    random_ = random.Random(1)
    tokens = list(range(256)) * 1600
    large = [
        b"[" * 2_000_000,
        b'{"prompt": "' + b"a" * 2_000_000 + b'"}',
        b'{"prompt": "' + b"\\u00e4" * 300_000 + b'"}',
        json.dumps({"prompt": "x", "stop": ["y" * 100_000] * 10}).encode(),
        json.dumps({"prompt": "x", "stop_ids": tokens}).encode(),
        json.dumps({"messages": [{"role": "user", "content": "z"}] * 30_000}).encode(),
        json.dumps({"prompt": "x", **{f"field{i}": i for i in range(70_000)}}).encode(),
        b'{"a":1,' * 200_000,
    ]

    async def refused(live, body):
        headers = {"Content-Type": "application/json"}
        assert await live.status("/say", "POST", data=io.BytesIO(body), headers=headers) == 400

    async def body():
        engine = ScriptedEngine(lambda prompt: prompt, config=config(slots=16))
        async with running(engine, strict=True) as live:
            prompts = ["p" * random_.randrange(1, 200) for _ in range(48)]
            await asyncio.gather(
                *(refused(live, each) for each in large),
                *(live.stream(prompt=each) for each in prompts),
                *(live.say(prompt=each, n=4) for each in prompts),
                *(live.status("/metrics") for _ in range(16)),
            )
            await live.settled()

    scenario(body)
    assert longest[0][0] < MOST_SECONDS, longest
