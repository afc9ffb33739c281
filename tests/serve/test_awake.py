"""A process that was stopped has missed no deadline: neither its clients' nor its engine's."""

import asyncio
import time

from jaxllama.bridge import EngineThread, Pulse
from jaxllama.cli import serve
from jaxllama.serve.awake import MOST_BETWEEN_BEATS, NAP, AwakeClock, AwakeLoop
from jaxllama.serve.settings import Settings
from jaxllama.service.bounds import Bounds
from jaxllama.service.fair_queue import FairQueue
from tests.serve.conftest import Gate, connect, events_of, post, running, scripted

STOP = 1000.0  # seconds, longer than every deadline
ENDLESS = b"x" * 200


class Monotonic:
    """A clock that a test moves."""

    def __init__(self):
        self.now = 50.0

    def __call__(self):
        return self.now


class Jumping:
    """The system's clock, which `stop` moves as if the process had been stopped."""

    def __init__(self):
        self.stopped = 0.0

    def __call__(self):
        return time.monotonic() + self.stopped

    def stop(self):
        self.stopped += STOP


def test_a_clock_that_beats_counts_every_second():
    monotonic = Monotonic()
    clock = AwakeClock(monotonic)
    for _ in range(100):
        monotonic.now += NAP
        clock.beat()
    assert clock.time() == 150.0


def test_a_clock_that_did_not_beat_counts_little_before_and_after_it_notices():
    monotonic = Monotonic()
    clock = AwakeClock(monotonic)
    monotonic.now += STOP
    assert clock.time() == 50.0 + MOST_BETWEEN_BEATS
    clock.beat()
    assert clock.time() == 50.0 + MOST_BETWEEN_BEATS
    monotonic.now += 2.0
    assert clock.time() == 52.0 + MOST_BETWEEN_BEATS


def test_an_engine_is_not_stalled_because_the_process_was_stopped():
    monotonic = Monotonic()
    clock = AwakeClock(monotonic)
    thread = EngineThread(scripted(), FairQueue(1, 1), clock=clock.time)
    thread.pulse = Pulse(9, 1.0, 0.1, clock.time())
    monotonic.now += STOP
    assert thread.stalled() is None
    for _ in range(9):
        monotonic.now += NAP
        clock.beat()
    assert thread.stalled() == MOST_BETWEEN_BEATS + 8 * NAP  # the engine does not move either


def test_no_deadline_passes_while_the_process_is_stopped():
    """Clients that were about to send a head or a body, one that reads, one that waits."""
    monotonic = Jumping()
    whole = post({"prompt": "p", "max_tokens": 2})

    async def body():
        engine = scripted(ENDLESS)
        bounds = Bounds(request_seconds=STOP / 2)
        async with running(engine, bounds=bounds) as live:
            half_head = await connect(live.url, whole[:20])
            half_body = await connect(live.url, whole[:-5])
            gate = Gate(engine)
            gate.let(3)
            asked = live.http.post(f"{live.url}/say", json={"stream": True})
            waits = asyncio.create_task(live.say())
            async with asked as response:
                await live.until(lambda: len(live.service._open) == 2)
                monotonic.stop()
                assert live.service.state == "ready"
                await asyncio.sleep(0)  # the loop sees the clock
                await asyncio.sleep(0)
                gate.open()
                events = events_of(await response.text())
            assert events[-1] == "[DONE]"
            assert (await waits)["texts"] == ["x" * 200]
            assert live.service.thread.pulse.longest_step < STOP / 2
            for (reader, writer), sent in ((half_head, 20), (half_body, len(whole) - 5)):
                writer.write(whole[sent:])
                assert b"200 OK" in await reader.readline()
                writer.close()

    with asyncio.Runner(loop_factory=lambda: AwakeLoop(monotonic)) as runner:
        runner.run(body())


def test_a_deadline_still_passes_while_the_process_runs():
    async def body():
        async with running(header_seconds=0.1) as live:
            reader, writer = await connect(live.url, b"GET /hea")
            assert b" 408 " in await reader.readline()
            writer.close()

    with asyncio.Runner(loop_factory=AwakeLoop) as runner:
        runner.run(body())


def test_the_command_serves_on_such_a_loop(monkeypatch):
    loops = []

    async def pretend(*_):
        loops.append(asyncio.get_running_loop())
        return 0

    monkeypatch.setattr(serve, "serve", pretend)
    assert serve.run(Settings(), {}, []) == 0
    assert isinstance(loops[0], AwakeLoop)
