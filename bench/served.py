"""Served: the servers that are measured - the one at an address, or else one of our own.

Used by `serve.py`. Our own runs as a process of its own, as anybody would start it.
"""

import dataclasses
import functools
import json
import re
import subprocess
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
from child import server_process
from environment import Environment, environment_of_server
from subject import Loading, Subject, loaded, subject_of

ADDRESS = re.compile(r"listening on (http://\S+)")
LOOK_SECONDS = 0.05  # between two looks whether it is ready


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

    def environment(self) -> Environment:
        """The environment of the server, as far as it is known."""
        if self.subject is None:
            return environment_of_server(urlsplit(self.url or "").netloc)
        return self.subject.environment_elsewhere()

    @contextmanager
    def running(self, context: int) -> Iterator[str]:
        """The address of the server; ours is started, with room for so much, and stopped."""
        if self.url is not None:
            yield self.url
            return
        assert self.subject is not None
        sizes = (f"--slots={self.slots}", f"--context={context}")
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log"
            options = ("--port", "0", *self.subject.options, *sizes)
            with server_process(options, log) as process:
                yield wait_until_ready(process, log)


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
        if url and (loading.is_given or slots):
            raise click.UsageError(
                "--slots and the options of loading a model are for a server of our own; "
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
