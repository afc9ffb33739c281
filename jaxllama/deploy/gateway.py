"""The gateway: passes requests of clients to replicas, and answers for replicas that are lost.

An ASGI application, which Ray Serve runs. Every request passes as it is, whatever its dialect; the
gateway reads a body only to route it. A request of whose answer no byte was sent yet is asked again
of another replica if its own is lost, refuses it for load, or does not know what it is about. A
stream that is cut ends with the error that its replica left for that case. Knows no Ray.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from jaxllama.deploy.figures import GatewayFigures, merge_metrics
from jaxllama.deploy.parcel import Accepted, Carry, Head, Headers, Parcel, Part
from jaxllama.deploy.prefixes import blocks_of
from jaxllama.errors import HttpError, JaxLlamaError, NotReady, ReplicaLost
from jaxllama.serve.decode import too_large
from jaxllama.serve.error_forms import ErrorForms
from jaxllama.serve.fronted import SENDER
from jaxllama.serve.settings import Settings

logger = logging.getLogger(__name__)

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MOST_LOST = 3  # replicas that one request may lose before the client is told
MOST_REFUSALS = 2  # replicas that are asked while they refuse for load
NOT_FOUND = 404  # another replica may have the file, the response or the request that is meant
REFUSALS = (429, 503)
MOST_READ = 1 << 20  # bytes of a body that is read for routing
GOODBYE_SECONDS = 2.0  # for clients to be told that the deployment ends
# Headers of one connection; each side of the gateway has its own.
OF_CONNECTION = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
NOT_PASSED_ON = OF_CONNECTION | {"content-length", "expect", SENDER.lower()}
NOT_PASSED_BACK = OF_CONNECTION | {"date", "server"}


@dataclass(frozen=True)
class WholeAnswer:
    """An answer of a replica that is not a stream, before it is sent to the client."""

    replica: str
    head: Head
    body: bytes


class ClientStream:
    """The response to one client: what was sent of it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_begun = False
        self.last_words = b""

    async def begin(self, status: int, headers: Headers) -> None:
        """Send the status and the headers."""
        self.has_begun = True
        raw = [
            (name.lower().encode("latin-1"), value.encode("utf-8", "surrogateescape"))
            for name, value in headers
            if name.lower() not in NOT_PASSED_BACK
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def write(self, data: bytes, *, is_last: bool = False) -> None:
        """Send bytes of the body; waits while the client reads slowly.

        `is_last`: the body ends after these bytes.
        """
        await self._send({"type": "http.response.body", "body": data, "more_body": not is_last})

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole response: status, headers and body."""
        await self.begin(status, headers)
        await self.write(body, is_last=True)


class Gateway:
    """The ASGI application."""

    def __init__(
        self, carry: Carry, forms: ErrorForms, settings: Settings, wait_seconds: float = 30.0
    ) -> None:
        """Store how to reach replicas.

        `carry` passes a client's request (a parcel) to a replica of the router's choice and yields
        the parts of its answer; a replica must have accepted it within `wait_seconds`. `forms`
        writes the gateway's errors in the form of the API that the client uses; `settings` are
        those of the server.
        """
        self._carry, self._forms, self._settings = carry, forms, settings
        self._wait_seconds = wait_seconds
        self._open: set[asyncio.Task[None]] = set()
        self._is_draining = self._is_ending = False
        self.figures = GatewayFigures()

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request; the arguments are those of an ASGI application."""
        match scope["type"]:
            case "lifespan":
                await live(receive, send)
            case "websocket":
                await self._refuse_socket(scope, receive, send)
            case _:
                await self._answer_client(scope, receive, send)

    async def drain(self, seconds: float) -> None:
        """Refuse new requests, wait for open ones to end, and end the rest after `seconds`."""
        self._is_draining = True
        if self._open:
            await asyncio.wait(self._open, timeout=seconds)
        self._is_ending = True
        for each in self._open:
            each.cancel()
        if self._open:
            await asyncio.wait(self._open, timeout=GOODBYE_SECONDS)

    async def _answer_client(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request over HTTP; stops when the client leaves.

        The arguments are those of an ASGI application.
        """
        out = ClientStream(send)
        parcel = parcel_of(scope, b"")
        work = asyncio.ensure_future(self._answer(parcel, receive, out))
        self._open.add(work)
        self.figures.open = len(self._open)
        try:
            await asyncio.wait([work])
        finally:
            if not work.done():
                work.cancel()
                await asyncio.wait([work])
            self._open.discard(work)
            self.figures.open = len(self._open)
        if not work.cancelled() and work.exception() is not None:
            raise work.exception()  # type: ignore[misc]

    async def _answer(self, parcel: Parcel, receive: Receive, out: ClientStream) -> None:
        """Read the body of a request and answer it; every expected error is sent to the client.

        `parcel` is the request, `out` the response to its client.
        """
        names: Collection[str] = ()
        try:
            if self._is_draining:
                raise NotReady("the server is going away; ask again elsewhere or later")
            body = await read_body(receive, self._settings)
            decoded = decode(parcel, body)
            names = decoded.keys() if isinstance(decoded, dict) else ()
            parcel = replace(parcel, body=body, blocks=blocks_of(decoded))
            if parcel.target.partition("?")[0] == "/metrics" and parcel.method == "GET":
                await self._measure(parcel, out)
            else:
                await self._until_left(receive, self._ask_replicas(parcel, out))
        except JaxLlamaError as error:
            await self._tell(error, parcel, names, out)
        except asyncio.CancelledError:
            if not self._is_ending:
                raise
            await self._tell(NotReady("the server is going away"), parcel, names, out)

    async def _until_left(self, receive: Receive, work: Any) -> None:
        """Run the coroutine `work` to its end, but cancel it when the client leaves."""
        working = asyncio.ensure_future(work)
        leaving = asyncio.ensure_future(left(receive))
        try:
            await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            if not working.done():
                working.cancel()
            await asyncio.wait((working, leaving))
        if not working.cancelled():
            working.result()

    async def _ask_replicas(self, parcel: Parcel, out: ClientStream) -> None:
        """Ask replicas until one answers, and send its answer.

        `parcel` is the request, `out` the response to its client. Raises ReplicaLost if a replica
        is lost in the middle of its answer, or if several are lost.
        """
        asked: set[str] = set()
        lost = 0
        while True:
            try:
                answer = await self._ask(replace(parcel, avoid=frozenset(asked)), asked, out)
            except ReplicaLost:
                lost += 1
                if out.has_begun or lost == MOST_LOST:
                    self.figures.lost += 1
                    raise
                self.figures.retried += 1
                logger.info("asking another replica for %s %s", parcel.method, parcel.target)
                continue
            if answer is None:
                return
            is_new = answer.replica not in asked
            asked.add(answer.replica)
            if is_new and may_differ(answer.head.status, len(asked) - lost):
                continue
            await out.whole(answer.head.status, answer.head.headers, answer.body)
            return

    async def _ask(self, parcel: Parcel, asked: set[str], out: ClientStream) -> WholeAnswer | None:
        """Ask one replica; send a stream as it comes and return None, or return the whole answer.

        `parcel` is the request, with the names of replicas to avoid; `out` is the response to its
        client. If the replica ends before its answer does, its name is added to `asked` and
        ReplicaLost is raised.
        """
        replica = ""
        try:
            async with aclosing(self._carry(parcel)) as parts:  # type: ignore[type-var]
                replica = await self._first(parts)
                head = await anext(parts)
                assert isinstance(head, Head)
                if not head.is_stream:
                    body = b"".join([each async for each in bytes_of(parts)])
                    return WholeAnswer(replica, head, body)
                out.last_words = head.last_words
                await out.begin(head.status, head.headers)
                async for each in bytes_of(parts):
                    await out.write(each)
                await out.write(b"", is_last=True)
                return None
        except (ReplicaLost, StopAsyncIteration) as error:
            if replica:
                asked.add(replica)
            if isinstance(error, ReplicaLost):
                raise
            raise ReplicaLost from error

    async def _first(self, parts: AsyncIterator[Part]) -> str:
        """Return the name of the replica that accepted a request.

        The name comes first in `parts`, the parts of the answer. Raises NotReady if no replica
        accepts the request in time.
        """
        try:
            async with asyncio.timeout(self._wait_seconds):
                first = await anext(parts)
        except TimeoutError as error:
            raise NotReady(
                f"no replica took the request within {self._wait_seconds:g} s; try again later"
            ) from error
        assert isinstance(first, Accepted)
        return first.replica

    async def _measure(self, parcel: Parcel, out: ClientStream) -> None:
        """Send the metrics of all replicas, each with its name as a label, and the gateway's own.

        `parcel` is the client's request for the metrics, `out` the response to it.
        """
        texts: dict[str, str] = {}
        while True:
            asked = set(texts)
            answer = await self._ask(replace(parcel, avoid=frozenset(asked)), asked, out)
            assert answer is not None
            if answer.head.status != 200:  # noqa: PLR2004 - a key is missing, for example
                await out.whole(answer.head.status, answer.head.headers, answer.body)
                return
            if answer.replica in texts:
                break
            texts[answer.replica] = answer.body.decode()
        kept = tuple(each for each in answer.head.headers if each[0].lower() != "content-length")
        body = (merge_metrics(texts) + self.figures.text()).encode()
        await out.whole(200, (*kept, ("Content-Length", str(len(body)))), body)

    async def _tell(
        self, error: JaxLlamaError, parcel: Parcel, names: Collection[str], out: ClientStream
    ) -> None:
        """Send an error: as a response, or as the end of a stream that has begun.

        `parcel` is the request; `names` are the fields of its JSON body, empty if none was read.
        `out` is the response to its client.
        """
        if out.has_begun:
            logger.warning("a stream is cut: %s", error)
            await out.write(out.last_words, is_last=True)
            return
        form = await self._forms.response(error, parcel.method, parcel.target, names)
        logger.info("refused", extra={"facts": {"status": form.status, **error.as_facts()}})
        assert isinstance(form.body, bytes)
        headers = (
            *form.headers.items(),
            ("Content-Length", str(len(form.body))),
            ("X-Content-Type-Options", "nosniff"),
        )
        await out.whole(form.status, headers, form.body)

    async def _refuse_socket(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Refuse a WebSocket; the response says why if the ASGI server can send a response body.

        The arguments are those of an ASGI application.
        """
        await receive()
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 1003})
            return
        error = HttpError(
            "WebSockets do not pass through replicas; use the other routes, or a single server",
            501,
            "not_implemented",
        )
        form = await self._forms.response(error, "GET", target_of(scope))
        raw = [(b"content-type", form.headers["Content-Type"].encode())]
        start = {"type": "websocket.http.response.start", "status": form.status, "headers": raw}
        await send(start)
        await send({"type": "websocket.http.response.body", "body": form.body})


def may_differ(status: int, count: int) -> bool:
    """Say whether to ask another replica after `count` replicas answered with this HTTP status."""
    return status == NOT_FOUND or (status in REFUSALS and count < MOST_REFUSALS)


def parcel_of(scope: Mapping[str, Any], body: bytes) -> Parcel:
    """Return the request that ASGI describes in `scope`, as a Parcel to pass to a replica."""
    client = scope.get("client")
    headers = tuple(passed_on(scope["headers"]))
    sender = ((SENDER, str(client[0])),) if client else ()
    return Parcel(scope["method"], target_of(scope), headers + sender, body)


def passed_on(headers: Collection[tuple[bytes, bytes]]) -> Iterator[tuple[str, str]]:
    """Yield those headers of a client's request that are passed on to a replica, as strings."""
    for raw_name, raw_value in headers:
        name = raw_name.decode("latin-1")
        if name.lower() not in NOT_PASSED_ON:
            yield name, raw_value.decode("utf-8", "surrogateescape")


def target_of(scope: Mapping[str, Any]) -> str:
    """Return path and query of the request that ASGI describes in `scope`, as they were sent."""
    path = scope.get("raw_path") or scope["path"].encode()
    query = scope.get("query_string", b"")
    return (path.partition(b"?")[0] + (b"?" + query if query else b"")).decode("latin-1")


def decode(parcel: Parcel, body: bytes) -> Any:
    """Return the decoded JSON `body` of the request `parcel`, to choose a replica by its prompt.

    None if the body is empty, too large or not JSON, or if the request is not a POST.
    """
    if not body or len(body) > MOST_READ or parcel.method != "POST":
        return None
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return None  # the replica says what is wrong with it


async def read_body(receive: Receive, settings: Settings) -> bytes:
    """Return the body of a request; raise HttpError beyond the limits of size and time."""
    parts, size, most = list[bytes](), 0, settings.body_bytes
    try:
        async with asyncio.timeout(settings.body_seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise asyncio.CancelledError
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > most:
                    raise too_large(most)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError as error:
        raise HttpError(
            f"the body did not come within {settings.body_seconds} s", 408, "request_timeout"
        ) from error


async def left(receive: Receive) -> None:
    """Wait until the client has left; `receive` is ASGI's function for its messages."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def bytes_of(parts: AsyncIterator[Part]) -> AsyncIterator[bytes]:
    """Yield the body of an answer in pieces.

    `parts` are the parts of the answer that follow its status and headers.
    """
    async for each in parts:
        assert isinstance(each, bytes)
        yield each


async def live(receive: Receive, send: Send) -> None:
    """Answer ASGI's messages about the start and the end of the application.

    `receive` and `send` are ASGI's functions.
    """
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
