"""Served: the servers that are measured - whichever is named, or else one of our own.

Used by `serve.py`. Our own runs as a process of its own, as anybody would start it.
"""

import dataclasses
import functools
import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
from subject import Loading, Subject, loaded, subject_of

COMMAND = ("-c", "from jaxllama.cli.main import main; main()", "serve", "--port", "0")
ADDRESS = re.compile(r"listening on (http://\S+)")
LOOK_SECONDS = 0.05  # between two looks whether it is ready
STOP_SECONDS = 30.0


@dataclasses.dataclass(frozen=True)
class Served:
    """Where the server is, or what ours is to serve; and the peer."""

    url: str | None
    subject: Subject | None  # None: the server is not ours to start
    slots: int
    peer: str | None = None

    @property
    def peer_name(self) -> str | None:
        """What records call the peer."""
        return urlsplit(self.peer).netloc if self.peer else None

    @contextmanager
    def running(self, context: int) -> Iterator[str]:
        """The address of the server; ours is started, with room for so much, and stopped."""
        if self.url is not None:
            yield self.url
            return
        assert self.subject is not None
        model = ("-m", str(self.subject.path.resolve()))
        loading = {**self.subject.loading, "slots": self.slots, "context": context}
        options = [f"--{name}={value}" for name, value in loading.items()]
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log"
            with log.open("wb") as told:
                process = subprocess.Popen(
                    [sys.executable, *COMMAND, *model, *options], stderr=told
                )
            try:
                yield wait_until_ready(process, log)
            finally:
                stop(process)


def reached(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of which server; the function is called with `served`."""

    @loaded
    @click.option("--url", help="The server [default: one of our own is started].")
    @click.option("--peer", help="URL of a server to measure in turn with it.")
    @click.option("--slots", type=click.IntRange(min=1), help="Of our own server [default: 16].")
    @functools.wraps(function)
    def run(
        *, url: str | None, peer: str | None, slots: int | None, loading: Loading, **given: Any
    ) -> None:
        if url and any((*loading, slots)):
            raise click.UsageError(
                "--model, --kernels, --threads and --slots are for a server of our own; "
                "leave them out with --url."
            )
        subject = None if url else subject_of(loading)
        bases = [each and each.rstrip("/").removesuffix("/v1") for each in (url, peer)]
        function(served=Served(bases[0], subject, slots or 16, bases[1]), **given)

    return run


def wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    """The address our server says, once it takes requests."""
    while process.poll() is None:
        found = ADDRESS.search(log.read_text(errors="replace"))
        if found and is_ready(found[1]):
            return found[1]
        time.sleep(LOOK_SECONDS)
    raise click.ClickException(f"our server did not start: {log.read_text(errors='replace')}")


def is_ready(url: str) -> bool:
    """Whether the server takes requests."""
    try:
        with urllib.request.urlopen(f"{url}/ready"):
            return True
    except OSError:  # refused as well as not yet
        return False


def model_of(url: str) -> str:
    """The first model that a server lists."""
    try:
        with urllib.request.urlopen(f"{url}/v1/models") as response:
            return str(json.load(response)["data"][0]["id"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise click.ClickException(
            f"{url}/v1/models lists no model: {error}; expected an OpenAI-compatible server"
        ) from error


def stop(process: subprocess.Popen[bytes]) -> None:
    """End our server, at the latest by force."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
