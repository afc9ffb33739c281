"""GET /gen and POST /chat of Rama's API: a prompt in the URL, or a message as plain text.

An event of /gen is the text of a token, in which a line break is a backslash and an n.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from aiohttp import web

from jaxllama.errors import InvalidParameter
from jaxllama.request import Event
from jaxllama.serve.answering.defaults import with_defaults
from jaxllama.serve.answering.text_form import TextForm
from jaxllama.serve.answering.writing import write_answer
from jaxllama.serve.decode import check_names, read_text
from jaxllama.serve.endpoints import Endpoint
from jaxllama.serve.keys import CALLER
from jaxllama.serve.model_choice import query_names
from jaxllama.serve.origin import check_origin
from jaxllama.serve.wire import SSE
from jaxllama.service import Ask, GenerationService, Model
from jaxllama.service.answers import Answers

EVENTS = replace(SSE, done=b"", ping=b": keep-alive-text\n\n")
CREATED = 201

GEN = Endpoint(
    "GET",
    "/gen",
    "Continue the prompt in the query, in Rama's form: an event per token",
    answer=None,
    events=(),
    framing=EVENTS,
)
CHAT = Endpoint("POST", "/chat", "Answer a message in plain text, as Rama planned to", answer=str)


class RamaGenerating:
    """The handlers of /gen and /chat."""

    def __init__(self, knobs: Mapping[str, Any], step: int) -> None:
        """Store the operator's sampling parameters.

        `step` is the maximum number of tokens of prompt and answer together, for GET /gen.
        """
        self._knobs, self._step = knobs, step

    async def gen(self, request: web.Request, service: GenerationService) -> web.StreamResponse:
        """Answer GET /gen with a stream of the prompt and its continuation, an event per token."""
        check_origin(request)
        check_names(request, request.query, ("prompt", *query_names(request)))
        prompt = request.query.get("prompt", "")
        tokenizer = service.model.intake.tokenizer

        def read(model: Model) -> list[int]:
            begin = model.intake.tokenizer.begin_id
            ids = model.intake.ids(prompt)
            if not ids and begin is None:
                raise InvalidParameter("prompt is empty; expected text", "prompt")
            return ids or [begin or 0]

        ids = await service.off_loop(read, request[CALLER], size=len(prompt))
        knobs = with_defaults(service.model, {}, self._knobs)
        ask = Ask(prompts=[ids], knobs=knobs, total=self._step)

        def form(answers: Answers) -> RamaForm:
            return RamaForm(answers, [tokenizer.decode([id_], start=False) for id_ in ids])

        return await write_answer(request, service, ask, form, stream=True, framing=EVENTS)

    async def chat(self, request: web.Request, service: GenerationService) -> web.Response:
        """Answer POST /chat: the answer to the message in the body, as plain text."""
        check_origin(request)
        text = await read_text(request)
        ask = Ask(
            messages=[{"role": "user", "content": text}],
            knobs=with_defaults(service.model, {}, self._knobs),
            total=service.model.engine.config.context,
        )
        async with service.open(ask, request[CALLER]) as answers:
            pieces = [event.text async for _, event in answers]
        return web.Response(text="".join(pieces), status=CREATED)


class RamaForm(TextForm):
    """Converts the events of an answer to Rama's events; the prompt comes first."""

    def __init__(self, answers: Answers, prompt: list[str]) -> None:
        super().__init__(answers)
        self._prompt = prompt

    def begin(self) -> Iterator[bytes]:
        """Yield a server-sent event for each token of the prompt that has text."""
        return map(event_of, filter(None, self._prompt))

    def piece(self, index: int, text: str) -> bytes:
        """Return the stream event for a piece of the answer's text.

        `index` is the index of the answer; it has no effect, as there is only one.
        """
        del index
        return event_of(text)

    def take(self, index: int, event: Event) -> Iterator[bytes]:
        """Collect an event of answer `index`, and yield the stream event with its text, if any."""
        return iter(super().take(index, event))


def event_of(text: str) -> bytes:
    """Return the server-sent event that carries a text; its line breaks are escaped."""
    escaped = text.replace("\r", "").replace("\n", "\\n")
    return f"data: {escaped}\n\n".encode("utf-8", "replace")
