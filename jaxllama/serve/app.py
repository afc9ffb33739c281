"""The application: routes of all dialects, and the middleware around each request.

Built by `server.py`. Each request gets an id and a caller and passes the guard; every error becomes
a response in the form of the dialect whose route was meant (`routing.py`).
"""

import logging
import weakref
from collections.abc import AsyncIterator, Callable, Sequence

from aiohttp import hdrs, web

from jaxllama.errors import HttpError, JaxLlamaError
from jaxllama.serve.connection import Connection
from jaxllama.serve.dashboard import Dashboard
from jaxllama.serve.dialect import Dialect
from jaxllama.serve.docs import Docs
from jaxllama.serve.expect import check_expectation
from jaxllama.serve.fronted import IS_FRONTED
from jaxllama.serve.guard import Guard, Handler
from jaxllama.serve.keys import CALLER, DIALECT, MODELS, SETTINGS
from jaxllama.serve.operations import Operations
from jaxllama.serve.page import Page
from jaxllama.serve.routing import RouteTable
from jaxllama.serve.settings import Settings
from jaxllama.serve.sockets import OPEN_SOCKETS, close_sockets
from jaxllama.serve.starts import RequestStarts
from jaxllama.serve.wire import error_response
from jaxllama.service import State
from jaxllama.service.answers import Caller
from jaxllama.service.served_models import ServedModels

logger = logging.getLogger(__name__)

# Notes about the handling of a request -> response headers that report them to the client.
NOTES = {
    "ignored": "X-Ignored-Fields",
    "format": "X-Prompt-Format",
    "dropped": "X-Dropped-Messages",
}


def route_table(
    models: ServedModels, settings: Settings, dialects: Sequence[Dialect]
) -> RouteTable:
    """Make the table of our own routes and those of the dialects, for the served models.

    A dialect is an HTTP API, such as OpenAI's.
    """
    table = RouteTable(settings.root_dialect)
    described = [*dialects, Operations(settings.metrics_names, settings.bandwidth), Dashboard()]
    for dialect in (
        *described,
        Page(settings.root_dialect),
        Docs(described, settings.root_dialect),
    ):
        table.add(dialect, dialect.routes(models))
    return table


def create_app(
    models: ServedModels,
    settings: Settings,
    dialects: Sequence[Dialect],
    *,
    is_fronted: bool = False,
) -> web.Application:
    """Build the web application of the served models, with our own routes and those of dialects.

    A dialect is one HTTP API, such as OpenAI's. `is_fronted`: all requests come through a gateway
    of ours.
    """
    table = route_table(models, settings, dialects)
    headers = dict.fromkeys(header for each in dialects for header in each.headers)
    front = Front(models, Guard(settings, headers), table)
    app = web.Application(middlewares=[front.handle], client_max_size=settings.body_bytes)
    app[MODELS], app[SETTINGS], app[IS_FRONTED] = models, settings, is_fronted
    app.router.add_routes(table.routes())
    app[OPEN_SOCKETS] = weakref.WeakSet()
    app.on_shutdown.append(close_sockets)
    for dialect in dialects:
        app.cleanup_ctx.append(cleanup_of(dialect))
    app.on_response_prepare.append(front.add_headers)
    return app


def cleanup_of(dialect: Dialect) -> Callable[[web.Application], AsyncIterator[None]]:
    """Return the aiohttp cleanup context that runs a dialect's background work.

    A dialect is an HTTP API, such as OpenAI's.
    """

    async def surround(app: web.Application) -> AsyncIterator[None]:
        async with dialect.running(app):
            yield

    return surround


class Front:
    """Middleware of every request and response."""

    def __init__(self, models: ServedModels, guard: Guard, table: RouteTable) -> None:
        self._models, self._guard, self._table = models, guard, table
        self._starts = RequestStarts()

    @web.middleware
    async def handle(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Identify the caller, check access, run the handler, and turn errors into responses.

        While many requests arrive, the handler waits until its client has its turn.
        """
        key = self._identify_caller(request)
        if not is_vital(request):
            await self._starts.wait(request[CALLER].client)
        try:
            preflight = self._guard.preflight(request)
            if preflight is not None:
                return preflight
            check_expectation(request)
            check_connection_reserve(request)
            self._guard.check(request, request.match_info.handler, key)
            return await handler(request)
        except JaxLlamaError as error:
            return self._refuse(request, error)
        except web.HTTPException as error:
            response = self._refuse(request, translate_error(request, error))
            if hdrs.ALLOW in error.headers:
                response.headers[hdrs.ALLOW] = error.headers[hdrs.ALLOW]
            return response
        except ConnectionError:
            raise
        except Exception:
            logger.exception("request %s failed", request[CALLER].id)
            return self._refuse(request, JaxLlamaError("internal error"))

    async def add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add headers to every response: request id, CORS, and notes such as ignored fields."""
        response.headers["X-Request-Id"] = request[CALLER].id
        response.headers["X-Content-Type-Options"] = "nosniff"
        notes = request[CALLER].notes
        for name in NOTES.keys() & notes.keys():
            response.headers[NOTES[name]] = notes[name]
        response.headers.update(self._guard.cors(request))

    def _identify_caller(self, request: web.Request) -> str:
        """Store the caller and the dialect (HTTP API) of a request in `request`.

        Returns the API key that the request came with, "" if it has none.
        """
        resource = request.match_info.route.resource
        route = f"{request.method} {resource.canonical if resource else 'unknown'}"
        dialect = self._table.owner(request.match_info.handler, request.path)
        key = dialect.key(request)
        request[CALLER] = Caller(client=self._guard.client(request, key), route=route)
        request[DIALECT] = dialect
        return key

    def _refuse(self, request: web.Request, error: JaxLlamaError) -> web.Response:
        """Make the error response; log the refusal, unless the service logs the request itself."""
        response = error_response(request[DIALECT], error)
        if self._models.state is State.DRAINING or not request.content.at_eof():
            response.force_close()
        caller = request[CALLER]
        if not caller.was_opened:
            facts = {"status": response.status, **error.as_facts()}
            logger.info("refused", extra={"facts": caller.as_facts() | facts})
        return response


def is_vital(request: web.Request) -> bool:
    """Say whether the route is for operators, such as /health: it is served in any crowd."""
    return getattr(request.match_info.handler, "is_vital", False)


def check_connection_reserve(request: web.Request) -> None:
    """Raise HttpError 503 on a connection beyond the limits, unless the route is for operators."""
    connection = request.protocol
    if is_vital(request) or not isinstance(connection, Connection):
        return
    if connection.is_spare:
        error = HttpError(
            "too many connections are open, from this address or altogether; close some, or try "
            "again later",
            503,
            "too_many_connections",
        )
        error.retry_after = 1.0
        raise error


def translate_error(request: web.Request, error: web.HTTPException) -> JaxLlamaError:
    """Convert an HTTP exception of aiohttp to ours, with the same status."""
    match error.status:
        case 404:
            return HttpError(f"there is no {request.path[:100]!r} here", 404, "not_found")
        case 405:
            return HttpError(
                f"this path does not support {request.method}", 405, "method_not_allowed"
            )
        case _:
            return HttpError(error.reason, error.status, "refused")
