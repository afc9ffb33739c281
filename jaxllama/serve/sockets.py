"""WebSockets: JSON messages of one client, in both directions.

Used by dialects with such routes. A web page of another origin may not connect, a client that reads
nothing is dropped, and all sockets are closed when the server stops. Knows no dialect.
"""

import asyncio
import weakref
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import WSCloseCode, WSMsgType, web

from jaxllama.errors import HttpError, InvalidParameter, JaxLlamaError
from jaxllama.serve.decode import parse_object
from jaxllama.serve.keys import SETTINGS
from jaxllama.serve.origin import check_origin
from jaxllama.serve.wire import encode

OPEN_SOCKETS: web.AppKey[weakref.WeakSet[web.WebSocketResponse]] = web.AppKey(
    "open_sockets", weakref.WeakSet
)


def is_upgrade(request: web.Request) -> bool:
    """Say whether a request asks to become a WebSocket."""
    return request.headers.get("Upgrade", "").lower() == "websocket"


class JsonSocket:
    """A WebSocket of one client; every message is a JSON object."""

    def __init__(self, request: web.Request) -> None:
        """Check that the request asks for a WebSocket and comes from an allowed origin.

        Raises HttpError otherwise. `open` accepts the WebSocket.
        """
        if not is_upgrade(request):
            raise HttpError(
                "this route is a WebSocket; connect with a client that speaks it",
                426,
                "upgrade_required",
            )
        check_origin(request)
        self._request, self._settings = request, request.app[SETTINGS]
        self.response = web.WebSocketResponse(
            heartbeat=self._settings.ping_seconds, max_msg_size=self._settings.body_bytes
        )
        self._writing = asyncio.Lock()

    async def open(self) -> None:
        """Accept the WebSocket; `close_sockets` closes it if the server stops."""
        await self.response.prepare(self._request)
        self._request.app[OPEN_SOCKETS].add(self.response)

    async def messages(self) -> AsyncIterator[dict[str, Any] | JaxLlamaError]:
        """Yield each message as a dict, or an error in place of one that is no JSON object."""
        async for message in self.response:
            if message.type is not WSMsgType.TEXT:
                yield InvalidParameter("the message is binary; expected JSON as text")
                continue
            raw = message.data.encode()
            try:
                yield parse_object(raw, self._settings.json_depth)
            except InvalidParameter as error:
                yield error

    async def send(self, value: Any) -> None:
        """Send one message as JSON; drop a client that reads nothing for `stall_seconds`."""
        async with self._writing:
            if self.response.closed:
                raise ConnectionResetError("the client has left")
            try:
                async with asyncio.timeout(self._settings.stall_seconds):
                    await self.response.send_str(encode(value).decode())
            except TimeoutError as error:
                if self._request.transport is not None:
                    self._request.transport.abort()
                raise ConnectionResetError("the client reads nothing") from error


async def close_sockets(app: web.Application) -> None:
    """Close all open WebSockets, because the server stops."""
    sockets = app[OPEN_SOCKETS]
    for socket in list(sockets):
        await socket.close(code=WSCloseCode.GOING_AWAY, message=b"the server is going away")
