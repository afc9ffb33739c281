"""The application on Ray Serve: replicas, gateways, and how Ray runs them.

Used by `jaxllama deploy`. The only file that starts anything on a cluster. Serve starts and
replaces replicas, asks for their health, scales them, and routes calls; HTTP comes through Serve's
proxies.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from jaxllama.cli.serve import service_of
from jaxllama.config import EngineConfig
from jaxllama.deploy.gateway import Gateway
from jaxllama.deploy.parcel import Parcel, Part
from jaxllama.deploy.replica import Replica
from jaxllama.deploy.router import PrefixRouter
from jaxllama.errors import ConfigError, QueueFull, ReplicaLost
from jaxllama.serve import log
from jaxllama.serve.error_forms import ErrorForms
from jaxllama.serve.installed import open_dialects
from jaxllama.serve.settings import Settings
from jaxllama.service.served_models import ServedModels

logger = logging.getLogger(__name__)

NAME = "jaxllama"
MARGIN_SECONDS = 5.0  # for Ray to end what has drained
PER_GATEWAY = 256  # open requests; more need another gateway
MOST_OPEN = 10_000  # requests of one gateway
OTHERS = 64  # calls of a replica beside the answers that it may have waiting: health, metrics ...
NICENESS = "RAY_worker_niceness"
LOCAL_STORE = 256 << 20  # bytes of Ray's object store, in a cluster that this program starts


@dataclass(frozen=True)
class Plan:
    """The settings of a deployment: of the server and the model, and the size of the deployment."""

    settings: Settings
    loading: Mapping[str, Any]  # arguments of `LLM.load`
    replicas: int
    most_replicas: int  # more than `replicas`: Ray scales between both
    cpus: float  # that Ray reserves for a replica
    gpus: float

    @property
    def slots(self) -> int:
        """Return the number of slots of one replica, the requests that it can run at a time."""
        return int(self.loading.get("slots") or EngineConfig.slots)


class ServedReplica:
    """A replica in an actor of Ray Serve."""

    async def __init__(  # type: ignore[misc] # Ray awaits it
        self, settings: Settings, loading: Mapping[str, Any]
    ) -> None:
        log.set_up(as_json=settings.log_json)
        models = ServedModels.single(service_of(settings, loading))
        name = serve.get_replica_context().replica_id.unique_id
        self._replica = Replica(name, models, settings, open_dialects(settings))
        await self._replica.start()

    async def answer(self, parcel: Parcel) -> AsyncIterator[Part]:
        """Yield the parts of the answer to the client's request in `parcel`."""
        async for part in self._replica.answer(parcel):
            yield part

    async def check_health(self) -> None:
        """Raise an error if Ray has to replace this replica."""
        self._replica.check_health()

    async def __del__(self) -> None:  # Ray awaits it when all requests have ended
        await self._replica.stop()


class ServedGateway:
    """A gateway in an actor of Ray Serve, which passes it the requests of HTTP clients."""

    async def __init__(  # type: ignore[misc] # Ray awaits it
        self, settings: Settings, replicas: DeploymentHandle
    ) -> None:
        log.set_up(as_json=settings.log_json)
        self._settings = settings
        forms = ErrorForms(settings, open_dialects(settings))
        self._gateway = Gateway(Carrier(replicas).carry, forms, settings)

    def __serve_build_asgi_app__(self) -> Gateway:
        """Return the ASGI application; Ray calls this after `__init__`."""
        return self._gateway

    async def drain(self) -> None:
        """Refuse new requests and let open ones finish."""
        await self._gateway.drain(self._settings.drain_timeout)


class Carrier:
    """Passes parcels to replicas by calls of Ray Serve."""

    def __init__(self, replicas: DeploymentHandle) -> None:
        self._call = replicas.options(method_name="answer", stream=True)

    async def carry(self, parcel: Parcel) -> AsyncIterator[Part]:
        """Pass the request in `parcel` to a replica, and yield the parts of the answer.

        Closing the iterator cancels the request. Raises ReplicaLost if the replica ends or fails
        before the answer does, QueueFull if Ray has too many calls that wait for a replica.
        """
        parts = self._call.remote(parcel)
        try:
            async for part in parts:
                yield part
        except BackPressureError as error:
            raise QueueFull("too many requests wait for a replica; try again later") from error
        except (RayError, RayServeException) as error:
            logger.warning("a replica is lost: %s", str(error).strip().partition("\n")[0])
            raise ReplicaLost from error
        except (GeneratorExit, asyncio.CancelledError):
            with contextlib.suppress(RayServeException):  # of a call that has ended already
                parts.cancel()
            raise


def application(plan: Plan) -> serve.Application:
    """Return the application of Ray Serve that deploys replicas of a server as `plan` says."""
    settings = plan.settings
    queue = settings.bounds.queue_requests
    drain_seconds = settings.drain_timeout + MARGIN_SECONDS
    replicas = serve.deployment(
        ServedReplica,
        name="Replica",
        **scale(plan.replicas, plan.most_replicas, float(plan.slots)),
        ray_actor_options={"num_cpus": plan.cpus, "num_gpus": plan.gpus},
        max_ongoing_requests=plan.slots + queue + OTHERS,
        max_queued_requests=plan.most_replicas * (plan.slots + queue),
        graceful_shutdown_timeout_s=drain_seconds,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=5.0,
        health_check_timeout_s=30.0,
        max_constructor_retry_count=1,
        request_router_config=RequestRouterConfig(
            request_router_class=PrefixRouter,
            request_router_kwargs={"spread": max(1, plan.slots // 2)},
        ),
    ).bind(settings, plan.loading)
    gateways = serve.deployment(
        serve.ingress()(ServedGateway),
        name="Gateway",
        **scale(1, max(1, plan.most_replicas), float(PER_GATEWAY)),
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=MOST_OPEN,
        graceful_shutdown_timeout_s=drain_seconds,
        graceful_shutdown_wait_loop_s=0.5,
    )
    return gateways.bind(settings, replicas)


def scale(least: int, most: int, target: float) -> dict[str, Any]:
    """Return the options of Ray Serve for a deployment of `least` to `most` replicas.

    Ray adds a replica when there are more than `target` open requests per replica. If `least`
    equals `most`, the number of replicas is fixed.
    """
    if least == most:
        return {"num_replicas": least}
    return {
        "autoscaling_config": {
            "min_replicas": least,
            "max_replicas": most,
            "target_ongoing_requests": target,
        }
    }


def deploy(plan: Plan, address: str | None) -> None:
    """Deploy replicas as `plan` says, and run until a signal; then let open requests finish.

    `address` is that of a Ray cluster; None: the one in RAY_ADDRESS, or else a cluster on this
    machine that ends with this program. Raises ConfigError if the replicas cannot be started.
    """
    connect(address)
    settings, stop = plan.settings, threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # Ray's own handler would end the program
        signal.signal(number, leave)
    try:
        serve.start(http_options=http_options(settings))
        try:
            handle = serve.run(application(plan), name=NAME, route_prefix="/")
        except RuntimeError as error:
            raise ConfigError(f"the replicas did not start: {last_line(str(error))}") from error
        logger.info("ready: open %s", settings.url_at(settings.host, settings.port))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        stop.wait()
        logger.info("stopping: finishing what runs within %g s", settings.drain_timeout)
        handle.broadcast("drain").results(timeout_s=settings.drain_timeout + MARGIN_SECONDS)
    finally:
        serve.shutdown()
        ray.shutdown()


def leave(*_: object) -> NoReturn:
    """End the program, for a signal that comes before the replicas are ready."""
    sys.exit()


def connect(address: str | None) -> None:
    """Join the Ray cluster at `address` or RAY_ADDRESS; without both, start one on this machine."""
    found = address or os.environ.get("RAY_ADDRESS")
    if found:
        ray.init(address=found)
    else:
        os.environ.setdefault(NICENESS, "0")  # Ray's 15 lets every other program go first
        ray.init(address="local", object_store_memory=LOCAL_STORE, include_dashboard=False)
    logger.info("using the Ray cluster at %s", ray.get_runtime_context().gcs_address)


def http_options(settings: Settings) -> dict[str, Any]:
    """Return the options of Ray Serve's HTTP proxies."""
    return {
        "host": settings.host,
        "port": settings.port,
        "keep_alive_timeout_s": round(settings.keepalive_seconds),
        "ssl_certfile": settings.tls_certificate,
        "ssl_keyfile": settings.tls_key,
    }


def last_line(text: str) -> str:
    """Return the last non-blank line of a text; "" if it has none."""
    return next((each.strip() for each in reversed(text.splitlines()) if each.strip()), "")
