"""Inner requests: requests that the server makes of its own handlers, such as a line of a batch.

An inner request has what handlers read of a request: a JSON body, a caller, and the application. It
has no connection, so it cannot stream.
"""

from collections.abc import Iterator, MutableMapping
from typing import Any, cast

from aiohttp import web

from jaxllama.serve.guard import Handler
from jaxllama.serve.keys import CALLER, DIALECT, ErrorForm
from jaxllama.service.answers import Caller


class InnerRequest(MutableMapping[Any, Any]):
    """A request without a connection."""

    content_type, charset = "application/json", "utf-8"

    def __init__(
        self, app: web.Application, caller: Caller, dialect: ErrorForm, raw: bytes
    ) -> None:
        self.app, self.headers = app, dict[str, str]()
        self.query = dict[str, str]()
        self._raw = raw
        self._state: dict[Any, Any] = {CALLER: caller, DIALECT: dialect}

    @property
    def content_length(self) -> int:
        """Number of bytes of the body."""
        return len(self._raw)

    async def read(self) -> bytes:
        """Return the body."""
        return self._raw

    def __getitem__(self, key: Any) -> Any:
        return self._state[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._state[key] = value

    def __delitem__(self, key: Any) -> None:
        del self._state[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)


async def answer_inside(handler: Handler, request: InnerRequest) -> tuple[int, bytes]:
    """Call a handler with a request that the server itself makes; return (HTTP status, body).

    Errors of the handler are raised. A handler that streams its answer raises an error, too.
    """
    response = await handler(cast(web.Request, request))
    if not isinstance(response, web.Response) or not isinstance(response.body, bytes):
        raise TypeError(f"the handler answered an inner request with {type(response).__name__}")
    return response.status, response.body
