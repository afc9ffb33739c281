"""The HTTP layer against clients that cheat, dawdle or flood; with both of aiohttp's parsers."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.conftest import post

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "header_seconds": 0.5,
    "body_seconds": 0.5,
    "body_bytes": 100_000,
    "api_keys": ["secret"],
}
KEY = "Authorization: Bearer secret"


@pytest.fixture(scope="module", params=["C", "Python"])
def address(request) -> Iterator[tuple[str, int]]:
    """A server in a process of its own, so that aiohttp is loaded with this parser."""
    env = os.environ | ({"AIOHTTP_NO_EXTENSIONS": "1"} if request.param == "Python" else {})
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.serve.program", json.dumps(SETTINGS)],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    with process.stdout:
        host, port = process.stdout.readline().decode().strip()[len("http://") :].split(":")
        while b" 200 " not in talk((host, int(port)), get("/ready")):
            assert process.poll() is None
        yield host, int(port)
    process.kill()
    process.wait()


def talk(address: tuple[str, int], raw: bytes, *, one: bool = True) -> bytes:
    """Send, and read one answer, or all until the connection is closed."""
    with socket.create_connection(address, timeout=20) as sock:
        with contextlib.suppress(ConnectionError):  # refused before the end
            sock.sendall(raw)
        answer = b""
        while not (one and is_whole(answer)):
            try:
                more = sock.recv(65536)
            except ConnectionResetError:
                more = b""
            if not more:
                break
            answer += more
        return answer


def is_whole(answer: bytes) -> bool:
    head, _, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    return bool(length) and len(body) >= int(length[1])


def get(path: str, *more: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *more]).encode() + b"\r\n\r\n"


def ask(*more: str, body: object = None) -> bytes:
    return post({} if body is None else body, KEY, *more)


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


def error(answer: bytes) -> dict[str, str]:
    """The error in an answer; it must be JSON and tell nothing about the machine."""
    body = answer.partition(b"\r\n\r\n")[2]
    for secret in (b"Traceback", b"aiohttp", str(ROOT).encode()):
        assert secret not in body
    return json.loads(body)["error"]


@pytest.fixture
def says(address):
    """Afterwards, the next client is served."""
    yield lambda raw, **how: talk(address, raw, **how)
    assert status(talk(address, ask())) == 200


SMUGGLED = b"0\r\n\r\n" + ask()


@pytest.mark.parametrize(
    "raw",
    [
        ask("Content-Length: 5", "Transfer-Encoding: chunked", body=SMUGGLED),
        ask("Content-Length: 2", "Content-Length: 40", body=SMUGGLED),
        ask("Content-Length: +5"),
        ask("Content-Length: -1"),
        ask("Content-Length: 1_0"),
        ask("Content-Length: \u0665"),
        ask("Transfer-Encoding: chunked, identity", body=b"2\r\n{}\r\n0\r\n\r\n"),
        b"GET /" + b"a" * 8191 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        get("/health", *(f"X-{i}: 1" for i in range(129))),
        get("/health", "X-Long: " + "a" * 9000),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello over TLS\r\n\r\n",
        b"NONSENSE\r\n\r\n",
        get("/health").replace(b"\r\nHost", b"\r\n Host"),
    ],
    ids=range(13),
)
def test_what_is_no_clear_request_is_refused_and_the_connection_closed(says, raw):
    answer = says(raw, one=False)
    assert status(answer) in (400, 414, 431)
    assert answer.count(b"HTTP/1.") == 1  # what was smuggled behind is not answered
    error(answer)


@pytest.mark.parametrize("host", ["a/?x=", "h/#", "", "evil.example", "a" * 8000, "localhost.evil"])
def test_a_strange_host_opens_nothing(says, host):
    raw = f"POST /say HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n".encode()
    assert status(says(raw)) in (400, 401, 403)


def test_two_hosts_open_nothing(says):
    assert status(says(ask("Host: evil.example"))) in (400, 403)


def test_a_request_in_tiny_pieces_is_a_request(address):
    with socket.create_connection(address, timeout=20) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in ask():
            sock.sendall(bytes([byte]))
        assert sock.recv(100).startswith(b"HTTP/1.1 200")


def test_a_body_over_the_limit_is_refused_before_it_is_sent(says):
    answer = says(ask("Content-Length: 100001", body=b""), one=True)
    assert status(answer) == 413
    assert error(answer)["code"] == "body_too_large"


def test_a_body_without_a_length_is_refused_where_it_crosses_the_limit(says):
    chunks = b"".join(b"2710\r\n" + b" " * 10_000 + b"\r\n" for _ in range(20))
    answer = says(ask("Transfer-Encoding: chunked", body=chunks))
    assert status(answer) == 413


def test_a_body_of_exactly_the_limit_is_read(says):
    body = b"{}".ljust(100_000)
    assert status(says(ask(body=body))) == 200


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_compressed_bodies_are_refused_unread(says, coding):
    answer = says(ask(f"Content-Encoding: {coding}", body=b"\x1f\x8b" + b"\0" * 1000))
    assert status(answer) == 415


def test_a_head_that_does_not_come_is_given_up(says):
    answer = says(b"POST /say HTTP/1.1\r\nHost: local", one=False)
    assert status(answer) == 408
    assert error(answer)["code"] == "request_timeout"


def test_a_second_head_that_does_not_come_is_given_up(address):
    with socket.create_connection(address, timeout=20) as sock:
        sock.sendall(get("/health"))
        assert sock.recv(1000).startswith(b"HTTP/1.1 200")
        sock.sendall(b"GET /hea")
        assert sock.recv(1000).startswith(b"HTTP/1.1 408")
        assert sock.recv(1000) == b""


def test_a_body_that_does_not_come_is_given_up(says):
    answer = says(ask("Content-Length: 50", body=b'{"prompt": '), one=True)
    assert status(answer) == 408
    assert error(answer)["code"] == "request_timeout"


def test_pipelined_requests_are_answered_in_order(says):
    count = 100
    raw = b"".join(ask(body={"prompt": "p", "max_tokens": i + 1}) for i in range(count))
    last = ask("Connection: close", body={"prompt": "p", "max_tokens": count + 1})
    answer = says(raw + last, one=False)
    lengths = [len(each) for each in re.findall(rb'"texts":\["(x+)"\]', answer)]
    assert lengths == list(range(1, count + 2))


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ("Content-Type: text/plain", 415),
        ("Content-Type: multipart/form-data; boundary=x", 415),
        ("Content-Type: application/x-www-form-urlencoded", 415),
        ("Content-Type: application/json; charset=latin-1", 415),
        ("Content-Type: application/json; charset=UTF-8", 200),
    ],
)
def test_only_json_is_taken_for_json(says, header, code):
    assert status(says(ask(header))) == code


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 50_000,
        b"[" * 50_000 + b"]" * 50_000,
        b'{"a":' * 1000 + b"1" + b"}" * 1000,
        b'{"n": 1, "n": 2}',
        b'{"logit_bias": {"5": 1, "5": 2}}',
        b'{"temperature": NaN}',
        b'{"temperature": Infinity}',
        b'{"temperature": 1e999}',
        b'{"n": ' + b"1" * 90_000 + b"}",
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "\xff"}',
        b'{"prompt": "unfinished',
        b'"\\' * 40_000,
        b"[]",
        b"null",
        b"",
        b"{'n': 1}",
        b"\xef\xbb\xbf{}",
    ],
    ids=range(18),
)
def test_what_is_no_sound_json_is_refused(says, body):
    answer = says(ask(body=body))
    assert status(answer) == 400
    assert error(answer)["message"]


def test_before_100_continue_what_would_be_refused_is_refused(says):
    answer = says(ask("Expect: 100-continue", "Content-Length: 900000", body=b""))
    assert status(answer) == 413
    answer = says(post(b"", "Expect: 100-continue", "Content-Length: 9"))
    assert status(answer) == 401


def test_100_continue_is_said_where_the_body_is_wanted(address):
    with socket.create_connection(address, timeout=20) as sock:
        sock.sendall(ask("Expect: 100-continue", "Content-Length: 2", body=b""))
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"{}")
        assert sock.recv(100).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("path", ["/say", "/health", "/nothing"])
def test_an_unknown_expectation_is_refused_with_417(says, path):
    answer = says(get(path, "Expect: x"))
    assert status(answer) == 417
    assert "'x'; expected 100-continue" in error(answer)["message"]


@pytest.mark.parametrize(
    ("path", "code"), [("/nothing", 404), ("/health", 405), ("/say", 413), ("/say", 415)]
)
def test_100_continue_is_not_said_where_the_request_is_refused(says, path, code):
    length = "Content-Length: 900000" if code == 413 else "Content-Length: 9"
    kind = "Content-Type: text/plain" if code == 415 else "Content-Type: application/json"
    raw = post(b"", KEY, "Expect: 100-continue", length, kind, path=path)
    assert status(says(raw)) == code


def test_100_continue_is_not_said_to_http_1_0(says):
    raw = ask("Expect: 100-continue", "Connection: close").replace(b"HTTP/1.1", b"HTTP/1.0", 1)
    answer = says(raw, one=False)
    assert status(answer) == 200
    assert answer.count(b"HTTP/1.") == 1


def test_a_body_in_tiny_chunks_is_refused(says):
    body = b"1\r\nx\r\n" * 50_000 + b"0\r\n\r\n"
    answer = says(ask("Transfer-Encoding: chunked", body=body))
    assert status(answer) == 400
    assert error(answer)["code"] == "chunks_too_small"


def test_a_client_whose_body_is_refused_may_send_it_to_the_end(address):
    """Otherwise the connection would be reset, and the answer might be lost."""
    with socket.create_connection(address, timeout=20) as sock:
        sock.sendall(ask("Transfer-Encoding: chunked", body=b"1\r\nx\r\n" * 100_000))
        answer = b""
        while more := sock.recv(65536):
            answer += more
    assert status(answer) == 400
    assert error(answer)["code"] == "chunks_too_small"


@pytest.mark.parametrize("size", [1, 100])
def test_a_body_in_some_small_chunks_is_read(says, size):
    body = b'{"prompt": "' + b"a" * (5_000 if size == 1 else 90_000) + b'", "n": 0}'
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(each), each) for each in pieces) + b"0\r\n\r\n"
    answer = says(ask("Transfer-Encoding: chunked", body=chunks))
    assert error(answer)["param"] == "n"
