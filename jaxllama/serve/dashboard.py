"""`/metrics/live`: the figures behind `/metrics`, with slots and queue, as a stream of events.

Read by the dashboard page. Needs a key where the server has keys, like `/metrics` and `/slots`.
Contains no text, no tokens and no names of clients: a client is shown under a name that only this
run of the server knows how to make. Implemented as a dialect.
"""

import asyncio
import hashlib
import os
import secrets
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from aiohttp import web

from jaxllama.errors import InvalidParameter, JaxLlamaError
from jaxllama.serve.answering.problem import error_body
from jaxllama.serve.dialect import Dialect
from jaxllama.serve.endpoints import Endpoint
from jaxllama.serve.keys import CALLER, MODELS
from jaxllama.serve.metrics import RequestTally, Waits
from jaxllama.serve.model_choice import QUERY, Uses
from jaxllama.serve.wire import ResponseStream
from jaxllama.service import GenerationService, State

SECONDS = 2.0  # between two events
LONGEST = 60.0
READ_BYTES = 64 << 20  # per thread, to measure the memory
READS = 3


class LiveSlot(msgspec.Struct):
    """One slot: the request in it, and how full it is."""

    index: int
    is_held: bool
    cached: int  # tokens in the KV cache
    prompt: int
    decoded: int
    most: int


class LiveClient(msgspec.Struct):
    """A client that waits or holds slots, under a made-up name."""

    name: str
    is_you: bool
    waiting: int
    running: int
    slots: int
    tokens: int  # of its waiting prompts


class LiveFigures(msgspec.Struct):
    """All figures at one time."""

    time: float  # seconds since 1970
    state: State
    context: int
    figures: dict[str, float]  # gauges and counters of the service
    tokens: dict[str, float]  # counters: prompt, reused, generated
    requests: dict[str, float]  # counters by how requests ended
    hits: float  # counter of requests that began with cached tokens
    first: Waits  # time to the first token
    between: Waits  # time between tokens
    slots: list[LiveSlot]
    clients: list[LiveClient]
    adapters: dict[str, int]  # counters of requests
    pending: list[str]  # programs that are still compiled
    resident_bytes: int | None
    weight_bytes: int
    memory_bytes_per_second: float | None  # what threads of this machine read; None: not measured


LIVE = Endpoint(
    "GET",
    "/metrics/live",
    "Stream the figures behind /metrics, with slots and queue, every ?seconds= (2 by default)",
    answer=None,
    events=(LiveFigures,),
    uses=Uses.NOTHING,
)


class Dashboard(Dialect):
    """The stream of figures."""

    name = "dashboard"

    def __init__(self) -> None:
        super().__init__()
        self._secret = secrets.token_bytes(16)
        self._bandwidth: asyncio.Task[float] | None = None
        self.endpoints = {LIVE: self.live_metrics}

    def error_body(self, error: JaxLlamaError, /) -> dict[str, Any]:
        """Return the body of an error response."""
        return error_body(error)

    async def live_metrics(
        self, request: web.Request, service: GenerationService
    ) -> web.StreamResponse:
        """Answer GET /metrics/live with a stream of the server's figures, until the client leaves.

        The query parameter `seconds` is the time between two events. `model` names the model whose
        figures are sent, loaded or not; without it, the default model's figures are sent.
        """
        models, pause = request.app[MODELS], seconds_of(request)
        model = models.find(request.query.get(QUERY))
        if self._bandwidth is None and service.state is State.READY:
            self._bandwidth = asyncio.create_task(measure_memory())
        async with ResponseStream(request) as stream:
            while not models.is_draining:
                await stream.send(self._figures(model.service, request[CALLER].client))
                await asyncio.sleep(pause)
            await stream.finish(says_done=False)
        return stream.response

    def _figures(self, service: GenerationService, client: str) -> LiveFigures:
        metrics = service.observer
        assert isinstance(metrics, RequestTally)
        is_loaded = service.state is State.READY
        bandwidth = self._bandwidth
        return LiveFigures(
            time=time.time(),
            state=service.state,
            context=service.model.engine.config.context if is_loaded else 0,
            figures=service.figures(),
            tokens=dict(metrics.tokens),
            requests=metrics.requests,
            hits=metrics.hits,
            first=metrics.first,
            between=metrics.between,
            slots=[
                LiveSlot(
                    each.index, each.is_held, each.cached, each.prompt, each.decoded, each.most
                )
                for each in (service.slots() if is_loaded else ())
            ],
            clients=[
                LiveClient(
                    self._name(each.client),
                    each.client == client,
                    each.waiting,
                    each.running,
                    each.slots,
                    each.tokens,
                )
                for each in service.queue.clients()
            ],
            adapters=service.adapter_requests(),
            pending=list(service.compiling),
            resident_bytes=resident_bytes(),
            weight_bytes=service.weight_bytes,
            memory_bytes_per_second=bandwidth.result() if bandwidth and bandwidth.done() else None,
        )

    def _name(self, client: str) -> str:
        """Return a pseudonym of a client: a keyed hash, which does not reveal the client.

        `client` is the client's name in the request queue, "" for the server itself.
        """
        digest = hashlib.blake2b(client.encode(), key=self._secret, digest_size=2).hexdigest()
        return f"client {digest}" if client else "the server"


def seconds_of(request: web.Request) -> float:
    """Return the seconds between two events of the stream, from the query parameter `seconds`.

    The default is SECONDS. Raises InvalidParameter if the value is no number or out of bounds.
    """
    text = request.query.get("seconds")
    if text is None:
        return SECONDS
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not SECONDS / 4 <= seconds <= LONGEST:
        raise InvalidParameter(
            f"seconds is {text[:20]!r}; expected a number from {SECONDS / 4} to {LONGEST}",
            "seconds",
        )
    return seconds


def resident_bytes() -> int | None:
    """Return the resident memory of this process in bytes; None where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


async def measure_memory() -> float:
    """Return the memory bandwidth of all threads together, in bytes per second; takes 0.2 s."""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    parts = [np.ones(READ_BYTES // 8, np.int64) for _ in range(threads)]
    best = float("inf")
    for _ in range(READS):
        began = time.perf_counter()
        await asyncio.gather(*(asyncio.to_thread(np.max, part) for part in parts))
        best = min(best, time.perf_counter() - began)
    return threads * READ_BYTES / best
