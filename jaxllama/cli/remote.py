"""A model on a running server, asked over HTTP by OpenAI's API: many requests at a time.

Used by `jaxllama batch --server`. Waits and asks again while the server is full, starts or
restarts. Knows HTTP and JSON, no model.
"""

import http.client
import json
import random
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any, Self
from urllib.parse import SplitResult, urlsplit

from jaxllama.cli.terminal import as_json
from jaxllama.errors import ConfigError, GenerationFailed, InvalidParameter, JaxLlamaError
from jaxllama.streams import OnError

Fields = dict[str, Any]

PATIENCE = 600.0  # seconds for which one request is sent again while the server is full or away
LONGEST_WAIT = 60.0  # seconds between two attempts
CONNECTING = 30.0  # seconds
SILENCE = 3600.0  # seconds without a byte from the server until a request has failed
FULL = (429, 503)
EVERY = (401, 403, 404, 405)  # every other request would fail in the same way
PROMPT, MESSAGES = "prompt", "messages"
ROUTES = {PROMPT: "/v1/completions", MESSAGES: "/v1/chat/completions"}


class RemoteModel:
    """A model on a server; a context manager that ends the requests that still run."""

    def __init__(
        self,
        url: str,
        *,
        concurrency: int,
        key: str | None = None,
        model: str | None = None,
    ) -> None:
        self.url = server_url(url)
        self.key = key
        self.model = model
        self.patience = PATIENCE
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="request")
        self._most = concurrency
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._open: set[http.client.HTTPConnection] = set()
        self._has_answered = False  # once: a wrong address is an error at once

    def answers(
        self, kind: str, items: Iterable[tuple[Any, Mapping[str, Any]]], on_error: OnError
    ) -> Iterator[tuple[int, Fields]]:
        """Ask the server to answer each item; yield (position in `items`, fields of the answer).

        An item is a pair (content, knobs); knobs are request parameters. `kind` is "prompt" or
        "messages", the form of all contents. At most `concurrency` requests run at a time, and an
        item is taken only when its request may start. Answers are yielded as they arrive;
        `on_error` is called with the position and the error of an item that fails.
        """
        running: dict[Future[Fields], int] = {}
        numbered = enumerate(items)
        more = True
        while more or running:
            while more and len(running) < self._most:
                position, item = next(numbered, (None, None))
                if position is None or item is None:
                    more = False
                    break
                running[self._threads.submit(self._ask, kind, *item)] = position
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for each in done:
                position = running.pop(each)
                error = each.exception()
                if error is None:
                    yield position, each.result()
                elif isinstance(error, JaxLlamaError) and not isinstance(error, ConfigError):
                    on_error(position, error)
                else:
                    raise error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        with self._lock:
            for connection in self._open:
                with suppress(OSError, AttributeError):  # closed, or not connected yet
                    connection.sock.shutdown(socket.SHUT_RDWR)  # its thread waits no longer
        self._threads.shutdown(cancel_futures=True)

    def _ask(self, kind: str, content: Any, knobs: Mapping[str, Any]) -> Fields:
        """Send one request, and resend it while the server is full; return the answer's fields.

        `knobs` are the request's parameters; `kind` says whether `content` is a prompt or messages.
        Blocks until the answer arrives.
        """
        body = body_of(kind, content, knobs, self.model)
        deadline = time.monotonic() + self.patience
        tries = 0
        while True:
            status, headers, raw = self._send(ROUTES[kind], body, deadline)
            if status not in FULL:
                break
            tries += 1
            seconds = seconds_to_wait(headers.get("Retry-After"), tries)
            if time.monotonic() + seconds > deadline:
                raise GenerationFailed(
                    f"the server answered {status} for {self.patience:.0f} s: {message_of(raw)}"
                )
            self._pause(seconds)
        check_status(status, headers, raw)
        return fields_of(kind, raw)

    def _pause(self, seconds: float) -> None:
        """Sleep for `seconds`; raise GenerationFailed as soon as this RemoteModel is closed."""
        if self._stopped.wait(seconds):
            raise GenerationFailed("the run was stopped")

    def _send(
        self, route: str, body: bytes, deadline: float
    ) -> tuple[int, Mapping[str, str], bytes]:
        """POST a body to a route of the server and return status, headers and body.

        If the connection fails, returns status 503, so that the caller tries again. Raises
        ConfigError instead if the server has not answered any request yet, or if
        `time.monotonic()` is past `deadline`.
        """
        connection = connect(self.url)
        with self._lock:
            self._open.add(connection)
        headers = {"Content-Type": "application/json", "Connection": "close"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        try:
            connection.connect()
            connection.sock.settimeout(SILENCE)
            self._pause(0)
            connection.request("POST", f"{self.url.path}{route}", body, headers)
            response = connection.getresponse()
            self._has_answered = True
            return response.status, dict(response.headers.items()), response.read()
        except (OSError, http.client.HTTPException) as error:
            if self._stopped.is_set():
                raise GenerationFailed("the run was stopped") from error
            if not self._has_answered or time.monotonic() > deadline:
                raise ConfigError(
                    f"{self.url.geturl()} does not answer ({error or type(error).__name__}); "
                    f"is a server running there?"
                ) from error
            return 503, {}, str(error).encode()
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()


def server_url(url: str) -> SplitResult:
    """Parse a server's http(s) address and drop /v1 at its end.

    Raises ConfigError for anything else.
    """
    parts = urlsplit(url)
    try:
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
        is_address = is_address and (parts.port is None or parts.port > 0)
    except ValueError:
        is_address = False
    if not is_address or parts.query or parts.fragment or parts.username:
        raise ConfigError(f"--server is {url!r}; expected an address as http://127.0.0.1:8000")
    return parts._replace(path=parts.path.rstrip("/").removesuffix("/v1"))


def connect(url: SplitResult) -> http.client.HTTPConnection:
    """Return a connection object for a server, not connected yet."""
    assert url.hostname is not None
    if url.scheme == "https":
        return http.client.HTTPSConnection(url.hostname, url.port, timeout=CONNECTING)
    return http.client.HTTPConnection(url.hostname, url.port, timeout=CONNECTING)


def body_of(kind: str, content: Any, knobs: Mapping[str, Any], model: str | None) -> bytes:
    """Return the JSON body of a request to OpenAI's API.

    `kind`, "prompt" or "messages", is the name of the field for `content`. Each of the `knobs`
    (request parameters) is a field, too. `model` None: the body names no model.
    """
    fields = {kind: content, **knobs}
    if model is not None:
        fields["model"] = model
    if kind == MESSAGES and knobs.get("logprobs") is not None:
        fields |= {"logprobs": True, "top_logprobs": knobs["logprobs"]}
    return as_json(fields).encode()


def check_status(status: int, headers: Mapping[str, str], raw: bytes) -> None:
    """Raise an error if the status is not 200, or if the server ignored fields of the request.

    `raw` is the body of the response. Raises ConfigError if other requests would fail in the same
    way, GenerationFailed for a fault of the server, InvalidParameter if only this request is
    refused.
    """
    message = f"the server answered {status}: {message_of(raw)}"
    if status in EVERY:
        raise ConfigError(message)
    if status >= 500:  # noqa: PLR2004 - the server's own faults
        raise GenerationFailed(message)
    if status != 200:  # noqa: PLR2004
        raise InvalidParameter(message)
    ignored = headers.get("X-Ignored-Fields")
    if ignored:
        raise ConfigError(f"the server does not know {ignored}; leave it out, or see its /docs")


def message_of(raw: bytes) -> str:
    """Return the message in the body of an error; if it has none, the beginning of the body."""
    try:
        return str(json.loads(raw)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return raw[:200].decode(errors="replace").strip() or "nothing"


def seconds_to_wait(retry_after: str | None, tries: int) -> float:
    """Return how many seconds to wait before the next try.

    `retry_after` is the Retry-After header of the response, in seconds or as a date. If it is None,
    the time doubles with each of the `tries` so far.
    """
    seconds = 0.25 * 2.0 ** min(tries, 8)
    if retry_after is not None:
        try:
            seconds = float(retry_after)
        except ValueError:
            with suppress(ValueError):
                seconds = parsedate_to_datetime(retry_after).timestamp() - time.time()
    # Spread over a tenth, or all threads would return at once.
    return min(max(seconds, 0.0), LONGEST_WAIT) * random.uniform(1.0, 1.1)


def fields_of(kind: str, raw: bytes) -> Fields:
    """Parse a response into the fields of an answer: text, finish_reason, usage and more if given.

    `kind` says whether the request had a prompt or messages; `raw` is the body of the response.
    Raises GenerationFailed if the body does not have the form of OpenAI's API.
    """
    try:
        body = json.loads(raw)
        (choice,) = body["choices"]
        text = choice["text"] if kind == PROMPT else choice["message"]["content"]
        fields = {
            "text": text or "",
            "finish_reason": choice["finish_reason"],
            "usage": usage_of(body.get("usage") or {}),
        }
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise GenerationFailed(
            f"the server's answer is none of OpenAI's: {raw[:200].decode(errors='replace')}"
        ) from error
    if kind == MESSAGES and choice["message"].get("tool_calls"):
        fields["tool_calls"] = choice["message"]["tool_calls"]
    if choice.get("logprobs") is not None:
        fields["logprobs"] = choice["logprobs"]
    return fields


def usage_of(usage: Mapping[str, Any]) -> Fields:
    """Return OpenAI's token counts under the names prompt, reused (cached) and generated."""
    details = usage.get("prompt_tokens_details") or {}
    return {
        "prompt": usage.get("prompt_tokens", 0),
        "reused": details.get("cached_tokens", 0),
        "generated": usage.get("completion_tokens", 0),
    }
