"""Framing: how answers become bytes - one JSON body, or Server-Sent Events.

Used by dialects' handlers. Keeps a silent stream alive with pings, turns what goes wrong after the
status was sent into one last event, and lets go of a client that takes nothing in. Knows no
dialect but the shape of its errors.
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
NEVER_WAITS = 32 << 10  # bytes that a connection which owes nothing takes without waiting
HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache, no-store, no-transform",
    "X-Accel-Buffering": "no",  # proxies must not collect the stream
}


def encode(value: Any) -> bytes:
    """A value as JSON; line ends inside texts are escaped by it."""
    return msgspec.json.encode(value)


def frame(value: Any, event: str | None = None) -> bytes:
    """One event as it is sent."""
    name = f"event: {event}\n".encode() if event else b""
    return b"%sdata: %s\n\n" % (name, encode(value))


def join_frames(values: Iterable[Any]) -> bytes:
    """Several events, each under its own name if its `type` is one."""
    return b"".join(frame(value, getattr(value, "type", None)) for value in values)


def one_json(value: Any, status: int = 200) -> web.Response:
    """A whole answer as one JSON body."""
    return web.Response(body=encode(value), status=status, content_type="application/json")


class Sse:
    """A stream of events to one client.

    The status is sent with the first event or ping; what is raised before is still a response of
    its own.
    """

    def __init__(self, request: web.Request) -> None:
        self.response = web.StreamResponse(headers=HEADERS)
        self._request = request
        self._settings = request.app[SETTINGS]
        self._writing = asyncio.Lock()  # one writer at a time: pings come in between
        self._loop = asyncio.get_running_loop()
        self._wrote = self._loop.time()
        self._is_finished = False
        self._pinging: asyncio.Task[None] | None = None

    async def send(self, value: Any) -> None:
        """One event; waits while the client is behind."""
        await self._write(frame(value))

    async def send_all(self, values: Iterable[Any]) -> None:
        """Several events in one write."""
        frames = join_frames(values)
        if frames:
            await self._write(frames)

    async def finish(self, values: Iterable[Any] = (), *, says_done: bool = True) -> None:
        """The last events, and the end that OpenAI's clients wait for."""
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
            async with self._writing:  # a ping that is half written has to be finished first
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
        """The client is not behind, so this write will not wait: no timer is needed for it."""
        transport = self._request.transport
        return (
            transport is not None
            and transport.get_write_buffer_size() == 0
            and len(raw) < NEVER_WAITS
        )

    async def _write_in_time(self, write: Callable[[bytes], Awaitable[None]], raw: bytes) -> None:
        """Write once the client has taken in what it is owed; drop it if it does not."""
        seconds = self._settings.stall_seconds
        try:
            async with asyncio.timeout(seconds):
                await self._request.writer.drain()
                await write(raw)
                await self._request.writer.drain()
        except TimeoutError as error:
            self._abort()
            raise SlowReader(f"the client took nothing in for {seconds} s") from error

    async def _ping(self) -> None:
        """Say that we are still there, so that nobody in between closes the connection."""
        pause = self._settings.ping_seconds
        while True:
            await asyncio.sleep(max(0.0, self._wrote + pause - self._loop.time()))
            if self._loop.time() - self._wrote >= pause:
                with contextlib.suppress(ConnectionError, SlowReader):  # the next event will see
                    await self._write(PING)

    def _abort(self) -> None:
        """Drop the connection and what it still owes."""
        if self._request.transport is not None:
            self._request.transport.abort()
