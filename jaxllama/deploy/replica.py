"""A replica: a whole server that answers the requests in parcels.

Runs in an actor of Ray Serve, on the actor's event loop. The server listens on a socket of the file
system, which only this process connects to: so requests pass through the same code as on a server
without a gateway. Knows no Ray.
"""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import aiohttp
from yarl import URL

from jaxllama.deploy.parcel import Accepted, Head, Parcel, Part
from jaxllama.errors import EngineStopped
from jaxllama.serve.dialect import Dialect
from jaxllama.serve.fronted import LAST_WORDS, read_last_words
from jaxllama.serve.operations import LIVE
from jaxllama.serve.server import Server
from jaxllama.serve.settings import Settings
from jaxllama.service.served_models import ServedModels

OWN_HEADERS = (
    "Accept",
    "Accept-Encoding",
    "Content-Type",
    "User-Agent",
)  # aiohttp's, not to be added


class Replica:
    """One server, started by `start`, with a client of it."""

    def __init__(
        self, name: str, models: ServedModels, settings: Settings, dialects: Sequence[Dialect]
    ) -> None:
        """Make the server of a replica; `name` distinguishes it from other replicas.

        `dialects` are the HTTP APIs to serve.
        """
        self.name = name
        self._folder = Path(tempfile.mkdtemp(prefix="jaxllama-"))  # open to this user alone
        socket = str(self._folder / "http")
        self._server = Server(models, settings, dialects, socket=socket)
        self._client = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(socket, limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
            skip_auto_headers=OWN_HEADERS,
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def start(self) -> None:
        """Start the server and wait until the model is ready; raise the error if loading fails."""
        models = self._server.models
        await self._server.start()
        waits = [asyncio.ensure_future(each.wait()) for each in (models.ready, models.failed)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for each in waits:
            each.cancel()
        if models.failure is not None:
            await self.stop()
            raise models.failure

    async def stop(self) -> bool:
        """Let open requests finish, and close everything; False if a thread did not end."""
        ended = await self._server.stop()
        await self._client.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        return ended

    def check_health(self) -> None:
        """Raise EngineStopped if the replica has to be replaced, as GET /health judges it."""
        models = self._server.models
        if models.state not in LIVE:
            raise EngineStopped(f"the replica is {models.state}") from models.failure

    async def answer(self, parcel: Parcel) -> AsyncIterator[Part]:
        """Yield the parts of the answer to a request in a parcel.

        Closing the iterator cancels the request.
        """
        yield Accepted(self.name)
        url = URL(f"http://replica{parcel.target}", encoded=True)
        async with self._client.request(
            parcel.method,
            url,
            headers=parcel.headers,
            data=parcel.body or None,
            allow_redirects=False,
        ) as response:
            headers = [(name, value) for name, value in response.headers.items()]
            last = response.headers.get(LAST_WORDS)
            yield Head(
                response.status,
                tuple(each for each in headers if each[0] != LAST_WORDS),
                b"" if last is None else read_last_words(last),
            )
            piece = b""
            async for data, is_whole in response.content.iter_chunks():
                piece += data
                if is_whole and piece:  # a write of the server: never half an event
                    yield piece
                    piece = b""
            if piece:
                yield piece
