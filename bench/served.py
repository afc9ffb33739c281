"""The measured servers: at a given address, or started by the benchmark.

Used by `serve.py`. The benchmark starts its server as a separate process, as a user would.
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
from subject import Loading, Subject, loading_options, subject_of

ADDRESS = re.compile(r"listening on (http://[^\s,]+)")
POLL_SECONDS = 0.05  # between two requests to /ready


@dataclasses.dataclass(frozen=True)
class Served:
    """The address of the server, or the settings to start one; and the peer's address."""

    url: str | None
    subject: Subject | None  # the model to serve; None: the server runs at `url`
    slots: int
    peer: str | None = None

    @property
    def peer_name(self) -> str | None:
        """The name of the peer in records."""
        return urlsplit(self.peer).netloc if self.peer else None

    def environment(self) -> Environment:
        """Return the environment of the server, as far as it is known."""
        if self.subject is None:
            return environment_of_server(urlsplit(self.url or "").netloc)
        return self.subject.environment_elsewhere()

    @contextmanager
    def running(self, context: int) -> Iterator[str]:
        """Yield the address of the server; start and stop one unless an address was given."""
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


def server_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options that choose the server; the function gets `served`."""

    @loading_options
    @click.option("--url", help="Measure the server at this URL [default: start one].")
    @click.option("--peer", help="URL of another server, measured in turn with the first.")
    @click.option("--slots", type=click.IntRange(min=1), help="Slots to start with [default: 16].")
    @functools.wraps(function)
    def run(
        *, url: str | None, peer: str | None, slots: int | None, loading: Loading, **given: Any
    ) -> None:
        if url and (loading.is_given or slots):
            raise click.UsageError(
                "--slots and the options of loading a model are for the server that this command "
                "starts; leave them out with --url."
            )
        subject = None if url else subject_of(loading)
        bases = [each and each.rstrip("/").removesuffix("/v1") for each in (url, peer)]
        function(served=Served(bases[0], subject, slots or 16, bases[1]), **given)

    return run


def wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until the started server has compiled everything and return its address.

    Raises ClickException if the process ends first.
    """
    while process.poll() is None:
        found = ADDRESS.search(log.read_text(errors="replace"))
        if found and is_ready(found[1]):
            return found[1]
        time.sleep(POLL_SECONDS)
    raise click.ClickException(f"the server did not start: {log.read_text(errors='replace')}")


def is_ready(url: str) -> bool:
    """Say whether the server accepts requests, and compiles no programs behind them."""
    try:
        with urllib.request.urlopen(f"{url}/ready") as response:
            return "compiling" not in json.load(response)
    except OSError:  # the connection is refused, or the status is an error
        return False


def model_of(url: str) -> str:
    """Return the first model that a server lists; raise ClickException if it lists none."""
    try:
        with urllib.request.urlopen(f"{url}/v1/models") as response:
            return str(json.load(response)["data"][0]["id"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise click.ClickException(
            f"{url}/v1/models lists no model: {error}; expected an OpenAI-compatible server"
        ) from error
