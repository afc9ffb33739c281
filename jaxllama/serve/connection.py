"""A connection: one client's socket, and how long it may keep us waiting.

Made by the server for each client that connects. Adds to aiohttp's protocol what that leaves out: a
deadline for the head of a request, an end to peers that have vanished, a bound on how many
connections there are and on how finely a body is cut, and errors as JSON. Knows no route.
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

SEND_BUFFER = 64 << 10  # bytes the kernel holds for a client that does not read
PROBES = 3  # unanswered ones until a silent peer counts as gone
PIECE = 16 << 10  # bytes that are parsed at a time
FRAMING = 64 << 10  # bytes of a body that may be sizes and ends of chunks: 13,000 chunks at most
HEAD_TIMEOUT_RESPONSE = (
    b"HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s"
)


class Connection(web.RequestHandler):
    """One client's socket."""

    __slots__ = ("_body", "_crowd", "_framing", "_late", "_settings", "address")

    def __init__(self, server: web.Server, settings: Settings, crowd: Crowd, **more: Any) -> None:
        super().__init__(server, **more)
        self._settings, self._crowd = settings, crowd
        self._late: asyncio.TimerHandle | None = None
        self._body: StreamReader | None = None  # of the newest request
        self._framing = 0  # bytes of that body which were no content
        self.address = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected; it is let go at once where even the reserve is full."""
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if isinstance(peer, tuple) else ""
        if not self._crowd.admit(self):
            self.force_close()
            return
        set_socket_options(transport.get_extra_info("socket"), self._settings.stall_seconds)
        self._start_head_timer()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The client is gone."""
        self._crowd.remove(self)
        self._stop_head_timer()
        super().connection_lost(exc)

    def evict(self) -> None:
        """Close the connection in favour of a new one."""
        self.force_close()

    @property
    def is_spare(self) -> bool:
        """Whether the connection is in reserve, for routes of operators only."""
        return self._crowd.is_spare(self)

    def data_received(self, data: bytes) -> None:
        """Parse what has come, a piece at a time."""
        if self._late is None and self._is_idle:
            self._start_head_timer()
        self._parse(data[:PIECE])
        for start in range(PIECE, len(data), PIECE):
            self._parse(data[start : start + PIECE])

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send the rest of a response; afterwards the connection is idle if nothing else waits."""
        finished = await super().finish_response(request, resp, start_time)
        if self._is_idle:
            self._crowd.set_idle(self)
        return finished

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What is no HTTP is answered in JSON, and not worth a stack trace."""
        if request.writer.output_size > 0:
            raise ConnectionError("the response has begun already")
        if status >= 500:  # noqa: PLR2004
            self.logger.error("a request failed outside of its handler", exc_info=exc)
            message = "internal error"
        body = error_json(message or "this is not HTTP", "bad_request")
        response = web.Response(status=status, body=body, content_type="application/json")
        response.force_close()
        return response

    @property
    def _is_idle(self) -> bool:
        """No request is being answered or waits to be."""
        return self._current_request is None and not self._messages

    def _parse(self, data: bytes) -> None:
        """Hand a piece to aiohttp's parser, and see whether it was a head or too little content."""
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
        """Fail the request whose body is cut too finely, and parse nothing more."""
        if self._is_idle:  # answered already; nobody reads the rest
            self.force_close()
            return
        message = "the body comes in chunks that are too small; send it in chunks of 1 KiB or more"
        body.set_exception(HttpError(message, 400, "chunks_too_small"))
        body.feed_eof()
        self.close()

    def _start_head_timer(self) -> None:
        self._late = self._loop.call_later(self._settings.header_seconds, self._end_without_head)

    def _stop_head_timer(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _end_without_head(self) -> None:
        """The head of a request did not come in time."""
        self._late = None
        if self.transport is None or not self._is_idle:
            return
        limit = self._settings.header_seconds
        body = error_json(f"no request came within {limit} s", "request_timeout")
        self.transport.write(HEAD_TIMEOUT_RESPONSE % (len(body), body))
        self.force_close()


def error_json(message: str, code: str) -> bytes:
    """An error where no dialect is known yet."""
    return json.dumps({"error": {"message": message.splitlines()[0], "code": code}}).encode()


def set_socket_options(sock: socket.socket | None, seconds: float) -> None:
    """Notice a peer that has vanished without a word, and bound what is kept for a slow one."""
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    pause = max(1, round(seconds / (PROBES + 1)))
    options = {  # what a system does not know is left out
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
