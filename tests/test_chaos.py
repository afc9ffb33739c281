"""The attack of `make chaos` notices what it is there to notice. No server is attacked here."""

import asyncio
import dataclasses
import json
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from jaxllama.registry import DIALECTS, load_plugins
from jaxllama.serve.dialect import Dialect
from tests.chaos import hostile_requests
from tests.chaos import report as report_module
from tests.chaos.asking import Waits
from tests.chaos.canary import QUESTIONS, Canaries
from tests.chaos.disconnects import plan
from tests.chaos.endings import Question, ending, question
from tests.chaos.hostile import Outcomes, status_of
from tests.chaos.hostile_requests import KINDS, Shot, hostile
from tests.chaos.report import Report, spread, within
from tests.chaos.rolling import RECIPE, configuration
from tests.chaos.soak import Held, flat, is_bad
from tests.chaos.soak_traffic import errand
from tests.chaos.steadiness import Steadiness
from tests.chaos.target import Resources
from tests.chaos.terminations import is_unfair

FOLDER = Path(__file__).parent / "chaos"
CALM = Resources(rss_mib=500.0, children_rss_mib=100.0, fds=20, threads=30, children=2)


def test_the_attack_is_no_part_of_the_tests() -> None:
    assert list(FOLDER.glob("**/test_*.py")) == []
    assert list(FOLDER.glob("**/*_test.py")) == []


# Canaries.


class Answering:
    """A client whose server gives these answers, one after the other; the last for ever."""

    def __init__(self, *answers: tuple[int, Any]) -> None:
        self.answers = list(answers)

    async def ask(self, path: str, body: object) -> tuple[int, bytes]:
        del path, body
        await asyncio.sleep(0)
        status, answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return status, json.dumps(answer).encode()

    async def stream(self, body: object) -> Any:
        answer = json.loads((await self.ask("", body))[1])
        yield {"choices": answer["choices"]}


RIGHT = {"id": "1", "choices": [{"text": "a", "finish_reason": "length"}]}
COUNT = len(QUESTIONS) + 2  # with those that are also streamed


async def sung(*answers: tuple[int, Any]) -> Canaries:
    """Canaries that were asked a few times after these answers, the right ones first."""
    canaries = Canaries(Answering(*[(200, RIGHT)] * COUNT, *answers))  # type: ignore[arg-type]
    await canaries.learn()
    async with asyncio.timeout(60.0), canaries.singing(streams=1):
        while canaries.outcomes.total() < 3:
            await asyncio.sleep(0)
    return canaries


def test_right_canaries_hold_whatever_their_ids() -> None:
    canaries = asyncio.run(sung((200, RIGHT | {"id": "2"})))
    assert all(canaries.hold.values())
    assert set(canaries.outcomes) == {"right"}


@pytest.mark.parametrize("changed", [{"text": "b"}, {"finish_reason": "stop"}])
def test_a_changed_canary_breaks_a_promise(changed: dict[str, Any]) -> None:
    wrong = RIGHT | {"choices": [RIGHT["choices"][0] | changed]}  # type: ignore[dict-item]
    canaries = asyncio.run(sung((200, wrong), (200, RIGHT)))
    assert canaries.hold["no canary changes"] is False
    assert len(canaries.changed) == 1


@pytest.mark.parametrize(
    ("status", "name"), [(500, "no canary fails"), (429, "canaries are answered")]
)
def test_a_canary_without_an_answer_breaks_a_promise(status: int, name: str) -> None:
    canaries = asyncio.run(sung((status, {"choices": []})))
    assert canaries.hold[name] is False
    assert canaries.hold["no canary changes"]


def test_a_canary_that_fails_on_a_quiet_server_ends_the_attack() -> None:
    canaries = Canaries(Answering((500, {})))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="status 500"):
        asyncio.run(canaries.learn())


# Steadiness.


class Holding:
    """A server that holds something, and has written some tracebacks."""

    is_alive = True

    def __init__(self, *held: Resources, tracebacks: int = 0) -> None:
        self.held, self.written = list(held), tracebacks

    def tracebacks(self) -> int:
        return self.written

    def resources(self) -> Resources:
        return self.held.pop(0) if len(self.held) > 1 else self.held[0]

    async def settle(self, _seconds: float) -> bool:
        return True


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Time passes at once."""
    sleep = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda _seconds: sleep(0))
    yield


def promises_of(server: Holding) -> dict[str, bool]:
    """The promises after an attack on a server that was calm before."""
    return asyncio.run(Steadiness(server, CALM, 0).end())[1]  # type: ignore[arg-type]


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize(
    ("more", "broken"),
    [
        ({"rss_mib": 555.0}, []),
        ({"rss_mib": 565.0}, ["memory is back"]),
        ({"children_rss_mib": 400.0}, ["memory is back"]),
        ({"fds": 23}, ["file descriptors are back"]),
        ({"threads": 33}, ["threads are back"]),
    ],
)
def test_what_a_server_keeps_breaks_a_promise(more: dict[str, Any], broken: list[str]) -> None:
    promises = promises_of(Holding(dataclasses.replace(CALM, **more)))
    assert [name for name, holds in promises.items() if not holds] == broken


@pytest.mark.usefixtures("no_waiting")
def test_a_server_may_take_a_moment_to_let_go() -> None:
    busy = dataclasses.replace(CALM, fds=40, rss_mib=900.0)
    assert all(promises_of(Holding(busy, busy, CALM)).values())


def test_a_traceback_breaks_a_promise() -> None:
    promises = promises_of(Holding(CALM, tracebacks=1))
    assert [name for name, holds in promises.items() if not holds] == ["no traceback"]


# Hostile requests.


def test_hostile_requests_are_the_same_each_time_and_of_every_kind() -> None:
    found = [hostile(3, number) for number in range(1500)]
    assert found[::100] == [hostile(3, number) for number in range(0, 1500, 100)]
    assert {kind for kind, _ in found} == {kind.__name__ for kind, _ in KINDS}
    assert len({shot.raw for _, shot in found}) > 800
    assert hostile(4, 0) != hostile(3, 0)


@pytest.mark.parametrize("kind", [kind.__name__ for kind, _ in KINDS])
def test_every_hostile_request_can_be_sent(kind: str) -> None:
    for number in range(60):
        shot = getattr(hostile_requests, kind)(random.Random(number))
        assert isinstance(shot.raw, bytes)
        assert 0 < len(shot.raw) < 4 << 20


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "400"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 417 No\r\n\r\n", "417"),
        (b"HTTP/1.0 500 Oh\r\n\r\n", "500"),
        (b"", "closed"),
        (b"what", "closed"),
    ],
)
def test_the_status_of_an_answer_is_read(answer: bytes, status: str) -> None:
    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        writer.close()

    async def seen() -> str:
        server = await asyncio.start_server(reply, "127.0.0.1", 0)
        async with server:
            return await status_of(server.sockets[0].getsockname()[1], Shot(b"x"))

    assert asyncio.run(seen()) == status


def test_answers_of_500_and_silence_are_kept_as_examples() -> None:
    outcomes = Outcomes()
    for status in ("400", "500", "closed"):
        outcomes.add("garbage", 7, Shot(b"ping"), status)
    outcomes.add("garbage", 8, Shot(b"half", is_whole=False), "closed")
    assert outcomes.by_kind["garbage"] == {"400": 1, "500": 1, "closed": 2}
    assert len(outcomes.errors) == len(outcomes.unanswered) == 1
    assert "ping" in outcomes.errors[0]


def test_clients_leave_in_every_phase() -> None:
    found = [plan(random.Random(number)) for number in range(400)]
    assert {phase for phase, _, _ in found} == {
        *("connected", "head", "body", "half-closed", "reading", "waiting")
    }
    assert all(0 < stay <= 2.0 for _, _, stay in found)


# The report.


def test_a_broken_promise_is_printed_and_remembered(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report()
    report.promise("attack", {"kept": True, "not kept": False}, count=3)
    assert json.loads(capsys.readouterr().out) == {
        "name": "attack",
        "count": 3,
        "broken": ["not kept"],
    }
    assert report.broken == ["attack: not kept"]


def test_times_are_told_by_median_and_the_latest() -> None:
    found = spread([float(number) for number in range(1, 101)])
    assert found == {"median": 50.5, "p99": 99.0, "max": 100.0, "count": 100}
    waits = Waits()
    waits.failures["status 503"] += 2
    assert waits.figures == {"count": 0, "failed": {"status 503": 2}}


def test_an_attack_ends_early_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter((0.0, 1.0, 2.0, 2.5, 99.0))
    monkeypatch.setattr(report_module, "time", SimpleNamespace(monotonic=lambda: next(moments)))
    assert list(within(2.4, 10)) == [0, 1]


# The soak.


def held(**more: Any) -> Held:
    """What a server holds after a round."""
    resources = {key: more.pop(key) for key in ("rss_mib", "fds", "threads") if key in more}
    own = {"tasks": 6, "programs_compiled": 13, "recompilations": 0} | more
    return Held(dataclasses.replace(CALM, **resources), **own)


@pytest.mark.parametrize(
    ("last", "broken"),
    [
        ({"rss_mib": 520.0}, []),
        ({"rss_mib": 540.0}, ["memory is flat"]),
        ({"fds": 23}, ["fds are flat"]),
        ({"threads": 33}, ["threads are flat"]),
        ({"tasks": 9}, ["tasks are flat"]),
        ({"programs_compiled": 14}, ["no program is compiled late"]),
        ({"recompilations": 1}, ["no program is compiled late"]),
    ],
)
def test_what_grows_during_a_soak_breaks_a_promise(last: dict[str, Any], broken: list[str]) -> None:
    rounds = [held(rss_mib=1.0, programs_compiled=4)] * 3 + [held()] * 6 + [held(**last)] * 3
    assert [name for name, holds in flat(rounds).items() if not holds] == broken


def test_a_soak_without_a_round_promises_nothing() -> None:
    assert not all(flat([]).values())


@pytest.mark.parametrize(
    ("outcome", "bad"),
    [("a 200", False), ("a left", False), ("a 429", False), ("a 500", True), ("a 400", True)],
)
def test_answers_that_a_soak_does_not_accept(outcome: str, bad: bool) -> None:
    assert is_bad(outcome) is bad


def test_a_soak_asks_every_api() -> None:
    names = {errand(random.Random(number)).name.split()[0] for number in range(500)}
    installed = {name.replace("_", "-") for name in load_plugins(DIALECTS, Dialect).loaded}
    assert names == installed
    assert errand(random.Random(3)) == errand(random.Random(3))


# Terminations and rolling restarts.

STREAM = Question("/v1/completions", {}, b"data: [DONE]\n\n")
HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("asked", "answer", "how"),
    [
        (STREAM, HEAD + b'\r\ndata: {"choices"}\n\ndata: [DONE]\n\n', "whole"),
        (STREAM, HEAD + b'\r\ndata: {"error": {}}\n\ndata: [DONE]\n\n', "told"),
        (STREAM, HEAD + b'\r\ndata: {"error": {}}\n\n', "told"),
        (STREAM, HEAD + b'\r\ndata: {"choices"}\n\n', "cut"),
        (STREAM, CHUNKED + b'14\r\ndata: {"choices"}\n\n\r\n', "cut"),
        (STREAM, CHUNKED + b'13\r\ndata: {"error": 1}\n\r\n', "told"),
        (Question("/score", {}), HEAD + b'\r\n{"scores": []}', "whole"),
        (Question("/score", {}), HEAD + b'\r\n{"scores": ', "cut"),
        (Question("/api/chat", {}, b"}\n"), HEAD + b'\r\n{"done": true}\n', "whole"),
        (Question("/api/chat", {}, b"}\n"), HEAD + b'\r\n{"done": false}\n', "cut"),
        (STREAM, b"HTTP/1.1 503 Busy\r\n\r\n" + b'{"error": {}}', "told"),
        (STREAM, b"HTTP/1.1 500 Oops\r\n\r\n" + b'{"error": {}}', "status 500"),
        (STREAM, b"", "unanswered"),
    ],
)
def test_the_ending_of_an_answer_is_noticed(asked: Question, answer: bytes, how: str) -> None:
    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async def body() -> str:
        async with await asyncio.start_server(reply, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            async with aiohttp.ClientSession() as http:
                return await ending(http, f"http://127.0.0.1:{port}", asked)

    assert asyncio.run(body()) == how


def test_a_server_that_is_not_there_refuses() -> None:
    async def body() -> str:
        async with aiohttp.ClientSession() as http:
            return await ending(http, "http://127.0.0.1:9", STREAM)

    assert asyncio.run(body()) == "refused"


def test_only_after_the_signal_may_a_request_stay_without_answer() -> None:
    fair = ("before: whole", "before: told", "after: whole", "after: refused", "after: unanswered")
    assert not any(map(is_unfair, fair))
    assert all(
        map(is_unfair, ("before: unanswered", "before: cut", "after: cut", "after: status 500"))
    )


def test_servers_that_stop_are_asked_in_several_ways() -> None:
    paths = {question(random.Random(number)).path for number in range(100)}
    assert len(paths) == 5
    assert question(random.Random(3)) == question(random.Random(3))


def test_nginx_gets_the_configuration_of_the_recipe() -> None:
    text = configuration(RECIPE.read_text(), 10, [20, 30], "/tmp/x")
    for part in ("listen 127.0.0.1:10;", "server 127.0.0.1:20 ", "http_503", "pid /tmp/x/pid;"):
        assert part in text
    with pytest.raises(ValueError, match="no block"):
        configuration("no recipe", 1, [2, 3], "/tmp/x")
