"""Routes for whoever runs the server: is it alive, is it ready, how is it, stop that request.

Spoken to by load balancers, monitors and clients that change their mind. A dialect like any other.
"""

from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from jaxllama.errors import HttpError, JaxLlamaError
from jaxllama.serve.guard import open_to_all
from jaxllama.serve.keys import CALLER
from jaxllama.serve.metrics import Metrics
from jaxllama.serve.wire import one_json
from jaxllama.service import GenerationService, State

LIVE = (State.LOADING, State.READY, State.DRAINING)


def routes(service: GenerationService) -> list[web.RouteDef]:
    """/health, /ready, /metrics and cancelling by id."""
    metrics = Metrics(service)
    service.observer = metrics

    @open_to_all
    async def health(request: web.Request) -> web.Response:
        """Whether the process should be left alone: judged by progress."""
        del request
        state = service.state
        return one_json({"status": state}, 200 if state in LIVE else 503)

    @open_to_all
    async def ready(request: web.Request) -> web.Response:
        """Whether requests should be sent here."""
        del request
        state = service.state
        return one_json({"status": state}, 200 if state is State.READY else 503)

    async def measure(request: web.Request) -> web.Response:
        """Figures for a monitor."""
        del request
        headers = {"Content-Type": CONTENT_TYPE_LATEST}
        return web.Response(body=metrics.text(), headers=headers)

    async def cancel(request: web.Request) -> web.Response:
        """End one of the caller's own requests."""
        given = request.match_info["id"]
        id_ = given.rpartition("-")[2]  # dialects put a word before it
        if not service.cancel(id_, request[CALLER].client):
            raise HttpError(
                f"no request {given[:100]!r} of yours is running", 404, "request_not_found"
            )
        return one_json({"id": given, "cancelled": True})

    return [
        web.get("/health", health),
        web.get("/ready", ready),
        web.get("/metrics", measure),
        web.delete("/v1/requests/{id}", cancel),
    ]


def error_body(error: JaxLlamaError) -> dict[str, Any]:
    """An error as plain as can be."""
    return {"error": {"message": str(error), "code": error.code}}
