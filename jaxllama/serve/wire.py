"""Framing: sends answers as one body, or as a stream in one of several framings.

Used by dialects' handlers. Keeps a silent stream alive with pings, sends an error after the status
line as a last chunk, and drops a client that reads nothing. Of a dialect it uses only the form of
errors.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import msgspec
from aiohttp import web

from jaxllama.errors import JaxLlamaError, SlowReader
from jaxllama.serve.fronted import IS_FRONTED, LAST_WORDS, last_words
from jaxllama.serve.keys import BEGUN, CALLER, DIALECT, SETTINGS, ErrorForm

logger = logging.getLogger(__name__)

NEVER_WAITS = 32 << 10  # bytes that a connection with an empty send buffer accepts without waiting
HEADERS = {
    "Cache-Control": "no-cache, no-store, no-transform",
    "X-Accel-Buffering": "no",  # proxies must not buffer the stream
}


def encode(value: Any) -> bytes:
    """Encode a value as JSON on one line; line ends in texts are escaped."""
    return msgspec.json.encode(value)


def frame(value: Any, event: str | None = None) -> bytes:
    """Encode a value as one server-sent event with JSON data; `event` is its name, if any."""
    name = f"event: {event}\n".encode() if event else b""
    return b"%sdata: %s\n\n" % (name, encode(value))


def event_frame(value: Any) -> bytes:
    """Encode a value as one server-sent event; its attribute `type`, if any, names the event."""
    return frame(value, getattr(value, "type", None))


def line_frame(value: Any) -> bytes:
    """Encode a value as one line of JSON, with the line end."""
    return encode(value) + b"\n"


@dataclass(frozen=True)
class Framing:
    """The conversion of a stream's chunks to bytes; a chunk of type `bytes` is written as it is."""

    content_type: str
    encode: Callable[[Any], bytes]
    done: bytes = b""  # the end of a stream, for forms that say when they are done
    ping: bytes = b""  # keeps a silent stream alive; b"": the framing has nothing to say

    def join(self, values: Iterable[Any]) -> bytes:
        """Encode chunks of a stream as bytes; a chunk that is bytes already stays as it is."""
        return b"".join(
            value if isinstance(value, bytes) else self.encode(value) for value in values
        )


SSE = Framing(
    "text/event-stream; charset=utf-8", event_frame, done=b"data: [DONE]\n\n", ping=b": ping\n\n"
)
JSON_LINES = Framing("application/x-ndjson", line_frame)


def one_json(value: Any, status: int = 200) -> web.Response:
    """Make a response with this status and a JSON body."""
    return web.Response(body=encode(value), status=status, content_type="application/json")


def one_body(value: Any, status: int = 200) -> web.Response:
    """Make a response with a text as it is, or with any other value as JSON.

    `status` is the HTTP status.
    """
    if isinstance(value, str):
        return web.Response(text=value, status=status)
    return one_json(value, status)


def error_response(form: ErrorForm, error: JaxLlamaError) -> web.Response:
    """Make the response for an error; `form` gives the body and the status for one HTTP API.

    The response has a header `Retry-After` if the error says when to try again.
    """
    response = one_body(form.error_body(error), form.error_status(error))
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(max(1, round(error.retry_after)))
    return response


class ResponseStream:
    """A stream of chunks to one client.

    The status line is sent with the first chunk or ping; an error raised before becomes a normal
    error response.
    """

    def __init__(self, request: web.Request, framing: Framing = SSE) -> None:
        """Make a stream of chunks in response to `request`.

        `framing` encodes the chunks as bytes. If the response to this request has begun already,
        such as while a model was loading, the stream continues that response.
        """
        begun = request.get(BEGUN)
        headers = {"Content-Type": framing.content_type} | HEADERS
        if request.app.get(IS_FRONTED, False):
            headers[LAST_WORDS] = last_words(request[DIALECT].error_body, framing.join)
        self.response = web.StreamResponse(headers=headers) if begun is None else begun
        self._framing = framing
        self._request = request
        self._settings = request.app[SETTINGS]
        # One writer at a time, since pings are written between events.
        self._writing = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._wrote = self._loop.time()
        self._is_finished = False
        self._pinging: asyncio.Task[None] | None = None

    async def send(self, value: Any) -> None:
        """Send one chunk; wait while the client reads slowly."""
        await self._write(self._framing.join([value]))

    async def send_all(self, values: Iterable[Any]) -> None:
        """Send several chunks, if any, in one write; wait while the client reads slowly."""
        raw = self._framing.join(values)
        if raw:
            await self._write(raw)

    async def finish(self, values: Iterable[Any] = (), *, says_done: bool = True) -> None:
        """Send the last chunks and end the response.

        With `says_done`, the framing's end mark, such as [DONE], follows the chunks.
        """
        end = self._framing.done if says_done else b""
        await self._write(self._framing.join(values) + end, is_last=True)

    async def end_pings(self) -> None:
        """Send no more pings."""
        if self._pinging is not None:
            async with self._writing:  # a ping that is being written must be finished first
                self._pinging.cancel()

    async def __aenter__(self) -> Self:
        if self._framing.ping:
            self._pinging = asyncio.create_task(self._ping())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        await self.end_pings()
        if not self.response.prepared or not isinstance(error, Exception):
            return False
        if isinstance(error, ConnectionError | SlowReader):
            self._abort()
            return False
        if not isinstance(error, JaxLlamaError):
            logger.error("request %s failed", self._request[CALLER].id, exc_info=error)
            error = JaxLlamaError("internal error")
        await self.send(self._request[DIALECT].error_body(error))
        return True

    async def _write(self, raw: bytes, *, is_last: bool = False) -> None:
        async with self._writing:
            if self._is_finished:
                return
            self._is_finished = is_last
            if not self.response.prepared:
                await self.response.prepare(self._request)
            write = self.response.write_eof if is_last else self.response.write
            if self._can_write_now(raw):
                await write(raw)
            else:
                await self._write_in_time(write, raw)
            self._wrote = self._loop.time()

    def _can_write_now(self, raw: bytes) -> bool:
        """Say whether `raw` fits into the send buffer now, so that writing needs no timer."""
        transport = self._request.transport
        return (
            transport is not None
            and transport.get_write_buffer_size() == 0
            and len(raw) < NEVER_WAITS
        )

    async def _write_in_time(self, write: Callable[[bytes], Awaitable[None]], raw: bytes) -> None:
        """Write bytes once the send buffer has room; drop a client that reads too slowly.

        `write` is the response's method that takes the bytes `raw`. Raises SlowReader after
        `stall_seconds`.
        """
        seconds = self._settings.stall_seconds
        try:
            async with asyncio.timeout(seconds):
                await self._request.writer.drain()
                await write(raw)
                await self._request.writer.drain()
        except TimeoutError as error:
            self._abort()
            raise SlowReader(f"the client read nothing for {seconds} s") from error

    async def _ping(self) -> None:
        """Send a ping whenever the stream was silent for `ping_seconds`; runs until cancelled."""
        pause = self._settings.ping_seconds
        while True:
            await asyncio.sleep(max(0.0, self._wrote + pause - self._loop.time()))
            if self._loop.time() - self._wrote >= pause:
                with contextlib.suppress(
                    ConnectionError, SlowReader
                ):  # the next event raises it again
                    await self._write(self._framing.ping)

    def _abort(self) -> None:
        """Close the connection at once and discard unsent data."""
        if self._request.transport is not None:
            self._request.transport.abort()
