"""The server: listens, handles signals, and shuts down cleanly.

Run by the command line. The server answers as soon as it listens, while the model still loads. At
the first SIGTERM or Ctrl-C it finishes running requests and ends; at the second it ends at once.
"""

import asyncio
import logging
import os
import signal
import ssl
from collections.abc import Sequence

from aiohttp import web

from jaxllama.errors import ConfigError
from jaxllama.serve.app import create_app
from jaxllama.serve.connection import Connection
from jaxllama.serve.crowd import Crowd
from jaxllama.serve.dialect import Dialect
from jaxllama.serve.expect import without_expectation
from jaxllama.serve.fronted import with_sender
from jaxllama.serve.settings import Settings
from jaxllama.service.served_models import ServedModels

logger = logging.getLogger(__name__)

ACCEPTS = 8  # connections that are accepted in one turn of the event loop
LAST_SECONDS = 2.0  # last wait for threads and handlers that should have ended
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Server:
    """Serves models on one address."""

    def __init__(
        self,
        models: ServedModels,
        settings: Settings,
        dialects: Sequence[Dialect],
        *,
        socket: str | None = None,
    ) -> None:
        """Make a server of the models; `start` makes it listen.

        `dialects` are the HTTP APIs to serve. `socket` is the path of a Unix socket on which the
        server listens, for a gateway that passes on clients' requests; None: it listens on the
        address in `settings`.
        """
        self.models, self.settings = models, settings
        self._socket = socket
        self.crowd = Crowd(
            settings.connections, settings.connections_per_address, settings.trusted_addresses
        )
        app = create_app(models, settings, dialects, is_fronted=socket is not None)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
        self._listening: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen and start loading the model, without waiting for it.

        Raises ConfigError if the address is taken or the TLS certificate is unusable.
        """
        settings = self.settings
        tls = tls_context(settings)
        await self._runner.setup()
        server = self._runner.server
        assert server is not None
        server.request_factory = without_expectation(server.request_factory)
        if self._socket is not None:
            server.request_factory = with_sender(server.request_factory)
        loop = asyncio.get_running_loop()

        def connect() -> Connection:
            return Connection(
                server,
                settings,
                self.crowd,
                loop=loop,
                keepalive_timeout=settings.keepalive_seconds,
                access_log=None,
                auto_decompress=False,
                logger=logger,
            )

        if self._socket is not None:
            self._listening = await loop.create_unix_server(connect, self._socket)
            self.models.start()
            return
        try:
            self._listening = await loop.create_server(
                connect,
                settings.host,
                settings.port,
                ssl=tls,
                ssl_handshake_timeout=settings.header_seconds if tls else None,
                backlog=ACCEPTS,
            )
        except OSError as error:
            await self._runner.cleanup()
            raise ConfigError(
                f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; "
                f"choose another --port or --host"
            ) from error
        hold_connections(self._listening, settings.connections)
        self.models.start()

    @property
    def url(self) -> str:
        """URL of the address that the server listens on."""
        assert self._listening is not None
        host, port = self._listening.sockets[0].getsockname()[:2]
        return self.settings.url_at(host, port)

    @property
    def open_url(self) -> str:
        """URL that a browser on this machine can open."""
        url = self.url
        for everywhere in ("//0.0.0.0:", "//[::]:"):
            url = url.replace(everywhere, "//localhost:")
        return url

    async def run(self) -> tuple[int, bool]:
        """Serve until a signal or a failure; return the exit code and whether all threads ended."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._signalled, stop, number)
        try:
            await self.start()
            logger.info("listening on %s%s", self.url, self._what_loads())
            announcing = asyncio.create_task(self._announce())
            waits = [asyncio.ensure_future(each.wait()) for each in (stop, self.models.failed)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for each in (*waits, announcing):
                each.cancel()
        finally:
            ended = await self.stop()
        failure = self.models.failure
        if failure is None:
            return 0, ended
        logger.error("the server ends, because it failed: %s", failure)
        return getattr(failure, "exit_code", 1), ended

    async def stop(self) -> bool:
        """Finish running requests and close everything; return False if a thread did not end.

        Requests that take longer than `drain_timeout` are ended.
        """
        logger.info("stopping: finishing what runs within %s s", self.settings.drain_timeout)
        await self.models.drain(self.settings.drain_timeout)
        if self._listening is not None:
            self._listening.close()
        ended = await self.models.close(LAST_SECONDS)
        await self._runner.cleanup()
        return ended

    def _what_loads(self) -> str:
        """Return text such as ", for the models a, b", for the end of the log's first line."""
        if self.models.is_single:
            return ", loading the model"
        names = ", ".join(each.name for each in self.models.all)
        return f", for the models {names}"

    async def _announce(self) -> None:
        """Log the URL of the page once the models are ready."""
        await self.models.ready.wait()
        logger.info("ready: open %s", self.open_url)

    def _signalled(self, stop: asyncio.Event, number: signal.Signals) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()


def hold_connections(server: asyncio.Server, most: int) -> None:
    """Let the kernel hold `most` connections that the server has not accepted yet.

    asyncio has one number for these and for the connections that it accepts in one turn of the
    event loop. It must be small there: a thousand new connections would stop all others meanwhile.
    """
    for listening in server.sockets:
        with listening.dup() as same:
            same.listen(most)


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """Load the certificate for https; return None if the settings have none.

    Raises ConfigError if it is unusable.
    """
    if settings.tls_certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.tls_certificate, settings.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"certificate {settings.tls_certificate} with key {settings.tls_key} cannot be used: "
            f"{error}"
        ) from error
    return context
