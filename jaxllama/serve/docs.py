"""`/openapi.json`: the description of the API. The page `/docs` is made of it in the browser.

With `?outline=true` it only names the operations, with `?operation=NAME` it describes one of them:
the page reads these parts, because the whole is large. Implemented as a dialect.
"""

from collections.abc import Sequence
from typing import Any

from aiohttp import web

from jaxllama.errors import HttpError, JaxLlamaError
from jaxllama.serve.answering.problem import error_body
from jaxllama.serve.dialect import Dialect
from jaxllama.serve.endpoints import Endpoint
from jaxllama.serve.guard import open_to_all
from jaxllama.serve.keys import CALLER, SETTINGS
from jaxllama.serve.openapi import RouteName, describe, only, outline
from jaxllama.serve.routing import ROOT, has_root
from jaxllama.serve.wire import one_json
from jaxllama.service.served_models import ServedModels


class Docs(Dialect):
    """Serves the description of all endpoints of `dialects`."""

    name = "docs"

    def __init__(self, dialects: Sequence[Dialect], root_dialect: str | None = None) -> None:
        """Collect the endpoints of the dialects (HTTP APIs), in order to describe them.

        `root_dialect` is the name of the dialect that gets the path `/`; None: the server's own
        page. The endpoints of other dialects at `/` are left out.
        """
        super().__init__()
        self._endpoints: dict[Endpoint, RouteName] = {}
        names: set[str] = set()
        for dialect in dialects:
            for endpoint, serve in dialect.endpoints.items():
                if endpoint.path == ROOT and not has_root(dialect, root_dialect):
                    continue
                name = serve.__name__
                name = f"{dialect.name}_{name}" if name in names else name
                names.add(name)
                self._endpoints[endpoint] = RouteName(name, dialect.name, dialect.error_type)

    def routes(self, models: ServedModels, /) -> list[web.RouteDef]:
        """Return the route `/openapi.json`.

        `models` are the served models; the description of the API lists their names.
        """

        @open_to_all
        async def openapi(request: web.Request) -> web.Response:
            """Answer GET /openapi.json with the description of the API, or a part of it.

            The query `outline=true` asks for the names of the operations only, `operation=NAME` for
            one operation.
            """
            settings = request.app[SETTINGS]
            if request.query.get("outline") == "true":
                return one_json(outline(self._endpoints))
            name = request.query.get("operation")
            endpoints = self._endpoints if name is None else only(self._endpoints, name)
            if not endpoints:
                raise HttpError(f"there is no operation {str(name)[:100]!r}", 404, "not_found")
            names = () if models.is_single else models.names
            async with models.lease(None) as served:
                description = await served.service.off_loop(
                    lambda model: describe(
                        model,
                        endpoints,
                        needs_key=bool(settings.api_keys),
                        strict=settings.strict,
                        names=names,
                    ),
                    request[CALLER],
                    is_dear=True,
                )
            return one_json(description)

        return [web.get("/openapi.json", openapi)]

    def error_body(self, error: JaxLlamaError, /) -> dict[str, Any]:
        """Return the body of an error response, in OpenAI's form."""
        return error_body(error)
