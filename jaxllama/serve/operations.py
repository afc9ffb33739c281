"""Routes for whoever runs the server: is it alive, is it ready, how is it, stop that request.

Spoken to by load balancers, monitors and clients that change their mind. A dialect like any other.
"""

import time
from typing import Literal

import msgspec
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from jaxllama.errors import HttpError
from jaxllama.serve.dialects.openai.shapes import error_body
from jaxllama.serve.endpoints import Endpoint, Serves, routes_of
from jaxllama.serve.keys import CALLER
from jaxllama.serve.metrics import Metrics
from jaxllama.serve.wire import one_json
from jaxllama.service import GenerationService, State

__all__ = ["ENDPOINTS", "error_body", "routes"]

LIVE = (State.LOADING, State.READY, State.DRAINING)


class LoadingProgress(msgspec.Struct):
    """What a server that starts is doing, and how much of it remains."""

    what: str
    done: int
    remaining: int
    seconds: float


class Status(msgspec.Struct, omit_defaults=True):
    """What the server is doing."""

    status: State
    loading: LoadingProgress | None = None


class CancelledRequest(msgspec.Struct):
    """A request that was ended."""

    id: str
    cancelled: Literal[True] = True


HEALTH = Endpoint(
    "GET",
    "/health",
    "Whether the process should be left alone: judged by progress",
    answer=Status,
    otherwise={503: Status},
    is_open=True,
    is_vital=True,
)
READY = Endpoint(
    "GET",
    "/ready",
    "Whether requests should be sent here",
    answer=Status,
    otherwise={503: Status},
    is_open=True,
    is_vital=True,
)
METRICS = Endpoint(
    "GET",
    "/metrics",
    "Figures for a monitor, as Prometheus reads them",
    answer=str,
    is_vital=True,
)
CANCEL = Endpoint(
    "DELETE",
    "/v1/requests/{id}",
    "End one of your own requests; the id is that of its answer or X-Request-Id",
    answer=CancelledRequest,
)


async def health(request: web.Request, service: GenerationService) -> web.Response:
    """Whether the process should be left alone."""
    del request
    state = service.state
    return one_json(Status(state), 200 if state in LIVE else 503)


async def ready(request: web.Request, service: GenerationService) -> web.Response:
    """Whether requests should be sent here."""
    del request
    state = service.state
    return one_json(Status(state, loading_progress(service)), 200 if state is State.READY else 503)


def loading_progress(service: GenerationService) -> LoadingProgress | None:
    """How far the model's loading has come, while it goes on."""
    stage = service.startup.stage
    if stage is None:
        return None
    seconds = round(time.monotonic() - stage.began, 1)
    return LoadingProgress(stage.what, stage.done, stage.total - stage.done, seconds)


async def measure(request: web.Request, service: GenerationService) -> web.Response:
    """Figures for a monitor."""
    del request
    assert isinstance(service.observer, Metrics)
    headers = {"Content-Type": CONTENT_TYPE_LATEST}
    return web.Response(body=service.observer.text(), headers=headers)


async def cancel(request: web.Request, service: GenerationService) -> web.Response:
    """End one of the caller's own requests."""
    given = request.match_info["id"]
    id_ = given.rpartition("-")[2]  # dialects put a word before it
    if not service.cancel(id_, request[CALLER].client):
        raise HttpError(f"no request {given[:100]!r} of yours is running", 404, "request_not_found")
    return one_json(CancelledRequest(given))


ENDPOINTS: dict[Endpoint, Serves] = {
    HEALTH: health,
    READY: ready,
    METRICS: measure,
    CANCEL: cancel,
}


def routes(service: GenerationService) -> list[web.RouteDef]:
    """All of them; from now on what happens is counted."""
    service.observer = Metrics(service)
    return routes_of(ENDPOINTS, service)
