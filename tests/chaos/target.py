"""The server under attack: a separate process, observed only from outside.

Reads the server's log and the data of /proc about its processes, so that any version can be
attacked.
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
from child import free_port, server_process

__all__ = ["free_port"]  # for attacks that start several servers

ATTACKER, NEIGHBOUR = "attackers-key", "neighbours-key"
ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)")
START_SECONDS = 600.0  # with an empty cache the server compiles all programs
PROMPT_CACHE = "--prompt-cache-mib=32"
OPEN_REQUESTS = re.compile(r"^jaxllama_open_requests (\S+)$", re.MULTILINE)
MIB = 1 << 20


class NoServer(Exception):
    """The server did not start, or has ended."""


@dataclasses.dataclass(frozen=True)
class Resources:
    """The resources of the server's processes."""

    rss_mib: float  # of the server's main process
    children_rss_mib: float
    fds: int
    threads: int
    children: int

    @property
    def memory(self) -> float:
        """The MiB of all processes together."""
        return round(self.rss_mib + self.children_rss_mib, 1)


@dataclasses.dataclass
class Target:
    """A running server process, its log and its port."""

    process: subprocess.Popen[bytes]
    log: Path
    port: int = 0

    @property
    def url(self) -> str:
        """The URL of the server."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    def tracebacks(self) -> int:
        """Count the tracebacks in the log."""
        return self.log.read_text(errors="replace").count("Traceback (most recent call last)")

    def resources(self) -> Resources:
        """Return the resources that the server's processes use now."""
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
        """Stop the process, as Ctrl-Z in a shell does."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let the stopped process continue."""
        self.process.send_signal(signal.SIGCONT)

    async def is_ready(self) -> bool:
        """Say whether the server accepts requests, and compiles no programs behind them."""
        try:
            async with aiohttp.ClientSession() as http, http.get(f"{self.url}/ready") as response:
                return response.status == 200 and "compiling" not in await response.json()
        except aiohttp.ClientError:
            return False

    async def open_requests(self) -> float:
        """Return the number of unfinished requests, from the server's metrics."""
        headers = {"Authorization": f"Bearer {NEIGHBOUR}"}
        async with (
            aiohttp.ClientSession(headers=headers) as http,
            http.get(f"{self.url}/metrics") as response,
        ):
            found = OPEN_REQUESTS.search(await response.text())
            return float(found[1]) if found else 0.0

    async def settle(self, seconds: float = 60.0) -> bool:
        """Wait until the server is ready and has no open request; False after `seconds`."""
        with contextlib.suppress(TimeoutError, aiohttp.ClientError):
            async with asyncio.timeout(seconds):
                while not await self.is_ready() or await self.open_requests():
                    await asyncio.sleep(0.2)
                return True
        return False


@contextlib.asynccontextmanager
async def target(
    python: str, options: tuple[str, ...] = (), *, port: int = 0
) -> AsyncIterator[Target]:
    """Run `jaxllama serve` with that Python, two keys and the default model; yield the server.

    Its prompt cache is small, so that it is full before memory is first measured. `port` 0: any.
    """
    keys = [f"--api-key={key}" for key in (ATTACKER, NEIGHBOUR)]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with server_process(
            [f"--port={port}", PROMPT_CACHE, *keys, *options], log, python=python
        ) as process:
            server = Target(process, log)
            await wait_until(server, lambda: has_address(server))
            while not await server.is_ready():
                check_alive(server)
                await asyncio.sleep(0.2)
            yield server


def has_address(server: Target) -> bool:
    """Read the port from the log; return False if it is not there yet."""
    found = ADDRESS.search(server.log.read_text(errors="replace"))
    if found:
        server.port = int(found[1])
    return found is not None


async def wait_until(server: Target, holds: Callable[[], bool]) -> None:
    """Wait until `holds` returns True; raise NoServer if the server ends."""
    async with asyncio.timeout(START_SECONDS):
        while not holds():
            check_alive(server)
            await asyncio.sleep(0.1)


def check_alive(server: Target) -> None:
    """Raise NoServer if the process has ended."""
    if not server.is_alive:
        raise NoServer(f"the server ended: {server.log.read_text(errors='replace')[-2000:]}")


def package_of(python: str) -> dict[str, Any]:
    """Return the folder of that Python's jaxllama, and the commit of its checkout."""
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
    """Return the ids of all processes that a process started, directly or not."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in path.read_text().split():
                found += [int(child), *children_of(int(child))]
    return found


def rss(pid: int) -> int:
    """Return the bytes of memory that a process uses; 0 if it has ended."""
    with contextlib.suppress(OSError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0


def count(folder: Path) -> int:
    """Return the number of entries of a folder; 0 if it does not exist."""
    with contextlib.suppress(OSError):
        return len(list(folder.iterdir()))
    return 0
