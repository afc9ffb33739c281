"""Conformance checks of dialects, and a server to try them on, for their authors.

`check_dialect(MyDialect)` raises AssertionError that names the broken rule; `served(MyDialect())`
runs a server whose model always gives the same answer. Called by the tests of this project and of
authors; must not know any dialect.
"""

import contextlib
import json
from collections.abc import AsyncIterator, Sequence

import msgspec

from jaxllama.config import EngineConfig
from jaxllama.errors import (
    EngineStopped,
    HttpError,
    InvalidParameter,
    JaxLlamaError,
    NotReady,
    PromptTooLong,
    QueueFull,
    TimedOut,
)
from jaxllama.formats import Message, PromptFormat
from jaxllama.intake import Intake
from jaxllama.serve.dialect import Dialect
from jaxllama.serve.endpoints import RequestShape
from jaxllama.serve.server import Server
from jaxllama.serve.settings import Settings
from jaxllama.service import GenerationService, Model
from jaxllama.service.bounds import Bounds
from jaxllama.service.served_models import ServedModels
from jaxllama.testing.byte_tokenizer import ByteTokenizer
from jaxllama.testing.scripted import ScriptedEngine

ERRORS: tuple[JaxLlamaError, ...] = (
    InvalidParameter("temperature is -1; it must lie in [0, 100]", "temperature"),
    PromptTooLong("the prompt has 9 tokens; the context is 8"),
    HttpError("this server needs an API key", 401, "invalid_api_key"),
    HttpError("there is no '/x' here", 404, "not_found"),
    HttpError("this path does not support PUT", 405, "method_not_allowed"),
    QueueFull("too many requests wait"),
    NotReady("the model is still loading"),
    EngineStopped("the engine has stopped"),
    TimedOut("the request took more than 9 s"),
    JaxLlamaError("internal error"),
)
LOWEST, HIGHEST = 400, 599  # statuses of errors


class PlainTurns(PromptFormat):
    """role: content, one message per line."""

    name = "plain_turns"

    def render(self, messages: Sequence[Message], *, answer: bool = True) -> str:
        """Return a line for each message; with `answer`, also the start of the assistant's line."""
        lines = [f"{message.role}: {message.content}\n" for message in messages]
        return "".join(lines) + ("assistant: " if answer else "")


def check_dialect(kind: type[Dialect]) -> None:
    """Raise AssertionError unless the HTTP API `kind` keeps the contract of its base class."""
    name = getattr(kind, "name", None)
    require(isinstance(name, str) and bool(name), kind, "has no name; set `name = ...`")
    require(bool((kind.__doc__ or "").strip()), kind, "has no docstring; say which API it is")
    dialect = kind()
    require(bool(dialect.endpoints), kind, "has no endpoints; set `endpoints`")
    seen: set[tuple[str, str]] = set()
    for endpoint in dialect.endpoints:
        where = f"{endpoint.method} {endpoint.path}"
        route = (endpoint.method, endpoint.path)
        require(route not in seen, kind, f"has the route {where} twice")
        seen.add(route)
        require(endpoint.path.startswith("/"), kind, f"has the path {where}; it must start with /")
        require(bool(endpoint.summary), kind, f"says nothing about {where}; give it a summary")
        body = endpoint.body
        require(
            body is None or issubclass(body, RequestShape),
            kind,
            f"reads a body at {where} whose type is no RequestShape",
        )
    for error in ERRORS:
        check_error(dialect, error)


def check_error(dialect: Dialect, error: JaxLlamaError) -> None:
    """Check that the dialect (an HTTP API) answers `error` with a valid body and an error status.

    Raises AssertionError if not.
    """
    kind, what = type(dialect), type(error).__name__
    body = dialect.error_body(error)
    try:
        raw = msgspec.json.encode(body)
    except (TypeError, ValueError) as problem:
        why = f"{kind.__name__} has an error body that is no JSON: {problem}"
        raise AssertionError(why) from problem
    shown = body if isinstance(body, str) else json.dumps(json.loads(raw), ensure_ascii=False)
    require(bool(shown), kind, f"has an empty error body for {what}")
    status = dialect.error_status(error)
    require(
        LOWEST <= status <= HIGHEST,
        kind,
        f"gives {what} the status {status}; an error needs one from {LOWEST} to {HIGHEST}",
    )


def require(holds: bool, kind: type[Dialect], rule: str) -> None:
    """Raise AssertionError unless `holds`.

    The message names the broken `rule` and `kind`, the class of the HTTP API under test.
    """
    if not holds:
        raise AssertionError(f"{kind.__name__} {rule}")


@contextlib.asynccontextmanager
async def served(dialect: Dialect, answer: bytes = b"Hello!") -> AsyncIterator[str]:
    """Serve a dialect on a free port of this machine and yield the address.

    A dialect is an HTTP API. The engine generates `answer` for every prompt, whatever the
    parameters of the request.
    """
    config = EngineConfig(slots=4, context=1024, steps_per_sync=1)
    engine = ScriptedEngine(lambda _: answer, config=config)
    intake = Intake(ByteTokenizer(), PlainTurns(), engine.bank, engine.config)
    service = GenerationService(lambda: Model("scripted", engine, intake), Bounds())
    server = Server(ServedModels.single(service), Settings(port=0, drain_timeout=0.0), [dialect])
    await server.start()
    try:
        await service.ready.wait()
        yield server.url
    finally:
        await server.stop()
