"""What is fuzzed over a connection: HTTP, the JSON of every dialect, frames of WebSockets.

The server runs in a thread of this process, on a scripted engine. An answer of 500, an error in the
log and silence are findings.
"""

import asyncio
import json
import logging
import re
import socket
import struct
import threading
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from jaxllama.testing import ScriptedEngine
from tests.fuzz.mutate import mutated
from tests.fuzz.mutate_json import dumped, mutated_json
from tests.fuzz.texts import SEEDS, texts_of
from tests.serve.conftest import config, running
from tests.serve.dialects import everyone
from tests.support import installed_samplers

DIALECT = "dialect_"
SOCKETS = {"websocket_rama": "/ws", "websocket_exllama": "/exllama/ws"}
PATIENCE = 120.0  # seconds for an answer
LINGER = 0.5  # seconds without a byte, after which the client of raw requests leaves
PAUSE = 0.05  # seconds for an answer to frames, before the connection is closed
DEADLINES = {"header_seconds": 0.3, "body_seconds": 0.3, "keepalive_seconds": 0.3}
STATUS = re.compile(rb"^HTTP/1\.[01] (\d{3})", re.MULTILINE)
MASK = b"\1\2\3\4"
DAY = 86_400.0


class Refused(Exception):
    """The server refused a request with a status."""


@cache
def bodies() -> dict[str, list[tuple[str, Any]]]:
    """Return the sound requests of every dialect: method with path, and body."""
    found = json.loads((SEEDS / "bodies.json").read_text())
    return {name: [(line, body) for line, body in each] for name, each in found.items()}


def names() -> list[str]:
    """Return the names of all targets."""
    return ["http", *SOCKETS, *(f"{DIALECT}{name}" for name in bodies())]


def http(line: str, body: bytes, *more: str) -> bytes:
    """Return the bytes of a request."""
    head = (f"{line} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *more)
    return "\r\n".join((*head, f"Content-Length: {len(body)}")).encode() + b"\r\n\r\n" + body


def frame(text: bytes, kind: int = 1) -> bytes:
    """Return a frame of a WebSocket, as a client sends it."""
    size = len(text)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + struct.pack(">H", size)
    masked = bytes(byte ^ MASK[place % 4] for place, byte in enumerate(text))
    return bytes([0x80 | kind]) + length + MASK + masked


class Complaints(logging.Handler):
    """Keeps what is logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one record with its trace."""
        self.found.append(logging.Formatter().format(record))


class ServerThread:
    """A server with all dialects, in a thread of its own."""

    def __init__(self) -> None:
        self.url, self._ready, self._over = "", threading.Event(), asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(60.0)

    @property
    def port(self) -> int:
        """The port of the server."""
        return int(self.url.rpartition(":")[2])

    def stop(self) -> None:
        """Stop the server; raises nothing if its thread has failed."""
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(60.0)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        size = config(candidates=32, context=512)
        engine = ScriptedEngine(lambda _: b"Hello!", config=size, samplers=installed_samplers())
        async with running(engine, dialects=everyone(), seconds=DAY, **DEADLINES) as live:
            self.url = live.url
            self._ready.set()
            await self._over.wait()


class WireBench:
    """A server, and the sound inputs of a target over a connection."""

    seconds = 10.0  # an explanation compiles the operations of its samplers

    def __init__(self, name: str, folder: Path) -> None:
        del folder
        self.name, self.server = name, ServerThread()
        self.complaints = Complaints()
        for logger in ("jaxllama", "asyncio", "aiohttp"):
            logging.getLogger(logger).addHandler(self.complaints)
        self.requests = bodies().get(name.removeprefix(DIALECT), [])
        self.sound = self._sound()

    def attempt(self, raw: bytes) -> Exception | None:
        """Send some bytes; return the refusal, None if the answer is no refusal."""
        if self.name.startswith(DIALECT):
            raw = whole(raw)
        if self.name in SOCKETS:
            opening = http(
                f"GET {SOCKETS[self.name]}",
                b"",
                "Connection: Upgrade",
                "Upgrade: websocket",
                "Sec-WebSocket-Version: 13",
                "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
            )
            told = self.exchange(raw, opening=opening, leaves_after=PAUSE)
        else:
            # Of a body that does not come the server reads for some seconds after its answer.
            told = self.exchange(raw, leaves_after=LINGER if self.name == "http" else None)
        statuses = [int(each) for each in STATUS.findall(told)]
        assert not self.complaints.found, self.complaints.found[0][-3000:]
        assert 500 not in statuses, told[:3000]
        assert statuses or not raw.strip() or self.name == "http", "no answer"
        refused = [status for status in statuses if status >= 400]
        return Refused(str(refused[0])) if refused else None

    def exchange(
        self, raw: bytes, *, opening: bytes = b"", leaves_after: float | None = None
    ) -> bytes:
        """Send bytes on a connection of their own; return all that comes back.

        An `opening` is answered before they are sent.
        """
        told = b""
        with socket.create_connection(("127.0.0.1", self.server.port), PATIENCE) as connection:
            try:
                connection.sendall(opening)
                while opening and b"\r\n\r\n" not in told:
                    told += connection.recv(1 << 16) or b"\r\n\r\n"
                connection.sendall(raw)
                if leaves_after is not None:
                    connection.settimeout(leaves_after)
                    told += drained(connection)
                    connection.settimeout(PATIENCE)
                    connection.shutdown(socket.SHUT_WR)
                told += drained(connection)
            except (ConnectionError, OSError) as error:
                if isinstance(error, TimeoutError):
                    raise AssertionError("the server is silent") from error
        return told

    def changed(self, random: Random) -> bytes:
        """Return a sound input with some changes: of its JSON, or of its bytes."""
        if not self.requests or random.random() < 0.1:
            return mutated(self.sound, random)
        line, body = random.choice(self.requests)
        others = [each for _, each in self.requests]
        return http(line, dumped(mutated_json(body, others, random)), "Connection: close")

    def close(self) -> None:
        """Stop the server."""
        self.server.stop()

    def _sound(self) -> list[bytes]:
        if self.name in SOCKETS:
            frames = [frame(text) for text in texts_of(self.name)]
            return [*frames, frames[0] + frame(b"", 9) + frame(b"\3\xe8", 8)]
        requests = self.requests or [each[0] for each in bodies().values()]
        return [http(line, dumped(body), "Connection: close") for line, body in requests]


def drained(connection: socket.socket) -> bytes:
    """Read until the other side ends or, where frames are answered, a pause is long enough."""
    told = b""
    limit = connection.gettimeout()
    try:
        while more := connection.recv(1 << 16):
            told += more
    except TimeoutError:
        if limit == PATIENCE:
            raise
    return told


def whole(raw: bytes) -> bytes:
    """Return a request with a sound head, and as its body what is behind the first empty line."""
    head, _, body = raw.partition(b"\r\n\r\n")
    line = head.partition(b" HTTP/")[0].decode("latin-1")
    line = line if re.fullmatch(r"(GET|POST) /[\w/.?=-]*", line) else "POST /v1/completions"
    return http(line, body, "Connection: close")
