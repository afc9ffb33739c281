"""A rolling restart: two servers behind nginx are restarted in turn, and no request fails.

nginx runs with the configuration of docs/how-to.md, with other addresses.
"""

import asyncio
import contextlib
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from tests.chaos.asking import session
from tests.chaos.endings import ending, question
from tests.chaos.report import Report
from tests.chaos.target import ATTACKER, NoServer, free_port, target

CLIENTS = 6
DRAIN = "--drain-timeout=60"
SIDES = 2
RECIPE = Path(__file__).parents[2] / "docs" / "how-to.md"
BLOCK = re.compile(r"```nginx\n(.*?)```", re.DOTALL)
PROXY, *SERVERS = "127.0.0.1:8000", "127.0.0.1:8001", "127.0.0.1:8002"  # addresses in the recipe


async def attack(python: str, report: Report, *, rounds: int, seed: int) -> None:
    """Restart both servers `rounds` times while clients ask the proxy; report all endings."""
    if shutil.which("nginx") is None:
        report.figure("rolling restart", left_out="nginx is not installed")
        return
    endings: Counter[str] = Counter()
    started = time.monotonic()
    proxy, *ports = (free_port() for _ in range(1 + SIDES))
    async with contextlib.AsyncExitStack() as stack:
        running = [await start(stack, python, port) for port in ports]
        stack.enter_context(nginx(proxy, ports))
        async with asking(f"http://127.0.0.1:{proxy}", endings, seed):
            for _ in range(rounds):
                for side, port in enumerate(ports):
                    await running[side].aclose()
                    running[side] = await start(stack, python, port)
    report.promise(
        "rolling restart",
        {"no request fails": set(endings) == {"whole"}},
        restarts=rounds * SIDES,
        seconds=round(time.monotonic() - started, 1),
        endings=dict(endings),
    )


async def start(
    stack: contextlib.AsyncExitStack, python: str, port: int
) -> contextlib.AsyncExitStack:
    """Start a server; return what stops it, which `stack` does at the latest."""
    own = await stack.enter_async_context(contextlib.AsyncExitStack())
    server = await own.enter_async_context(target(python, (DRAIN,), port=port))

    async def stop() -> None:
        server.process.send_signal(signal.SIGTERM)
        while server.is_alive:
            await asyncio.sleep(0.02)
        if server.process.returncode:
            raise NoServer(f"a server ended with {server.process.returncode}")

    own.push_async_callback(stop)
    return own


@contextlib.asynccontextmanager
async def asking(url: str, endings: Counter[str], seed: int) -> AsyncIterator[None]:
    """Within the context, several clients ask all the time; their answers' endings are counted."""
    over = asyncio.Event()

    async def keep_asking(number: int) -> None:
        chance = random.Random(f"{seed}, {number}")
        while not over.is_set():
            endings[await ending(http, url, question(chance))] += 1

    async with session(ATTACKER) as http, asyncio.TaskGroup() as group:
        for number in range(CLIENTS):
            group.create_task(keep_asking(number))
        try:
            yield
        finally:
            over.set()


@contextlib.contextmanager
def nginx(proxy: int, ports: list[int]) -> Iterator[None]:
    """Run nginx in front of the servers on these ports."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "nginx.conf"
        config.write_text(configuration(RECIPE.read_text(), proxy, ports, folder))
        command = ["nginx", "-p", folder, "-c", str(config), "-e", f"{folder}/errors"]
        process = subprocess.Popen(command)
        try:
            wait_for(proxy, process)
            yield
        finally:
            process.terminate()
            process.wait()


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a process listens on this port; raise NoServer if it ends."""
    while True:
        if process.poll() is not None:
            raise NoServer(f"nginx ended with {process.returncode}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.02)


def configuration(recipe: str, proxy: int, ports: list[int], folder: str) -> str:
    """Return the configuration of nginx for these ports, from the block in the recipe's text.

    nginx keeps its files in `folder`.
    """
    found = BLOCK.search(recipe)
    if found is None:
        raise ValueError(f"{RECIPE} has no block of nginx")
    block = found[1]
    for address, port in zip((PROXY, *SERVERS), (proxy, *ports), strict=True):
        if address not in block:
            raise ValueError(f"the block of nginx in {RECIPE} does not name {address}")
        block = block.replace(address, f"127.0.0.1:{port}")
    paths = "".join(
        f"{name}_temp_path {folder}/{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return (
        f"daemon off;\npid {folder}/pid;\nevents {{}}\nhttp {{\naccess_log off;\n{paths}{block}}}\n"
    )
