"""A batch against a running server: our own, and one that is full, away or wrong."""

import asyncio
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from jaxllama.cli import remote
from jaxllama.cli.remote import seconds_to_wait
from tests.cli.test_batch import rows, write
from tests.serve.clients import asked, saying
from tests.serve.conftest import scenario

ANSWER = {
    "choices": [{"text": "ok", "message": {"content": "ok"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 2, "completion_tokens": 1},
}


@pytest.fixture
def batch(run, tmp_path):
    def batched(url, lines, *options):
        write(tmp_path / "in.jsonl", *lines)
        return run("batch", "in.jsonl", "-o", "out.jsonl", "--server", url, *options)

    return batched


class Pretended:
    """A server that gives the answers of a list, one after the other, then the last for ever."""

    def __init__(self):
        self.answers = [(200, {}, ANSWER)]
        self.bodies, self.heads = [], []
        self.running = self.most = 0
        self.lock = threading.Lock()
        self.together = threading.Barrier(1)
        self.slow = threading.Event()  # until then the prompt "slow" has no answer
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.bodies.append((self.path, body))
                    outer.heads.append(self.headers)
                    outer.running += 1
                    outer.most = max(outer.most, outer.running)
                    first = outer.answers[0]
                    if len(outer.answers) > 1:
                        del outer.answers[0]
                outer.together.wait(10)
                if body.get("prompt") == "slow":
                    outer.slow.wait(20)
                status, headers, answer = first
                raw = json.dumps(answer).encode()
                with outer.lock:
                    outer.running -= 1
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.handle_error = lambda *_: None  # a client that left
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"


@pytest.fixture
def server():
    pretended = Pretended()
    thread = threading.Thread(target=pretended.http.serve_forever, args=(0.01,))
    thread.start()
    yield pretended
    pretended.slow.set()
    pretended.http.shutdown()
    thread.join()
    pretended.http.server_close()


@pytest.fixture
def waits(monkeypatch):
    """The seconds that were waited between two attempts; nothing waits in truth."""
    seconds = []

    def note(_, wait):
        seconds.extend([wait] if wait else [])

    monkeypatch.setattr(remote.RemoteModel, "_pause", note)
    return seconds


def test_our_own_server_answers_with_every_knob(batch, model):
    lines = [
        {"prompt": "ab", "id": "x"},
        {"messages": [{"role": "user", "content": "hi"}], "logprobs": 0},
        {"prompt": [97, 98], "max_tokens": 2, "stop_ids": [5]},
    ]

    async def body():
        async with asked(saying(b"Hello!")) as (live, _):
            return await asyncio.to_thread(
                batch, live.url, lines, "--temperature", "0", "--count", 2
            )

    results = []
    scenario(lambda: collect(body, results))
    assert results[0].exit_code == 0, results[0].stderr
    found = rows(Path("out.jsonl"))  # of each prompt the answer that came last
    assert [found[index]["text"] for index in range(3)] == ["Hello!", "Hello!", "He"]
    assert found[0]["id"] == "x" and found[2]["finish_reason"] == "length"
    assert found[0]["usage"]["prompt"] == 2 and "logprobs" in found[1]
    assert model.loaded == [] and "6 answers, 0 failed" in results[0].stderr


async def collect(body, results):
    results.append(await body())


def test_a_full_server_is_asked_again_when_it_says(batch, server, waits):
    full = (429, {"Retry-After": "7"}, {})
    server.answers = [full, (503, {}, {}), (200, {}, ANSWER)]
    assert batch(server.url, [{"prompt": "a"}]).exit_code == 0
    assert 7 <= waits[0] <= 7.7 and waits[1] > 0 and len(server.bodies) == 3


@pytest.mark.usefixtures("waits")
def test_a_server_that_stays_full_fails_the_request(batch, server, monkeypatch):
    monkeypatch.setattr(remote, "PATIENCE", 0.0)
    server.answers = [(429, {"Retry-After": "1"}, {"error": {"message": "full up"}})]
    result = batch(server.url, [{"prompt": "a"}], "--keep-going")
    assert result.exit_code == 1 and "full up" in rows(Path("out.jsonl"))[0]["error"]


def test_nobody_at_the_address_ends_the_run_at_once(batch):
    result = batch("http://127.0.0.1:1", [{"prompt": "a"}], "--keep-going")
    assert result.exit_code == 2 and "is a server running there?" in result.stderr


def test_so_many_requests_run_at_a_time_and_no_more(batch, server):
    server.together = threading.Barrier(3)  # no answer comes until three wait for one
    lines = [{"prompt": f"{number}"} for number in range(9)]
    assert batch(server.url, lines, "--concurrency", 3).exit_code == 0
    assert server.most == 3 and len(server.bodies) == 9


def test_key_model_and_route_are_sent(batch, server, tmp_path):
    (tmp_path / "key").write_text("secret\n")
    lines = [{"messages": [{"role": "user", "content": "a"}]}]
    batch(f"{server.url}/v1/", lines, "--server-key-file", "key", "-m", "big")
    assert server.bodies == [
        ("/v1/chat/completions", {"messages": lines[0]["messages"], "model": "big"})
    ]
    assert server.heads[0]["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((400, {}, {"error": {"message": "too hot"}}), "line 1: the server answered 400: too hot"),
        ((401, {}, {"error": {"message": "no key"}}), "the server answered 401: no key"),
        ((500, {}, {}), "the server answered 500"),
        ((200, {}, {"answer": 42}), "none of OpenAI's"),
        ((200, {"X-Ignored-Fields": "top_k"}, ANSWER), "does not know top_k"),
    ],
)
def test_what_a_server_refuses_is_told(batch, server, answer, words):
    server.answers = [answer]
    result = batch(server.url, [{"prompt": "a"}])
    assert result.exit_code == 2 and words in result.stderr


def test_an_error_ends_requests_that_still_wait(batch, server):
    server.together = threading.Barrier(2)  # the second fails when the first has been sent
    server.answers = [(400, {}, {"error": {"message": "too hot"}})]
    started = time.monotonic()
    result = batch(server.url, [{"prompt": "slow"}, {"prompt": "bad"}])
    assert "line 2: the server answered 400: too hot" in result.stderr
    assert time.monotonic() - started < 10


def test_the_time_to_wait_may_be_a_date_and_has_an_end():
    assert seconds_to_wait("Fri, 01 Jan 2010 00:00:00 GMT", 1) == 0
    assert 60 <= seconds_to_wait("86400", 1) <= 66
    assert 0.5 <= seconds_to_wait("soon", 1) <= 0.55 < seconds_to_wait(None, 5)
