"""llama-burn's API: POST /generate, a Server-Sent Event per token, and `done` at the end.

The prompt is a user's message after a fixed system prompt, as in llama-burn's example server.
"""

from collections.abc import Iterator
from dataclasses import replace

import msgspec
from aiohttp import web

from jaxllama.errors import InvalidParameter, JaxLlamaError
from jaxllama.request import Event, Finished, Token
from jaxllama.serve.answering.defaults import with_defaults
from jaxllama.serve.answering.writing import write_answer
from jaxllama.serve.dialect import Dialect
from jaxllama.serve.endpoints import Endpoint, RequestShape, Serves
from jaxllama.serve.wire import SSE
from jaxllama.service import Ask, GenerationService
from jaxllama.service.answers import Answers

SYSTEM = "You are a helpful assistant."
DEFAULTS = {"max_tokens": 50, "temperature": 0.7, "top_p": 0.9, "seed": 42}
EVENTS = replace(SSE, done=b"event: done\ndata: done\n\n", ping=b": keep-alive\n\n")
WRONG_FIELD = 422  # as axum answers a body with a wrong field


class BurnBody(RequestShape, kw_only=True):
    """Request: a prompt, and how to answer it."""

    prompt: str
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None


class BurnToken(msgspec.Struct):
    """A token of the answer; its text may be empty while a character is incomplete."""

    token: str
    token_id: int
    index: int


GENERATE = Endpoint(
    "POST",
    "/generate",
    "Answer a prompt, in llama-burn's form: an event per token",
    body=BurnBody,
    answer=None,
    events=(BurnToken,),
)


async def generate(request: web.Request, service: GenerationService) -> web.StreamResponse:
    """Answer POST /generate with a stream: an event for each token of the answer."""
    body, _ = await GENERATE.read(request, service, BurnBody)
    given = {name: getattr(body, name) for name in DEFAULTS}
    ask = Ask(
        messages=[
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": body.prompt},
        ],
        knobs=with_defaults(service.model, given, DEFAULTS),
        total=service.model.engine.config.context,
    )
    return await write_answer(request, service, ask, BurnForm, stream=True, framing=EVENTS)


class BurnForm:
    """Converts the events of an answer to llama-burn's events."""

    says_done = True

    def __init__(self, answers: Answers) -> None:
        del answers
        self._token, self._index = 0, -1  # the newest

    def begin(self) -> Iterator[BurnToken]:
        """Yield nothing before the first token."""
        yield from ()

    def take(self, index: int, event: Event) -> Iterator[BurnToken]:
        """Yield llama-burn's event for a token, or for text that comes with the end of the answer.

        Text at the end gets the id of the last token. `index`, the number of the answer, is
        ignored: there is only one.
        """
        del index
        if isinstance(event, Token):
            self._token, self._index = event.token, self._index + 1
        if isinstance(event, Finished) and not event.text:
            return
        yield BurnToken(event.text, self._token, max(self._index, 0))

    def end(self) -> Iterator[BurnToken]:
        """Yield nothing after the last token: the stream writer adds the end mark itself."""
        yield from ()

    def whole(self) -> None:
        """Return None: llama-burn's answers are always streamed."""


class LlamaBurn(Dialect):
    """llama-burn's API: POST /generate, Server-Sent Events with one token each."""

    name = "llama_burn"
    endpoints: dict[Endpoint, Serves] = {GENERATE: generate}  # noqa: RUF012 - a table
    error_type = str

    def error_body(self, error: JaxLlamaError, /) -> str:
        """Return the text of an error."""
        return str(error)

    def error_status(self, error: JaxLlamaError, /) -> int:
        """Return the status of an error: 422 for a field that is missing or wrong."""
        is_field = isinstance(error, InvalidParameter) and error.field is not None
        return WRONG_FIELD if is_field else error.status
