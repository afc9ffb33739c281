"""Child processes of the benchmarks, and a server that ends with its benchmark.

Used by the scripts that start processes and by the attack in `tests/chaos`. Imports nothing but the
standard library.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STOP_SECONDS = 30.0
# The parent has the other end of the pipe at standard input, which closes when the parent ends.
SERVE = """
import os, signal, threading

def follow_parent():
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=follow_parent, daemon=True).start()
from jaxllama.cli.main import main
main()
"""


@contextmanager
def server_process(
    arguments: Sequence[str], log: Path, *, python: str = sys.executable
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `jaxllama serve` of a Python environment with its log in a file; stop it at the end.

    The process runs in the folder of the log: in another current folder, a jaxllama there would be
    imported instead of the environment's own.
    """
    command = [python, "-c", SERVE, "serve", *arguments]
    with log.open("wb") as written:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=written,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
        )
    try:
        yield process
    finally:
        stop(process)


def importing_bench() -> dict[str, str]:
    """Return environment variables for a Python process that imports the scripts of this folder."""
    folders = (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, folders))}


def free_port() -> int:
    """Return a free port of this machine."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def stop(process: subprocess.Popen[Any]) -> None:
    """Terminate a process; kill it if it does not end in time."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdin is not None:
        process.stdin.close()
