"""The clients of bench/serve.py, on servers of which it is known what they say."""

import asyncio
import contextlib
import importlib
import json
import os
import queue
import select
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from click.testing import CliRunner, Result

from jaxllama.serve.dialects.native import Native
from jaxllama.serve.dialects.ollama import Ollama
from jaxllama.serve.dialects.openai import OpenAI
from tests.serve.clients import saying
from tests.serve.conftest import running

BENCH = Path(__file__).parents[1] / "bench"
PIECE = b'data: {"choices": [{"text": "a"}]}\r\n\r\n'
USAGE = b'data: {"choices": [], "usage": {"completion_tokens": 7}}\n\n'
END = b"data: [DONE]\n\n"


@pytest.fixture(autouse=True)
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCH)


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(module("serve").main, ["--json", *arguments])


def records(*arguments: str) -> dict[str, dict[str, Any]]:
    """What it prints, by case."""
    result = run("--eos", "--repetitions", "1", "--requests", "2", *arguments)
    assert result.exit_code == 0, result.output
    found = [json.loads(line) for line in result.stdout.splitlines()]
    return {record["case"]: record for record in found}


@contextlib.contextmanager
def in_thread(server: Callable[[], contextlib.AbstractAsyncContextManager[str]]) -> Iterator[str]:
    """The address of a server in a thread of its own."""
    said: queue.Queue[str] = queue.Queue()
    loop, over = asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        async with server() as url:
            said.put(url)
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        yield said.get(timeout=30)
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()


@contextlib.asynccontextmanager
async def ours() -> AsyncIterator[str]:
    """Our server on the scripted engine."""
    dialects = [OpenAI(), Native(), Ollama()]  # a dialect belongs to one server
    async with running(saying(b"Hello!", context=1024), dialects=dialects) as live:
        yield live.url


def saying_raw(*parts: bytes, status: int = 200) -> Any:
    """A server that sends these bytes, then closes."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=status)
        await response.prepare(request)
        for part in parts:
            await response.write(part)
        return response

    @contextlib.asynccontextmanager
    async def server() -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_post("/v1/completions", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    return server


def seen(*parts: bytes, status: int = 200) -> Any:
    """The answer that one client saw of these bytes."""
    load = module("load")
    with in_thread(saying_raw(*parts, status=status)) as url:
        clients = load.Clients(url, "m", load.LoadShape(requests=1))
        (answer,) = clients.closed(1).answers
    return answer


FIGURES = [
    *("", ", answers", ", first token, p50", ", first token, p99", ", between tokens, p50"),
    *(", between tokens, p99", ", whole answer, p50", ", whole answer, p99"),
]


@pytest.mark.parametrize("chat", [(), ("--chat",)])
@pytest.mark.parametrize("api", [(), ("--api", "ollama")])
def test_two_servers_are_measured_in_turn(chat: tuple[str, ...], api: tuple[str, ...]) -> None:
    with in_thread(ours) as url, in_thread(ours) as peer:
        found = records("--url", f"{url}/v1/", "--peer", peer, "--concurrency", "3", *chat, *api)
    case = ", ".join(["scripted, 3 streams, 64+64 tokens", *api[1:]])
    name = peer.removeprefix("http://")
    assert list(found) == [
        *(f"{case}{figure}" for figure in FIGURES),
        f"{case}, lost",
        f"{case}, {name}, lost",
    ]
    assert all(found[f"{case}{figure}"]["peer"] == name for figure in FIGURES)
    assert found[f"{case}, lost"]["value"] == 0
    assert {record["backend"] for record in found.values()} == {"http"}
    assert {record["device"] for record in found.values()} == {url.removeprefix("http://")}


def test_the_lines_of_ollama_are_read_however_they_come() -> None:
    load = module("load")
    told = (
        b'{"response":"a","done":false}\n{"message":{"content":"b"},"done":false}\n'
        b'{"response":"","done":true,"eval_count":9}\n'
    )

    async def read(raw: bytes) -> Any:
        async def pieces() -> AsyncIterator[bytes]:
            for at in range(0, len(raw), 7):
                yield raw[at : at + 7]

        answer = load.Answer(0.0)
        await load.LineReader(answer).read(SimpleNamespace(iter_any=pieces))
        return answer

    answer = asyncio.run(read(told))
    assert (answer.error, answer.texts, answer.tokens) == (None, ["a", "b"], 9)
    assert asyncio.run(read(told[:70])).error == "cut off"
    assert asyncio.run(read(b'{"error":"no"}\n')).error == "error event"


def test_an_open_load_is_measured() -> None:
    with in_thread(ours) as url:
        found = records("--url", url, "--rate", "40", "--duration", "0.5")
    case = "scripted, 40 requests/s come, 64+64 tokens"
    assert list(found) == [*(f"{case}{figure}" for figure in FIGURES), f"{case}, lost"]


def test_clients_that_come_by_chance_keep_to_their_rate_and_seed() -> None:
    arrivals = module("load").arrivals
    found = list(arrivals(50.0, 100.0, 1))
    assert found == sorted(found) == list(arrivals(50.0, 100.0, 1))
    assert found != list(arrivals(50.0, 100.0, 2))
    assert len(found) == pytest.approx(5000, rel=0.05)
    assert found[-1] < 100.0


def test_an_answer_is_read_however_its_bytes_come() -> None:
    told = PIECE * 3 + USAGE + END
    answer = seen(*(told[at : at + 5] for at in range(0, len(told), 5)))
    assert (answer.error, answer.texts, answer.tokens) == (None, ["a"] * 3, 7)
    assert len(answer.moments) == 3


def test_pieces_are_counted_where_the_server_counts_no_tokens() -> None:
    assert seen(PIECE, PIECE, END).tokens == 2


@pytest.mark.parametrize(
    ("kind", "parts", "status"),
    [
        ("cut off", (PIECE,), 200),
        ("error event", (PIECE, b'data: {"error": {"message": "no"}}\n\n'), 200),
        ("not an event", (b"data: {oh\n\n",), 200),
        ("HTTP 503", (b"later",), 503),
    ],
)
def test_what_goes_wrong_has_a_kind(kind: str, parts: tuple[bytes, ...], status: int) -> None:
    assert seen(*parts, status=status).error == kind


def test_a_server_that_is_not_there_is_a_kind_of_error() -> None:
    load = module("load")
    (answer,) = (
        load.Clients("http://127.0.0.1:1", "m", load.LoadShape(requests=1)).closed(1).answers
    )
    assert answer.error == "ClientConnectorError"


def test_requests_that_were_lost_are_told_by_kind() -> None:
    harness, load, serve = module("harness"), module("load"), module("serve")
    whole = load.Answer(0.0, ["a", "b"], [1.0, 2.0], 2, 2.0)
    lost = [load.Answer(0.0, error=kind) for kind in ("cut off", "HTTP 429", "cut off")]
    board = harness.Board("serve", as_json=False, short=False)
    board.environment = module("environment").environment_of_machine()
    serve.record_loads(board, "c", [[load.Load([whole, *lost], 4.0, 0.1)]], None)
    found = {record.case: record.value for record in board.records}
    assert found["c"] == 0.5
    assert (found["c, first token, p50"], found["c, between tokens, p99"]) == (1000.0, 1000.0)
    assert (found["c, lost"], found["c, lost: cut off"], found["c, lost: HTTP 429"]) == (3, 2, 1)


def test_a_load_without_one_whole_answer_fails() -> None:
    with in_thread(ours) as url:
        result = run("--url", url, "--concurrency", "2", "--tokens", "100000")
    assert result.exit_code == 1
    assert "HTTP 400" in result.stderr


def test_clients_that_work_hard_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    load, serve = module("load"), module("serve")
    serve.warn_of_clients("c", [load.Load([], 1.0, 0.4)])
    assert capsys.readouterr().err == ""
    serve.warn_of_clients("c", [load.Load([], 1.0, 0.4), load.Load([], 1.0, 0.6)])
    assert "0.60 of a core" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option",
    [
        *(("-m", "tiny-q4_0"), ("--slots", "2"), ("--overhead",), ("--dtype", "float32")),
        *(("--mesh", "data=1,model=1"), ("--platform", "cpu"), ("--cache-dtype", "int8")),
    ],
)
def test_what_is_for_a_server_of_our_own_is_refused_with_a_url(option: tuple[str, ...]) -> None:
    result = run("--url", "http://127.0.0.1:1", *option)
    assert result.exit_code == 2
    assert "server that this command starts" in result.stderr


def test_an_address_without_models_is_refused() -> None:
    result = run("--url", "http://127.0.0.1:1")
    assert result.exit_code == 1
    assert "OpenAI-compatible" in result.stderr


STARTS = """
import os, pathlib, sys
sys.path.insert(0, {bench!r})
import child

with child.server_process(["--port", "0", "-m", {missing!r}], pathlib.Path({log!r})) as process:
    print(process.pid, flush=True)
    sys.stdin.read()
"""


def test_a_server_ends_when_the_benchmark_is_killed(tmp_path: Path) -> None:
    starter = STARTS.format(bench=str(BENCH), missing="tiny", log=str(tmp_path / "log"))
    # A server that would wait for ever: a jaxllama in the folder of the log is what it imports.
    package = tmp_path / "jaxllama/cli"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package / "main.py").write_text("import time\ndef main():\n    time.sleep(3600)\n")
    benchmark = subprocess.Popen(
        [sys.executable, "-c", starter], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with benchmark:
        assert benchmark.stdout is not None
        server = int(benchmark.stdout.readline())
        handle = os.pidfd_open(server)  # ready once the process has ended
        try:
            benchmark.kill()
            ready, _, _ = select.select([handle], [], [], 60.0)
        finally:
            os.close(handle)
    assert ready == [handle]
