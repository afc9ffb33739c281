"""The crossing between engine thread and event loop."""

import asyncio
import itertools
import threading

import pytest

from jaxllama.bridge import EngineThread, Question, Ticket
from jaxllama.engine.probes import finish
from jaxllama.errors import EngineStopped, GenerationFailed, JaxLlamaError, PromptTooLong
from jaxllama.request import Finished, FinishReason, GenerationRequest, Token
from jaxllama.service.fair_queue import FairQueue
from jaxllama.service.slot_shares import divide_slots
from jaxllama.testing import ScriptedEngine
from tests.support import closed


def scripted() -> ScriptedEngine:
    """Answers prompt [n, ...] with n, n + 1, ..."""
    return ScriptedEngine(lambda prompt: [prompt[0] + i for i in range(40)])


def asked(first: int, count: int = 10) -> GenerationRequest:
    return GenerationRequest((first, 1), count, temperature=0.0)


def thread_of(engine: ScriptedEngine) -> EngineThread:
    """A thread with a queue that refuses nothing."""
    queue: FairQueue = FairQueue(10**6, 10**9)
    queue.shares = divide_slots(engine.config.slots)
    return EngineThread(engine, queue)


class Told:
    """What one ticket is told, in order."""

    def __init__(self, thread: EngineThread, request: GenerationRequest) -> None:
        self.queue: asyncio.Queue = asyncio.Queue()
        self.ticket: Ticket = thread.submit(request, None, self.tell)

    def tell(self, told):
        for each in [told] if isinstance(told, JaxLlamaError) else told:
            self.queue.put_nowait(each)

    async def next(self):
        event = await self.queue.get()
        if isinstance(event, JaxLlamaError):
            raise event
        return event

    async def all(self):
        events = [await self.next()]
        while not isinstance(events[-1], Finished):
            events.append(await self.next())
        return events


async def tokens_of(thread: EngineThread, request: GenerationRequest) -> list[int]:
    return [one.token for one in await Told(thread, request).all() if isinstance(one, Token)]


async def settled(thread: EngineThread) -> None:
    """The engine reads what it sent last, then holds nothing."""
    while not thread.engine.idle:
        await asyncio.sleep(0)
    assert closed(thread.engine)


def with_thread(scenario, engine=None):
    """Run a scenario against a started thread; stop it whatever happens."""

    async def main():
        thread = thread_of(engine or scripted())
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
        assert thread.pulse.steps > 0

    with_thread(scenario)


def test_a_loop_that_is_behind_is_woken_once_for_all_steps(monkeypatch):
    async def scenario(thread):
        loop, wakes = asyncio.get_running_loop(), []
        wake = loop.call_soon_threadsafe
        monkeypatch.setattr(
            loop, "call_soon_threadsafe", lambda *call: (wakes.append(call), wake(*call))
        )
        finished, turn = threading.Event(), thread.turn

        def watched():
            turn()
            if thread.engine.idle:
                finished.set()

        thread.turn = watched
        told = Told(thread, asked(3))
        assert finished.wait(30)  # the loop stands still meanwhile
        assert thread.pulse.steps > 5
        assert len(wakes) == 1
        assert [event.token for event in (await told.all())[:-1]] == list(range(3, 13))

    with_thread(scenario)


def test_an_emit_that_fails_loses_no_other_event(caplog):
    def fail(_):
        raise RuntimeError("a listener's fault")

    async def scenario(thread):
        thread.submit(asked(20), None, fail)
        assert await tokens_of(thread, asked(3)) == list(range(3, 13))

    with_thread(scenario)
    assert "a listener's fault" in caplog.text


def test_a_cancelled_ticket_is_told_its_end_and_frees_its_slot():
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
        told = Told(thread, asked(3, 40))
        assert (await told.next()).token == 3
        thread.cancel(told.ticket)
        left.set()
        assert (await told.all())[-1].reason is FinishReason.CANCELLED
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
        end = (await Told(thread, asked(1)).all())[-1]
        assert end.reason is FinishReason.LENGTH

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
        thread = thread_of(engine)
        thread.start()
        told = Told(thread, asked(1, 40))
        await told.next()
        assert await thread.stop()
        with pytest.raises(EngineStopped):
            await told.all()
        with pytest.raises(EngineStopped):
            await thread.ask(PEEK)

    asyncio.run(main())


def test_a_question_waits_for_a_slot():
    async def scenario(thread):
        streams = [Told(thread, asked(n, 40)) for n in range(8)]  # twice the slots
        short = Question(lambda engine: engine.probes.peek((1, 2, 3), 1), tokens=3)
        _, logits = await thread.ask(short)
        assert len(logits) == thread.engine.bank.vocab
        for told in streams:
            await told.all()
        await settled(thread)

    with_thread(scenario)


def test_what_a_question_raises_belongs_to_the_one_who_asks():
    def wrong(_):
        raise ValueError("no such thing")

    async def scenario(thread):
        with pytest.raises(ValueError, match="no such thing"):
            await thread.ask(Question(wrong, tokens=1))
        assert await tokens_of(thread, asked(5)) == list(range(5, 15))

    with_thread(scenario)


def test_a_question_that_does_not_fit_is_refused():
    too_long = Question(lambda engine: engine.probes.peek((1,) * 1000, 1), tokens=1000)

    async def scenario(thread):
        with pytest.raises(PromptTooLong):
            await thread.ask(too_long)
        await settled(thread)

    with_thread(scenario)


def test_while_the_engine_can_spare_time_the_thread_takes_in_what_comes():
    class Patient(ScriptedEngine):
        spare_seconds = 60.0

    thread, came = thread_of(Patient(lambda _: [])), []

    def first():
        came.append("first")
        threading.Thread(target=thread._inbox.put, args=[(second, None)]).start()

    def second():
        came.append("second")
        thread._inbox.put(None)

    thread.engine.submit(asked(1))  # so the engine has work, and does not wait for any
    thread._inbox.put((first, None))
    assert not thread._take_in()
    assert came == ["first", "second"]


LONG = tuple(range(100)) * 2
PEEK = Question(lambda engine: engine.probes.peek(LONG, 1), tokens=200)
EMBED = Question(lambda engine: engine.probes.embed(LONG), tokens=200)


def test_a_long_look_and_streams_take_turns():
    engine, calls = scripted(), []
    peek, decode = engine.programs.peek, engine.programs.decode
    engine.programs.peek = lambda *args: calls.append("peek") or peek(*args)
    engine.programs.decode = lambda *args: calls.append("decode") or decode(*args)

    async def main():
        thread = thread_of(engine)
        stream = Told(thread, asked(3, 40))
        looking = asyncio.create_task(thread.ask(PEEK))
        await asyncio.sleep(0)
        thread.start()  # both have come in by now
        seen, _ = await looking
        await stream.all()
        await thread.stop()
        assert (seen == finish(scripted().probes.peek(LONG, 1))[0]).all()

    asyncio.run(main())
    while_streaming = calls[: len(calls) - calls[::-1].index("decode")]
    assert while_streaming.count("peek") > 10
    assert ("peek", "peek") not in itertools.pairwise(while_streaming)


def test_a_look_that_nobody_waits_for_frees_its_slot():
    engine, began = scripted(), threading.Event()
    peek = engine.programs.peek

    def noted(*args):
        began.set()
        return peek(*args)

    engine.programs.peek = noted

    async def scenario(thread):
        looking = asyncio.create_task(thread.ask(PEEK))
        await asyncio.to_thread(began.wait, 30)
        looking.cancel()
        while thread.engine.slots.claimed or thread._probes:
            await asyncio.sleep(0)
        assert await tokens_of(thread, asked(5)) == list(range(5, 15))

    with_thread(scenario, engine)


def test_more_looks_than_slots_are_all_answered():
    async def scenario(thread):
        looks = [thread.ask(EMBED) for _ in range(9)]
        found = await asyncio.gather(*looks)
        assert all((last == found[0][1]).all() for _, last in found)
        await settled(thread)

    with_thread(scenario)


def test_a_look_during_a_fault_is_told_so():
    engine = scripted()
    decode, calls = engine.programs.decode, []

    def fails_once(*args):
        calls.append(args)
        if len(calls) == 3:
            raise RuntimeError("the device is gone")
        return decode(*args)

    engine.programs.decode = fails_once

    async def main():
        thread = thread_of(engine)
        stream = Told(thread, asked(3, 40))
        looking = asyncio.create_task(thread.ask(PEEK))
        await asyncio.sleep(0)
        thread.start()
        with pytest.raises(GenerationFailed, match="restarted"):
            await looking
        assert (await stream.all())[-1].reason is FinishReason.LENGTH
        await thread.stop()
        assert closed(engine)

    asyncio.run(main())
