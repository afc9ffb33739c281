"""Clients that leave: whatever their request was doing, its slot is free within two steps."""

import asyncio
import random
import socket
import struct
import threading
from pathlib import Path

import pytest

from jaxllama.engine.generation import Phase
from jaxllama.engine.programs import Programs
from jaxllama.kernels.cpu import library
from jaxllama.service.bounds import Bounds
from jaxllama.testing import ScriptedEngine
from tests.serve.conftest import (
    Gate,
    config,
    connect,
    events_of,
    intake_for,
    post,
    running,
    scenario,
    scripted,
)
from tests.support import KERNELS, new_engine

ENDLESS = b"x" * 200
LONG = "p" * 130  # takes several chunks


def leave(writer, how="fin"):
    """Close with FIN, or slam the door with RST."""
    if how == "rst":
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    else:
        writer.close()


def phases(engine):
    return sorted(one.phase.name for one in list(engine._live.values()))


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("phase", [Phase.WAITING, Phase.FILLING, Phase.RUNNING])
def test_leaving_frees_the_slot_within_two_steps(phase, stream, how):
    async def body():
        engine = scripted(ENDLESS, slots=1)
        async with running(engine) as live:
            gate = Gate(engine)
            first = "FILLING" if phase is Phase.WAITING else phase.name
            _, stays = await connect(live.url, post({"prompt": LONG, "stream": stream}))
            await gate.advance(lambda: phases(engine) == [first])
            leaves = stays
            if phase is Phase.WAITING:
                _, leaves = await connect(live.url, post({"prompt": LONG, "stream": stream}))
                await live.until(lambda: live.service.queue.items == 1)
            stay = int(phase is Phase.WAITING)
            leave(leaves, how)
            await live.until(lambda: len(live.service._open) == stay)
            gate.let(2)
            await live.until(lambda: len(engine._live) == stay and not live.service.queue)
            assert engine.slots.claimed == stay
            gate.open()
            leave(stays)
            await live.settled()

    scenario(body)


def test_leaving_the_fair_queue_leaves_no_trace():
    async def body():
        engine = scripted(ENDLESS, slots=1)
        async with running(engine) as live:
            gate = Gate(engine)
            writers = [(await connect(live.url, post({"n": 2})))[1] for _ in range(3)]
            await live.until(lambda: live.service.queue.items == 5)
            for writer in writers:
                leave(writer)
            await live.until(lambda: live.service.queue.items == 0)
            gate.open()
            await live.settled()
            assert engine.ledger["accepted"] == 2  # the warm-up, and one that had a slot

    scenario(body)


def test_leaving_while_the_prompt_is_read_starts_nothing():
    async def body():
        engine, reading, go_on = scripted(), threading.Event(), threading.Event()
        intake = intake_for(engine)
        encode = intake.tokenizer.encode

        def slow(text, **more):
            reading.set()
            go_on.wait(20)
            return encode(text, **more)

        intake.tokenizer.encode = slow
        async with running(engine, intake=intake) as live:
            _, writer = await connect(live.url, post({}))
            await asyncio.to_thread(reading.wait, 20)
            leave(writer)
            await live.until(lambda: not live.service._open)
            go_on.set()
            await live.settled()
            assert engine.ledger["accepted"] == 1  # the warm-up

    scenario(body)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_leaving_before_the_request_is_whole_is_no_request(part):
    async def body():
        async with running() as live:
            raw = post({"prompt": "hello" * 20})
            _, writer = await connect(live.url, raw[: int(len(raw) * part)])
            await live.until(lambda: len(live.server.crowd) == 1)
            leave(writer)
            await live.until(lambda: not live.server.crowd)
            assert not live.service._open
            assert (await live.say())["texts"] == ["Hello!"]

    scenario(body)


def test_all_choices_go_with_their_client():
    async def body():
        engine = scripted(ENDLESS)
        async with running(engine) as live:
            gate = Gate(engine)
            _, writer = await connect(live.url, post({"n": 6, "stream": True}))
            await gate.advance(lambda: phases(engine).count("RUNNING") == 4)
            leave(writer)
            await live.until(lambda: not live.service._open)
            gate.open()
            await live.settled()
            assert engine.ledger["cancelled"] == 4  # the others waited for a slot

    scenario(body)


def test_cancel_by_id_ends_a_request_with_one_clear_error():
    async def body():
        engine = scripted(ENDLESS)
        async with running(engine) as live:
            gate = Gate(engine)
            asked = live.http.post(f"{live.url}/say", json={"stream": True})
            gate.let(3)
            async with asked as response:
                id_ = response.headers["X-Request-Id"]
                assert await live.status(f"/v1/requests/say-{id_}", "DELETE") == 200
                gate.open()
                events = events_of(await response.text())
            assert events[-1]["error"]["code"] == "cancelled"
            assert await live.status(f"/v1/requests/say-{id_}", "DELETE") == 404
            await live.settled()

    scenario(body)


def test_nobody_cancels_the_request_of_another():
    async def body():
        engine = scripted(ENDLESS)
        async with running(engine, api_keys=("mine", "yours")) as live:
            mine, yours = ({"Authorization": f"Bearer {key}"} for key in ("mine", "yours"))
            gate = Gate(engine)
            gate.let(3)
            async with live.http.post(
                f"{live.url}/say", json={"stream": True}, headers=mine
            ) as response:
                path = f"/v1/requests/{response.headers['X-Request-Id']}"
                assert await live.status(path, "DELETE", headers=yours) == 404
                assert await live.status(path, "DELETE", headers=mine) == 200
                gate.open()
            await live.settled()

    scenario(body)


def files_open():
    return len(list(Path("/proc/self/fd").iterdir()))


def spoken(prompt):
    """What a prompt is answered: as long as its first byte says."""
    return bytes((prompt[0] + i) % 256 for i in range(1 + prompt[0] % 60))


async def storm(live, random_, comings, body_of, stays):
    """Clients that come in nines, of which eight leave or are cancelled; the ninth stays."""

    async def leaves_early():
        raw = post(body_of() | {"n": random_.randrange(1, 4)})
        cut = len(raw) if random_.random() < 0.9 else random_.randrange(len(raw))
        reader, writer = await connect(live.url, raw[:cut])
        for _ in range(random_.randrange(4)):
            await asyncio.sleep(0)
        if cut == len(raw) and random_.random() < 0.3:
            await reader.read(random_.randrange(1, 900))
        elif cut == len(raw) and random_.random() < 0.3:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            id_ = head.partition("X-Request-Id: ")[2].partition("\r\n")[0]
            assert id_
            live.service.cancel(id_, "at 127.0.0.1")
            await reader.read(random_.randrange(1, 900))
        leave(writer, random_.choice(["fin", "rst"]))

    await live.say()
    await live.until(lambda: not live.service._open)
    tasks, files = len(asyncio.all_tasks()), files_open()
    for _ in range(comings // 8):
        async with asyncio.TaskGroup() as group:
            group.create_task(stays())
            for _ in range(8):
                group.create_task(leaves_early())
    await live.settled()
    await live.until(lambda: len(live.server.crowd) <= 1)
    await live.until(lambda: len(asyncio.all_tasks()) <= tasks)
    assert files_open() <= files + 1
    assert not live.service._open
    assert live.service.queue.running == 0
    assert live.service.queue._accounts == {}


async def text_of(live, body):
    """The whole streamed answer."""
    events = await live.stream(**body)
    assert events[-1] == "[DONE]", events
    return "".join(event["text"] for event in events[:-1])


def test_2000_random_disconnects_and_cancels_leak_nothing_and_disturb_nobody():
    random_ = random.Random(4)

    def any_body():
        first = random_.randrange(1, 128)
        prompt = chr(first) * random_.randrange(1, 60)
        return {"prompt": prompt, "stream": random_.random() < 0.7}

    async def body():
        engine = ScriptedEngine(spoken, config=config(slots=8))
        async with running(engine) as live:

            async def stays():
                prompt = any_body()["prompt"]
                said = await text_of(live, {"prompt": prompt})
                assert said == spoken((ord(prompt[0]),)).decode("utf-8", "replace")

            await storm(live, random_, 2000, any_body, stays)

    scenario(body)


@pytest.mark.skipif(not library.available(), reason=library.why_not())
def test_a_real_model_answers_those_who_stay_as_if_they_were_alone(monkeypatch):
    """Its rows share cache, steps and beginnings with all who leave."""
    random_ = random.Random(5)
    prompts = ["".join(random_.choices("ab", k=random_.randrange(1, 90))) for _ in range(12)]

    def any_body():
        prompt = random_.choice(prompts)[: random_.randrange(1, 90)]
        return {"prompt": prompt, "stream": random_.random() < 0.7, "max_tokens": 30}

    async def body():
        engine = new_engine(engine=KERNELS)
        monkeypatch.setattr(Programs, "delete_weights", lambda _: None)  # other tests use them
        patient = Bounds(patience_seconds=300)  # programs may still have to be compiled
        async with running(engine, bounds=patient, seconds=300) as live:
            asks = [
                {"prompt": prompt, "max_tokens": 12, "seed": 1, "temperature": i % 2}
                for i, prompt in enumerate(prompts)
            ]
            alone = [await text_of(live, ask) for ask in asks]

            async def stays():
                chosen = random_.randrange(len(asks))
                assert await text_of(live, asks[chosen]) == alone[chosen]

            await storm(live, random_, 200, any_body, stays)

    scenario(body)
