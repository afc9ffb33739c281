"""The socket of dialects: the class that each HTTP API is.

`app.py` makes routes of installed dialects. Authors of a dialect import it from
`jaxllama.serve.dialects`, which also says how to write one. Knows no dialect.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import msgspec
from aiohttp import web

from jaxllama.errors import JaxLlamaError
from jaxllama.serve.answering.problem import ErrorBody
from jaxllama.serve.endpoints import Endpoint, Serves, routes_of
from jaxllama.serve.guard import bearer_key
from jaxllama.service.served_models import ServedModels


class DialectOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of a dialect's options; the operator sets them with `--dialect-option`."""


class Dialect(ABC):
    """One HTTP API. A server makes one object of each dialect that it serves.

    `endpoints` is an attribute of the class, or set in `__init__` if it depends on the options.
    """

    name: ClassVar[str]  # as in the entry point
    options_type: ClassVar[type[DialectOptions]] = DialectOptions
    error_type: ClassVar[Any] = ErrorBody  # of error bodies, for the description; str: plain text
    # Paths below which unknown routes are refused in this dialect's form, where others have routes
    # there, too.
    prefixes: ClassVar[tuple[str, ...]] = ()
    headers: ClassVar[tuple[str, ...]] = ()  # request headers, beside the usual ones, for CORS
    endpoints: Mapping[Endpoint, Serves] = {}

    def __init__(self, options: DialectOptions | None = None) -> None:
        self.options: Any = self.options_type() if options is None else options

    @abstractmethod
    def error_body(self, error: JaxLlamaError, /) -> Any:
        """Return the body of an error response: a value for JSON, or a str for plain text."""

    def error_status(self, error: JaxLlamaError, /) -> int:
        """Return the HTTP status of an error response."""
        return error.status

    def key(self, request: web.BaseRequest, /) -> str:
        """Return the API key in the headers of a request, "" if there is none."""
        return bearer_key(request)

    @asynccontextmanager
    async def running(self, app: web.Application, /) -> AsyncIterator[None]:
        """Run the API's background work while the server runs: an async context manager.

        It is entered before the first request, while the model still loads, and left when the
        server stops. An error here keeps the server from starting.
        """
        del app
        yield

    def routes(self, models: ServedModels, /) -> list[web.RouteDef]:
        """Return the routes of all endpoints, with handlers bound to the served models."""
        return routes_of(self.endpoints, models)
