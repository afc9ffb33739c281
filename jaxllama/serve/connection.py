"""A connection: the protocol of one client's socket, with timeouts and limits.

Made by the server for each client that connects. Adds to aiohttp's protocol: a deadline for the
head of a request, detection of peers that have vanished, a limit on connections, a limit on small
chunks in a body, and errors as JSON. Knows no route.
"""

import asyncio
import contextlib
import json
import socket
from typing import Any

from aiohttp import StreamReader, web

from jaxllama.errors import HttpError
from jaxllama.serve.crowd import Crowd
from jaxllama.serve.settings import Settings

SEND_BUFFER = 64 << 10  # bytes that the kernel buffers for a client that does not read
PROBES = 3  # unanswered TCP keepalive probes until a silent peer counts as gone
PIECE = 16 << 10  # bytes to parse at a time
FRAMING = 64 << 10  # most bytes of a body for chunk sizes and line ends: about 13,000 chunks
LINGER_SECONDS = 2.0  # a client may so long go on sending a body that is refused
HEAD_TIMEOUT_RESPONSE = (
    b"HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s"
)


class Connection(web.RequestHandler):
    """Protocol of one client's connection."""

    __slots__ = ("_body", "_crowd", "_framing", "_late", "_lost", "_settings", "address")

    def __init__(self, server: web.Server, settings: Settings, crowd: Crowd, **more: Any) -> None:
        super().__init__(server, **more)
        self._settings, self._crowd = settings, crowd
        self._late: asyncio.TimerHandle | None = None
        self._body: StreamReader | None = None  # body of the newest request
        self._framing = 0  # bytes of chunk framing in that body so far
        self._lost: asyncio.Event | None = None  # of a connection with a refused body: its end
        self.address = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register a new connection and start its timer; close it if there are too many.

        `transport` is asyncio's object for the socket.
        """
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if isinstance(peer, tuple) else ""
        if not self._crowd.admit(self):
            self.force_close()
            return
        set_socket_options(transport.get_extra_info("socket"), self._settings.stall_seconds)
        self._start_head_timer()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Unregister a closed connection."""
        self._crowd.remove(self)
        self._stop_head_timer()
        if self._lost is not None:
            self._lost.set()
        super().connection_lost(exc)

    def evict(self) -> None:
        """Close the idle connection to make room for a new one."""
        self.force_close()

    @property
    def is_spare(self) -> bool:
        """Whether this connection exceeds the limits: it serves only routes for operators then."""
        return self._crowd.is_spare(self)

    def data_received(self, data: bytes) -> None:
        """Parse received bytes, PIECE bytes at a time."""
        if self._late is None and self._is_idle:
            self._start_head_timer()
        self._parse(data[:PIECE])
        for start in range(PIECE, len(data), PIECE):
            self._parse(data[start : start + PIECE])

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send the rest of a response; mark the connection idle if no other request waits.

        Returns what aiohttp's own method returns; `start_time` is passed on to it.
        """
        finished = await super().finish_response(request, resp, start_time)
        if self._is_idle:
            self._crowd.set_idle(self)
        if self._lost is not None:
            await self._linger(self._lost)
        return finished

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Make a JSON error response for a malformed request.

        `message` None: a general one. For a `status` from 500 up, the stack trace of `exc` is
        logged.
        """
        if request.writer.output_size > 0:
            raise ConnectionError("the response has begun already")
        if status >= 500:  # noqa: PLR2004
            self.logger.error("a request failed outside of its handler", exc_info=exc)
            message = "internal error"
        body = error_json(message or "this is not HTTP", "bad_request")
        response = web.Response(status=status, body=body, content_type="application/json")
        response.force_close()
        return response

    def log_exception(self, *arguments: Any, **more: Any) -> None:
        """Log an exception with its trace, unless it only says that the client has gone.

        A RuntimeError after the connection was lost is not logged: aiohttp raises it when it reads
        the rest of a refused body. The arguments are those of aiohttp's own method.
        """
        if self.connected or not isinstance(more.get("exc_info"), RuntimeError):
            super().log_exception(*arguments, **more)

    @property
    def _is_idle(self) -> bool:
        """Whether the connection has no request that is being answered or waits for its turn."""
        return self._current_request is None and not self._messages

    def _parse(self, data: bytes) -> None:
        """Parse bytes with aiohttp; refuse a body that comes in too small chunks.

        Stops the timer for the head of a request once the head is complete.
        """
        requests, body = self._request_count, self._body
        before = body.total_bytes if body is not None else 0
        super().data_received(data)
        if self._request_count != requests:
            self._stop_head_timer()
            self._crowd.set_busy(self)
            self._body, self._framing = self._messages[-1][1], 0
        elif body is not None and not body.is_eof():
            self._framing += len(data) - (body.total_bytes - before)
            if self._framing > FRAMING:
                self._refuse_chunks(body)

    def _refuse_chunks(self, body: StreamReader) -> None:
        """Fail a request whose body has too small chunks, and stop parsing."""
        if self._is_idle:  # answered already; the rest is not read
            self.force_close()
            return
        message = "the body comes in chunks that are too small; send it in chunks of 1 KiB or more"
        body.set_exception(HttpError(message, 400, "chunks_too_small"))
        body.feed_eof()
        self._lost = asyncio.Event()
        self.close()

    async def _linger(self, lost: asyncio.Event) -> None:
        """Drop the bytes that the client still sends, until it closes the connection.

        Ends after LINGER_SECONDS in any case. If the connection were closed at once, the bytes not
        read would reset it, and the client might lose the response. `lost` is set when the
        connection is closed.
        """
        if self.transport is None:
            return
        with contextlib.suppress(NotImplementedError, RuntimeError, OSError):
            self.transport.resume_reading()
            self.transport.write_eof()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                await lost.wait()

    def _start_head_timer(self) -> None:
        self._late = self._loop.call_later(self._settings.header_seconds, self._end_without_head)

    def _stop_head_timer(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _end_without_head(self) -> None:
        """Answer 408 and close the connection: the head of a request did not come in time."""
        self._late = None
        if self.transport is None or not self._is_idle:
            return
        limit = self._settings.header_seconds
        body = error_json(f"no request came within {limit} s", "request_timeout")
        self.transport.write(HEAD_TIMEOUT_RESPONSE % (len(body), body))
        self.force_close()


def error_json(message: str, code: str) -> bytes:
    """Encode an error as JSON, for use where no dialect (API) of the request is known yet.

    `code` is a word for programs, such as "bad_request"; of `message` the first line is used.
    """
    return json.dumps({"error": {"message": message.splitlines()[0], "code": code}}).encode()


def set_socket_options(sock: socket.socket | None, seconds: float) -> None:
    """Set TCP keepalive and bound the send buffer; do nothing for None or a non-IP socket.

    A peer that has vanished is noticed within about `seconds`.
    """
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    pause = max(1, round(seconds / (PROBES + 1)))
    options = {  # options that a system does not have are skipped
        "TCP_KEEPIDLE": pause,
        "TCP_KEEPINTVL": pause,
        "TCP_KEEPCNT": PROBES,
        "TCP_USER_TIMEOUT": round(1000 * seconds),  # sent, or to be sent, but not acknowledged
    }
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        for name, value in options.items():
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
