"""The server under attack: a process of its own, seen only from outside.

Reads its log and what /proc says of its processes, so that any version can be attacked.
"""

import asyncio
import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp

sys.path.append(str(Path(__file__).parents[2] / "bench"))
from child import server_process

ATTACKER, NEIGHBOUR = "attackers-key", "neighbours-key"
ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)")
START_SECONDS = 600.0  # compiles everything where the cache is empty
OPEN_REQUESTS = re.compile(r"^jaxllama_open_requests (\S+)$", re.MULTILINE)
MIB = 1 << 20


class NoServer(Exception):
    """The server did not start, or is gone."""


@dataclasses.dataclass(frozen=True)
class Resources:
    """What the server's processes hold."""

    rss_mib: float  # of the server itself
    children_rss_mib: float
    fds: int
    threads: int
    children: int

    @property
    def memory(self) -> float:
        """MiB of all processes together."""
        return round(self.rss_mib + self.children_rss_mib, 1)


@dataclasses.dataclass
class Target:
    """A server that listens."""

    process: subprocess.Popen[bytes]
    log: Path
    port: int = 0

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    def tracebacks(self) -> int:
        """How many there are in the log."""
        return self.log.read_text(errors="replace").count("Traceback (most recent call last)")

    def resources(self) -> Resources:
        """What its processes hold now."""
        pid = self.process.pid
        children = children_of(pid)
        return Resources(
            rss_mib=round(rss(pid) / MIB, 1),
            children_rss_mib=round(sum(map(rss, children)) / MIB, 1),
            fds=count(Path(f"/proc/{pid}/fd")),
            threads=count(Path(f"/proc/{pid}/task")),
            children=len(children),
        )

    def freeze(self) -> None:
        """Stop it as the shell's Ctrl-Z does."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it run on."""
        self.process.send_signal(signal.SIGCONT)

    async def is_ready(self) -> bool:
        """Whether it takes requests."""
        try:
            async with aiohttp.ClientSession() as http, http.get(f"{self.url}/ready") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    async def open_requests(self) -> float:
        """Requests that it has not finished, by its own account."""
        headers = {"Authorization": f"Bearer {NEIGHBOUR}"}
        async with (
            aiohttp.ClientSession(headers=headers) as http,
            http.get(f"{self.url}/metrics") as response,
        ):
            found = OPEN_REQUESTS.search(await response.text())
            return float(found[1]) if found else 0.0

    async def settle(self, seconds: float = 60.0) -> bool:
        """Wait until it is ready and has no open request; False if it is not after so long."""
        with contextlib.suppress(TimeoutError, aiohttp.ClientError):
            async with asyncio.timeout(seconds):
                while not await self.is_ready() or await self.open_requests():
                    await asyncio.sleep(0.2)
                return True
        return False


@contextlib.asynccontextmanager
async def target(python: str, options: tuple[str, ...] = ()) -> AsyncIterator[Target]:
    """Run `jaxllama serve` of that Python with two keys, on the default model, until left."""
    keys = [f"--api-key={key}" for key in (ATTACKER, NEIGHBOUR)]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with server_process(["--port=0", *keys, *options], log, python=python) as process:
            server = Target(process, log)
            await wait_until(server, lambda: has_address(server))
            while not await server.is_ready():
                check_alive(server)
                await asyncio.sleep(0.2)
            yield server


def has_address(server: Target) -> bool:
    """Read the port from the log, once it is there."""
    found = ADDRESS.search(server.log.read_text(errors="replace"))
    if found:
        server.port = int(found[1])
    return found is not None


async def wait_until(server: Target, holds: Callable[[], bool]) -> None:
    """Wait until something holds, as long as the server lives."""
    async with asyncio.timeout(START_SECONDS):
        while not holds():
            check_alive(server)
            await asyncio.sleep(0.1)


def check_alive(server: Target) -> None:
    """Raise NoServer if the process has ended."""
    if not server.is_alive:
        raise NoServer(f"the server ended: {server.log.read_text(errors='replace')[-2000:]}")


def package_of(python: str) -> dict[str, Any]:
    """Where that Python's jaxllama is, and the commit of its checkout."""
    code = "import jaxllama; print(jaxllama.__file__)"
    found = subprocess.run(
        [python, "-P", "-c", code], capture_output=True, text=True, check=False, cwd="/"
    )
    if found.returncode:
        raise NoServer(f"{python} cannot import jaxllama: {found.stderr.strip()[-500:]}")
    package = Path(found.stdout.strip()).parent
    git = ["git", "-C", str(package), "rev-parse", "--short=12", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {"package": str(package), "commit": commit or "unknown"}


def children_of(pid: int) -> list[int]:
    """The processes that it has started, and theirs."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in path.read_text().split():
                found += [int(child), *children_of(int(child))]
    return found


def rss(pid: int) -> int:
    """Bytes of memory that a process holds; 0 if it is gone."""
    with contextlib.suppress(OSError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0


def count(folder: Path) -> int:
    """Entries of a folder; 0 if it is gone."""
    with contextlib.suppress(OSError):
        return len(list(folder.iterdir()))
    return 0
