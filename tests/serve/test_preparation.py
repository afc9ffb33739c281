"""Preparation is fair: cheap work never waits for dear work, nor one client for another's flood."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from jaxllama.constraints.wanted import read_form
from jaxllama.errors import NotReady, QueueFull
from jaxllama.service import preparation
from jaxllama.service.asking import Ask, estimate_characters, estimate_size, has_to_compile
from jaxllama.service.preparation import CHEAP_CHARACTERS, THREADS, Lane, RequestPreparation
from jaxllama.testing import ByteTokenizer
from tests.serve.conftest import intake_for, running, scenario, scripted

MANY, ONE = ({"Authorization": f"Bearer {key}"} for key in ("many", "one"))


class Blocked:
    """Work that a test lets go on."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.begun: list[str] = []

    def __call__(self, name: str) -> Callable[[], str]:
        def work() -> str:
            self.begun.append(name)
            assert self.gate.wait(60)
            return name

        return work


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.001)


def test_cheap_work_does_not_wait_for_dear_work():
    async def body():
        prepare, blocked = RequestPreparation(512), Blocked()
        flood = [
            asyncio.create_task(prepare.do(client, blocked(client), is_dear=True))
            for client in ("many", "more")
            for _ in range(50)
        ]
        await until(lambda: len(blocked.begun) == THREADS)
        assert await prepare.do("many", lambda: "cheap") == "cheap"
        blocked.gate.set()
        assert len(await asyncio.gather(*flood)) == 100
        prepare.close()

    scenario(body)


def test_long_work_is_dear():
    async def body():
        prepare, blocked = RequestPreparation(512), Blocked()
        long = asyncio.create_task(prepare.do("a", blocked("long"), size=CHEAP_CHARACTERS + 1))
        await until(lambda: blocked.begun == ["long"])
        assert await prepare.do("a", lambda: "short", size=CHEAP_CHARACTERS) == "short"
        blocked.gate.set()
        await long
        prepare.close()

    scenario(body)


def test_a_flood_of_one_client_leaves_a_thread_to_the_others():
    async def body():
        lane, blocked = Lane("test", 512), Blocked()
        flood = [asyncio.create_task(lane.do("many", blocked("many"), 0)) for _ in range(60)]
        await until(lambda: blocked.begun == ["many"])
        for _ in range(5):
            assert await lane.do("one", lambda: "served", 0) == "served"
        assert blocked.begun == ["many"]
        blocked.gate.set()
        assert await asyncio.gather(*flood) == ["many"] * 60
        assert (lane._lines, lane._running) == ({}, 0)
        lane.close()

    scenario(body)


class Times(threading.local):
    """A clock for each thread."""

    now = 0.0


def test_next_is_the_client_that_has_used_the_least_time():
    async def body():
        times, order, gate = Times(), [], threading.Event()
        lane = Lane("test", 512, clock=lambda: times.now)

        def work(client: str, seconds: float) -> Callable[[], None]:
            def take() -> None:
                assert gate.wait(60)
                times.now += seconds
                order.append(client)

            return take

        async with asyncio.TaskGroup() as group:
            for client in ("x", "y"):  # hold both threads until all have come
                group.create_task(lane.do(client, work(client, 0.0), 0))
            await until(lambda: lane._running == THREADS)
            for _ in range(20):
                for client, seconds in (("dear", 1.0), ("dearer", 9.0), ("brief", 0.0)):
                    group.create_task(lane.do(client, work(client, seconds), 0))
            await until(lambda: lane.waiting == 60)
            gate.set()
        briefs = [place for place, client in enumerate(order) if client == "brief"]
        assert briefs[-1] < len(order) - 15  # ended while most of the dear work waited
        lane.close()

    scenario(body)


@pytest.mark.parametrize(("most", "size"), [(8, 0), (512, 1)])
def test_a_client_that_waits_for_too_much_is_refused_and_others_are_not(most, size, monkeypatch):
    monkeypatch.setattr(preparation, "MOST_CHARACTERS", 8)

    async def body():
        lane, blocked = Lane("test", most), Blocked()
        flood = [asyncio.create_task(lane.do("many", blocked("many"), size)) for _ in range(5)]
        await until(lambda: blocked.begun == ["many"])
        assert lane.waiting == 4
        with pytest.raises(QueueFull, match="4 requests of yours") as caught:
            await lane.do("many", blocked("many"), size)
        assert caught.value.status == 429
        assert await lane.do("one", lambda: "served", size) == "served"
        blocked.gate.set()
        await asyncio.gather(*flood)
        lane.close()

    scenario(body)


def test_a_full_lane_refuses_new_clients_too():
    async def body():
        lane, blocked = Lane("test", 4), Blocked()
        work = [lane.do(f"client {i}", blocked("work"), 0) for i in range(THREADS + 4)]
        tasks = [asyncio.create_task(each) for each in work]
        await until(lambda: lane.waiting == 4)
        with pytest.raises(QueueFull):
            await lane.do("another", blocked("work"), 0)
        blocked.gate.set()
        await asyncio.gather(*tasks)
        lane.close()

    scenario(body)


def test_work_of_a_client_that_has_left_is_not_done():
    async def body():
        lane, blocked = Lane("test", 512), Blocked()
        first = asyncio.create_task(lane.do("a", blocked("first"), 0))
        await until(lambda: blocked.begun == ["first"])
        left = [asyncio.create_task(lane.do("a", blocked("left"), 0)) for _ in range(9)]
        await until(lambda: lane.waiting == 9)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        assert lane.waiting == 0
        first.cancel()  # at work: its result is forgotten
        blocked.gate.set()
        await until(lambda: not lane._lines)
        assert blocked.begun == ["first"]
        lane.close()

    scenario(body)


class Panic(BaseException):
    """As Rust's panics come."""


@pytest.mark.parametrize("error", [ValueError, Panic])
def test_what_goes_wrong_belongs_to_the_request(error):
    def fail() -> Any:
        raise error("wrong")

    async def body():
        lane = Lane("test", 512)
        with pytest.raises(error, match="wrong"):
            await lane.do("a", fail, 0)
        assert await lane.do("a", lambda: 1, 0) == 1
        lane.close()

    scenario(body)


def test_what_waits_at_the_end_is_told():
    async def body():
        lane, blocked = Lane("test", 512), Blocked()
        tasks = [asyncio.create_task(lane.do("a", blocked("work"), 0)) for _ in range(3)]
        await until(lambda: lane.waiting == 2)
        lane.close()
        blocked.gate.set()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(end) for end in ends] == [str, NotReady, NotReady]

    scenario(body)


def test_the_size_of_a_request_is_told_without_looking_at_all_of_it():
    assert estimate_size(Ask(["abc", [1, 2, 3]])) == 3
    assert estimate_size(Ask(messages=[{"role": "user", "content": [{"text": "x" * 900}]}])) == 904
    many = [{"role": "user", "content": "x"}] * 100_000
    assert estimate_size(Ask(messages=many)) > CHEAP_CHARACTERS

    class Counted(dict[str, Any]):
        looked = 0

        def values(self):
            Counted.looked += 1
            return super().values()

    deep: Any = Counted(a="end")
    for _ in range(10_000):
        deep = Counted(a=deep)
    assert estimate_characters(deep) > CHEAP_CHARACTERS
    assert Counted.looked <= 4096


def test_a_constraint_is_dear_until_it_is_compiled():
    intake = intake_for(scripted())
    ask = Ask(["x"], knobs={"regex": "[ab]+"})
    assert has_to_compile(intake, ask)
    form = read_form(ask.knobs)
    assert form is not None
    intake.constraints.compile(form)
    assert not has_to_compile(intake, ask)
    assert not has_to_compile(intake, Ask(["x"]))
    assert not has_to_compile(intake, Ask(["x"], knobs={"json_schema": "no schema"}))
    assert has_to_compile(intake, Ask(["x"], knobs={"choices": ["y" * 1000] * 5}))
    intake.constraints.close()


def test_hostile_grammars_of_one_client_delay_nobodys_plain_request():
    async def body():
        engine = scripted()
        intake, gate = intake_for(engine), threading.Event()

        def compile_(core: dict[str, Any], ends: object) -> None:
            del ends
            if "hostile" in (core["regex"] or ""):
                assert gate.wait(60)

        intake._constraint = compile_
        async with running(engine, intake=intake, api_keys=("many", "one")) as live:
            flood = [
                asyncio.create_task(
                    live.status("/say", "POST", json={"regex": f"hostile{i}"}, headers=MANY)
                )
                for i in range(60)
            ]
            await live.until(lambda: live.service.preparation.waiting >= 59)
            for headers in (MANY, ONE):
                assert await live.status("/say", "POST", json={}, headers=headers) == 200
            form = {"regex": "Hello!"}
            assert await live.status("/say", "POST", json=form, headers=ONE) == 200
            assert live.service.preparation.waiting >= 59
            gate.set()
            await asyncio.gather(*flood)

    scenario(body)


def test_a_prompt_that_cannot_fit_is_refused_before_it_is_tokenized():
    async def body():
        engine, read = scripted(), []
        intake = intake_for(engine)
        encode = intake.tokenizer._encoders[0].encode_batch_fast

        class Counted:
            def encode_batch_fast(self, texts, **more):
                read.extend(map(len, texts))
                return encode(texts, **more)

            def get_added_tokens_decoder(self):
                return {}

        intake.tokenizer._encoders = (Counted(), Counted())
        async with running(engine, intake=intake) as live:
            intake.tokenizer._cuts  # noqa: B018 - its probes are not counted
            read.clear()
            answer = await live.say(400, prompt="lazy dog and " * 60_000)
            assert answer["error"]["code"] == "context_length_exceeded"
            assert "780000 characters" in answer["error"]["message"]
            assert sum(read) < 20_000

    scenario(body)


def test_the_byte_tokenizer_can_be_cut():
    """The test above needs it."""
    assert ByteTokenizer()._cuts.place is not None
