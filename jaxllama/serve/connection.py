"""A connection: one client's socket, and how long it may keep us waiting.

Made by the server for each client that connects. Adds to aiohttp's protocol what that leaves out: a
deadline for the head of a request, an end to peers that have vanished, a bound on how many there
are, and errors as JSON. Knows no route.
"""

import asyncio
import contextlib
import json
import socket
from typing import Any

from aiohttp import web

from jaxllama.serve.settings import Settings

SEND_BUFFER = 64 << 10  # bytes the kernel holds for a client that does not read
PROBES = 3  # unanswered ones until a silent peer counts as gone
LATE = (
    b"HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s"
)


class Connection(web.RequestHandler):
    """One client's socket."""

    __slots__ = ("_crowd", "_late", "_settings")

    def __init__(
        self, server: web.Server, settings: Settings, crowd: set["Connection"], **more: Any
    ) -> None:
        super().__init__(server, **more)
        self._settings, self._crowd = settings, crowd
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected; one too many is let go at once."""
        super().connection_made(transport)
        if len(self._crowd) >= self._settings.connections:
            self.force_close()
            return
        self._crowd.add(self)
        tune(transport.get_extra_info("socket"), self._settings.stall_seconds)
        self._expect_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The client is gone."""
        self._crowd.discard(self)
        self._head_is_there()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some of a request has come."""
        before = self._request_count
        if self._late is None and self._is_idle:
            self._expect_head()
        super().data_received(data)
        if self._request_count != before:
            self._head_is_there()

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

    def _expect_head(self) -> None:
        self._late = self._loop.call_later(self._settings.header_seconds, self._is_late)

    def _head_is_there(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _is_late(self) -> None:
        """The head of a request did not come in time."""
        self._late = None
        if self.transport is None or not self._is_idle:
            return
        limit = self._settings.header_seconds
        body = error_json(f"no request came within {limit} s", "request_timeout")
        self.transport.write(LATE % (len(body), body))
        self.force_close()


def error_json(message: str, code: str) -> bytes:
    """An error where no dialect is known yet."""
    return json.dumps({"error": {"message": message.splitlines()[0], "code": code}}).encode()


def tune(sock: socket.socket | None, seconds: float) -> None:
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
