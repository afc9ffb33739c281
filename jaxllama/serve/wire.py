"""Framing: sends answers as one JSON body or as Server-Sent Events.

Used by dialects' handlers. Keeps a silent stream alive with pings, sends an error after the status
line as a last event, and drops a client that reads nothing. Of a dialect it uses only the form of
errors.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType
from typing import Any, Self

import msgspec
from aiohttp import web

from jaxllama.errors import JaxLlamaError, SlowReader
from jaxllama.serve.keys import CALLER, DIALECT, SETTINGS

logger = logging.getLogger(__name__)

PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"
NEVER_WAITS = 32 << 10  # bytes that a connection with an empty send buffer accepts without waiting
HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache, no-store, no-transform",
    "X-Accel-Buffering": "no",  # proxies must not buffer the stream
}


def encode(value: Any) -> bytes:
    """Encode a value as JSON on one line; line ends in texts are escaped."""
    return msgspec.json.encode(value)


def frame(value: Any, event: str | None = None) -> bytes:
    """Encode a value as one event, with an event name if given."""
    name = f"event: {event}\n".encode() if event else b""
    return b"%sdata: %s\n\n" % (name, encode(value))


def join_frames(values: Iterable[Any]) -> bytes:
    """Encode several events; the `type` of a value, if any, becomes the event name."""
    return b"".join(frame(value, getattr(value, "type", None)) for value in values)


def one_json(value: Any, status: int = 200) -> web.Response:
    """Make a response with a JSON body."""
    return web.Response(body=encode(value), status=status, content_type="application/json")


class Sse:
    """A stream of events to one client.

    The status line is sent with the first event or ping; an error raised before becomes a normal
    error response.
    """

    def __init__(self, request: web.Request) -> None:
        self.response = web.StreamResponse(headers=HEADERS)
        self._request = request
        self._settings = request.app[SETTINGS]
        # One writer at a time, since pings are written between events.
        self._writing = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._wrote = self._loop.time()
        self._is_finished = False
        self._pinging: asyncio.Task[None] | None = None

    async def send(self, value: Any) -> None:
        """Send one event; waits while the client reads slowly."""
        await self._write(frame(value))

    async def send_all(self, values: Iterable[Any]) -> None:
        """Send several events in one write; waits while the client reads slowly."""
        frames = join_frames(values)
        if frames:
            await self._write(frames)

    async def finish(self, values: Iterable[Any] = (), *, says_done: bool = True) -> None:
        """Send the last events, [DONE] if `says_done`, and end the response."""
        await self._write(join_frames(values) + (DONE if says_done else b""), is_last=True)

    async def __aenter__(self) -> Self:
        self._pinging = asyncio.create_task(self._ping())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if self._pinging is not None:
            async with self._writing:  # a ping that is being written must be finished first
                self._pinging.cancel()
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
        """Say whether the send buffer is empty: then a write does not wait and needs no timer."""
        transport = self._request.transport
        return (
            transport is not None
            and transport.get_write_buffer_size() == 0
            and len(raw) < NEVER_WAITS
        )

    async def _write_in_time(self, write: Callable[[bytes], Awaitable[None]], raw: bytes) -> None:
        """Write after the send buffer has drained; drop the client if that takes too long."""
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
        """Send pings into a silent stream, so that no proxy closes the connection."""
        pause = self._settings.ping_seconds
        while True:
            await asyncio.sleep(max(0.0, self._wrote + pause - self._loop.time()))
            if self._loop.time() - self._wrote >= pause:
                with contextlib.suppress(
                    ConnectionError, SlowReader
                ):  # the next event raises it again
                    await self._write(PING)

    def _abort(self) -> None:
        """Close the connection at once and discard unsent data."""
        if self._request.transport is not None:
            self._request.transport.abort()
