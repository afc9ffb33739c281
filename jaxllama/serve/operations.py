"""Routes for operation: health, readiness, metrics, and cancelling a request.

Used by load balancers, monitors, and clients that cancel requests. Implemented as a dialect.
"""

import time
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from jaxllama.errors import HttpError, JaxLlamaError
from jaxllama.serve.answering.problem import error_body
from jaxllama.serve.dialect import Dialect
from jaxllama.serve.endpoints import Endpoint
from jaxllama.serve.keys import CALLER, MODELS
from jaxllama.serve.metrics import Metrics
from jaxllama.serve.model_choice import Uses
from jaxllama.serve.wire import one_json
from jaxllama.service import GenerationService, State
from jaxllama.service.served_models import ServedModels

LIVE = (State.LOADING, State.READY, State.DRAINING)


class LoadingProgress(msgspec.Struct):
    """Current stage of a server that starts, and the remaining work."""

    what: str
    done: int
    remaining: int
    seconds: float


class CompilingProgress(msgspec.Struct):
    """The program that is compiled while requests are served, and how many are left."""

    what: str
    remaining: int


class Status(msgspec.Struct, omit_defaults=True):
    """State of the server."""

    status: State
    loading: LoadingProgress | None = None
    compiling: CompilingProgress | None = None


class CancelledRequest(msgspec.Struct):
    """Confirmation that a request was cancelled."""

    id: str
    cancelled: Literal[True] = True


HEALTH = Endpoint(
    "GET",
    "/health",
    "Whether the process is healthy and need not be restarted, judged by its progress",
    answer=Status,
    otherwise={503: Status},
    uses=Uses.NOTHING,
    is_open=True,
    is_vital=True,
)
READY = Endpoint(
    "GET",
    "/ready",
    "Whether requests should be sent here",
    answer=Status,
    otherwise={503: Status},
    uses=Uses.NOTHING,
    is_open=True,
    is_vital=True,
)
METRICS = Endpoint(
    "GET",
    "/metrics",
    "Metrics in Prometheus' text form",
    answer=str,
    uses=Uses.NOTHING,
    is_vital=True,
)
CANCEL = Endpoint(
    "DELETE",
    "/v1/requests/{id}",
    "Cancel one of your own requests; its id is in the answer and in X-Request-Id",
    answer=CancelledRequest,
    uses=Uses.NOTHING,
)


async def health(request: web.Request, service: GenerationService) -> web.Response:
    """Answer GET /health: status 200 if the process is healthy, 503 if it should be restarted."""
    del service
    state = request.app[MODELS].state
    return one_json(Status(state), 200 if state in LIVE else 503)


async def ready(request: web.Request, service: GenerationService) -> web.Response:
    """Answer GET /ready: status 200 if the server takes requests, else 503.

    The body has the progress of loading and compiling.
    """
    del service
    models = request.app[MODELS]
    state, services = models.state, [each.service for each in models.all]
    loading = next(filter(None, map(loading_progress, services)), None)
    compiling = next(filter(None, map(compiling_progress, services)), None)
    return one_json(Status(state, loading, compiling), 200 if state is State.READY else 503)


def loading_progress(service: GenerationService) -> LoadingProgress | None:
    """Return the progress of loading the model; None if it is not loading."""
    stage = service.startup.stage
    if stage is None:
        return None
    seconds = round(time.monotonic() - stage.began, 1)
    return LoadingProgress(stage.what, stage.done, stage.total - stage.done, seconds)


def compiling_progress(service: GenerationService) -> CompilingProgress | None:
    """Return the progress of compiling programs in the background; None if no program is left."""
    pending = service.compiling
    return CompilingProgress(pending[0], len(pending)) if pending else None


async def cancel(request: web.Request, service: GenerationService) -> web.Response:
    """Answer DELETE /v1/requests/{id}: cancel a request of the caller; 404 if none has the id."""
    given = request.match_info["id"]
    id_ = given.rpartition("-")[2]  # dialects add a prefix to the id
    del service
    if not request.app[MODELS].cancel(id_, request[CALLER].client):
        raise HttpError(f"no request {given[:100]!r} of yours is running", 404, "request_not_found")
    return one_json(CancelledRequest(given))


class Operations(Dialect):
    """The routes for operation; metrics also under the names of other servers, if asked."""

    name = "operations"

    def __init__(self, metrics_names: Sequence[str] = (), bandwidth: float | None = None) -> None:
        super().__init__()
        self._metrics_names = metrics_names
        self._bandwidth = bandwidth
        self._metrics: Metrics | None = None
        self.endpoints = {HEALTH: health, READY: ready, METRICS: self.measure, CANCEL: cancel}

    def error_body(self, error: JaxLlamaError, /) -> dict[str, Any]:
        """Return the body of an error response."""
        return error_body(error)

    async def measure(self, request: web.Request, service: GenerationService) -> web.Response:
        """Answer GET /metrics with all metrics, in Prometheus' text form."""
        del request, service
        assert self._metrics is not None
        headers = {"Content-Type": CONTENT_TYPE_LATEST}
        return web.Response(body=self._metrics.text(), headers=headers)

    def routes(self, models: ServedModels, /) -> list[web.RouteDef]:
        """Return the routes of /health, /ready, /metrics and the like.

        From this call on, metrics of the models' requests are collected.
        """
        self._metrics = Metrics(models, self._metrics_names, self._bandwidth)
        models.observe(self._metrics.tally)
        return super().routes(models)
