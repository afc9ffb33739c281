"""The gateway, with scripted replicas: what passes, is asked again, and what clients are told."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from jaxllama.deploy.gateway import MOST_LOST, Gateway
from jaxllama.deploy.parcel import Accepted, Head, Parcel, Part
from jaxllama.errors import QueueFull, ReplicaLost
from jaxllama.serve.error_forms import ErrorForms
from jaxllama.serve.fronted import SENDER
from jaxllama.serve.installed import open_dialects
from jaxllama.serve.settings import Settings

LAST = b'data: {"error": "lost"}\n\n'
DIES = object()


@dataclass
class Replicas:
    """Replicas that answer as `script` says: it maps a parcel and a replica to parts, or DIES."""

    script: Callable[[Parcel, str], list]
    names: tuple[str, ...] = ("a", "b")
    asked: list[str] = field(default_factory=list)
    parcels: list[Parcel] = field(default_factory=list)
    closed: int = 0

    async def carry(self, parcel: Parcel) -> AsyncIterator[Part]:
        free = [each for each in self.names if each not in parcel.avoid]
        name = (free or self.names)[0]
        self.asked.append(name)
        self.parcels.append(parcel)
        try:
            yield Accepted(name)
            for part in self.script(parcel, name):
                if part is DIES:
                    raise ReplicaLost
                if isinstance(part, asyncio.Event):
                    await part.wait()
                    continue
                yield part
        finally:
            self.closed += 1


def whole(body: bytes = b"{}", status: int = 200, *more) -> list:
    return [Head(status, (("Content-Length", str(len(body))), *more)), body]


def stream(*parts) -> list:
    return [Head(200, (("Content-Type", "text/event-stream"),), LAST), *parts]


class AsgiClient:
    """One request to the gateway, as a server for ASGI makes it."""

    def __init__(self, gateway: Gateway, method="POST", target="/v1/x", body=b"", headers=()):
        path, _, query = target.partition("?")
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(b"host", b"localhost"), *headers],
            "client": ("192.0.2.7", 5555),
        }
        self._incoming: asyncio.Queue = asyncio.Queue()
        self._incoming.put_nowait({"type": "http.request", "body": body, "more_body": False})
        self.status, self.headers, self.body = 0, {}, b""
        self.begun = asyncio.Event()
        self.is_whole = False
        self.task = asyncio.ensure_future(gateway(scope, self._incoming.get, self._send))

    async def _send(self, message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.body += message["body"]
            self.is_whole = not message["more_body"]
            self.begun.set()

    async def done(self) -> "AsgiClient":
        await self.task
        assert self.is_whole
        return self

    async def leave(self) -> None:
        self._incoming.put_nowait({"type": "http.disconnect"})
        await self.task


@asynccontextmanager
async def gateway_to(script, names=("a", "b"), wait_seconds=30.0, **settings):
    replicas = Replicas(script, names)
    chosen = Settings(**settings)
    forms = ErrorForms(chosen, open_dialects(chosen))
    async with asyncio.timeout(30):
        yield Gateway(replicas.carry, forms, chosen, wait_seconds), replicas
    assert replicas.closed == len(replicas.asked)


def scenario(body) -> None:
    asyncio.run(body())


def test_a_request_and_its_answer_pass_as_they_are():
    async def test():
        answer = whole(b"hi", 201, ("X-Note", "é"), ("Connection", "close"), ("Set-Cookie", "a"))
        async with gateway_to(lambda *_: answer) as (gateway, replicas):
            sent = [(b"x-own", b"1"), (b"connection", b"close"), (b"expect", b"100-continue")]
            sent.append((SENDER.lower().encode(), b"10.0.0.1"))
            got = await AsgiClient(gateway, "PUT", "/a%2Fb?c=%20d", b"\x00raw", headers=sent).done()
            assert (got.status, got.body) == (201, b"hi")
            assert got.headers == {"content-length": "2", "x-note": "é", "set-cookie": "a"}
            [parcel] = replicas.parcels
            assert (parcel.method, parcel.target, parcel.body) == (
                "PUT",
                "/a%2Fb?c=%20d",
                b"\x00raw",
            )
            expected = (("host", "localhost"), ("x-own", "1"), (SENDER, "192.0.2.7"))
            assert parcel.headers == expected

    scenario(test)


def test_a_stream_passes_piece_by_piece():
    async def test():
        more = asyncio.Event()
        async with gateway_to(lambda *_: stream(b"one", more, b"two")) as (gateway, _):
            client = AsgiClient(gateway)
            await client.begun.wait()
            assert client.body == b"one"
            more.set()
            assert (await client.done()).body == b"onetwo"

    scenario(test)


def test_the_prompt_is_there_for_the_router():
    async def test():
        async with gateway_to(lambda *_: whole()) as (gateway, replicas):
            for body in (json.dumps({"prompt": "x" * 300}).encode(), b"{broken", b""):
                await AsgiClient(gateway, body=body).done()
            assert [len(each.blocks) for each in replicas.parcels] == [2, 0, 0]

    scenario(test)


@pytest.mark.parametrize("before", [[], [whole()[0]], whole(b"{} and more")[:1]])
def test_a_request_that_was_not_answered_is_asked_again(before):
    async def test():
        def script(_, name):
            return [*before, DIES] if name == "a" else whole(b"second")

        async with gateway_to(script) as (gateway, replicas):
            got = await AsgiClient(gateway).done()
            assert (got.status, got.body) == (200, b"second")
            assert replicas.asked == ["a", "b"]
            assert (gateway.figures.retried, gateway.figures.lost) == (1, 0)

    scenario(test)


def test_a_cut_stream_ends_with_the_last_words_of_its_replica():
    async def test():
        async with gateway_to(lambda *_: stream(b"data: 1\n\n", DIES)) as (gateway, replicas):
            got = await AsgiClient(gateway).done()
            assert got.body == b"data: 1\n\n" + LAST
            assert replicas.asked == ["a"]
            assert (gateway.figures.retried, gateway.figures.lost) == (0, 1)

    scenario(test)


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("/v1/chat/completions", {"type": "server_error", "code": "replica_lost"}),
        ("/v1/messages", {"type": "overloaded_error"}),
        ("/api/chat", None),
    ],
)
def test_a_request_that_ends_replicas_is_not_asked_for_ever(target, error):
    async def test():
        async with gateway_to(lambda *_: [DIES], names=("a", "b", "c", "d")) as (gateway, replicas):
            got = await AsgiClient(gateway, target=target).done()
            assert got.status >= 500 and got.headers["retry-after"] == "1"
            told = json.loads(got.body)["error"]
            if error is None:
                assert "replica" in told
            else:
                assert told.items() >= error.items()
            assert len(replicas.asked) == MOST_LOST

    scenario(test)


def test_a_full_replica_is_asked_after_another_and_its_refusal_passes():
    async def test():
        refusal = whole(b"full", 429, ("Retry-After", "3"))
        free = {"b"}
        async with gateway_to(
            lambda _, name: whole(b"ok") if name in free else refusal, names=("a", "b", "c")
        ) as (gateway, replicas):
            assert (await AsgiClient(gateway).done()).body == b"ok"
            free.clear()
            got = await AsgiClient(gateway).done()
            assert (got.status, got.headers["retry-after"]) == (429, "3")
            assert replicas.asked == ["a", "b", "a", "b"]

    scenario(test)


def test_what_a_replica_does_not_know_is_sought_at_all_others():
    async def test():
        holders = {"c"}
        async with gateway_to(
            lambda _, name: whole(b"it") if name in holders else whole(b"no", 404),
            names=("a", "b", "c"),
        ) as (gateway, replicas):
            got = await AsgiClient(gateway, "GET", "/v1/responses/1").done()
            assert (got.status, got.body) == (200, b"it")
            assert replicas.asked == ["a", "b", "c"]
            holders.clear()
            got = await AsgiClient(gateway, "GET", "/v1/responses/1").done()
            assert got.status == 404

    scenario(test)


def test_ray_s_full_queue_is_told_in_the_dialect_s_form():
    async def test():
        async def full(_):
            raise QueueFull("too many requests wait for a replica")
            yield

        forms = ErrorForms(Settings(), open_dialects(Settings()))
        gateway = Gateway(full, forms, Settings())
        got = await AsgiClient(gateway, target="/v1/messages").done()
        assert got.status == 429 and got.headers["retry-after"] == "1"
        assert json.loads(got.body)["error"]["type"] == "rate_limit_error"

    scenario(test)


def test_without_a_replica_a_client_is_told_in_time():
    async def test():
        async def nowhere(_):
            await asyncio.Event().wait()
            yield

        forms = ErrorForms(Settings(), open_dialects(Settings()))
        gateway = Gateway(nowhere, forms, Settings(), wait_seconds=0.01)
        got = await AsgiClient(gateway, target="/v1/completions").done()
        assert got.status == 503 and json.loads(got.body)["error"]["code"] == "not_ready"

    scenario(test)


def test_a_client_that_leaves_cancels_its_request():
    async def test():
        never = asyncio.Event()
        async with gateway_to(lambda *_: stream(b"one", never)) as (gateway, replicas):
            client = AsgiClient(gateway)
            await client.begun.wait()
            assert gateway.figures.open == 1
            await client.leave()
            assert replicas.closed == 1 and gateway.figures.open == 0

    scenario(test)


def test_draining_lets_requests_finish_and_refuses_new_ones():
    async def test():
        more = asyncio.Event()
        async with gateway_to(lambda *_: stream(b"one", more, b"two")) as (gateway, _):
            client = AsgiClient(gateway)
            await client.begun.wait()
            draining = asyncio.ensure_future(gateway.drain(20))
            await asyncio.sleep(0)
            late = await AsgiClient(gateway, target="/v1/completions").done()
            assert late.status == 503 and json.loads(late.body)["error"]["code"] == "not_ready"
            more.set()
            await draining
            assert (await client.done()).body == b"onetwo"

    scenario(test)


def test_what_does_not_finish_while_draining_is_told_so():
    async def test():
        async with gateway_to(lambda *_: stream(b"one", asyncio.Event())) as (gateway, _):
            client = AsgiClient(gateway)
            await client.begun.wait()
            await gateway.drain(0)
            assert (await client.done()).body == b"one" + LAST

    scenario(test)


def test_a_body_that_is_too_large_is_not_passed_on():
    async def test():
        async with gateway_to(lambda *_: whole(), body_bytes=10) as (gateway, replicas):
            got = await AsgiClient(gateway, target="/v1/completions", body=b"x" * 11).done()
            assert got.status == 413 and not replicas.asked

    scenario(test)


def test_metrics_are_those_of_all_replicas():
    async def test():
        async with gateway_to(lambda *_: whole(b"# HELP x X\n# TYPE x gauge\nx 1.0\n")) as found:
            gateway, replicas = found
            got = await AsgiClient(gateway, "GET", "/metrics").done()
            lines = got.body.decode().splitlines()
            assert 'x{replica="a"} 1.0' in lines and 'x{replica="b"} 1.0' in lines
            assert "jaxllama_gateway_lost_total 0.0" in lines
            assert got.headers["content-length"] == str(len(got.body))
            assert set(replicas.asked) == {"a", "b"}

    scenario(test)


def test_a_websocket_is_refused_with_a_reason():
    async def test():
        async with gateway_to(lambda *_: whole()) as (gateway, _):
            for extensions in ({}, {"websocket.http.response": {}}):
                scope = {"type": "websocket", "path": "/ws", "extensions": extensions}
                scope["headers"] = []
                sent = []

                async def send(message, sent=sent):
                    sent.append(message)

                async def receive():
                    return {"type": "websocket.connect"}

                await gateway(scope, receive, send)
                if extensions:
                    assert sent[0]["status"] == 501 and b"WebSocket" in sent[1]["body"]
                else:
                    assert sent == [{"type": "websocket.close", "code": 1003}]

    scenario(test)
