"""Writes the answers to a request, as one response or as a stream.

Used by the endpoints that generate. An `AnswerForm` converts events to the chunks of its endpoint
and collects the data of the whole answer, so that both agree.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from aiohttp import web

from jaxllama.errors import InvalidParameter
from jaxllama.recording import check_recordable
from jaxllama.request import Event
from jaxllama.serve.explaining import MOST, check_length, record_answer, replay_positions
from jaxllama.serve.keys import CALLER
from jaxllama.serve.wire import SSE, Framing, ResponseStream, one_body
from jaxllama.service import Ask, GenerationService
from jaxllama.service.answers import Answers


class AnswerForm(Protocol):
    """Converts the events of one request to the JSON of an endpoint."""

    says_done: bool  # whether a stream ends with the end of its framing, such as [DONE]

    def begin(self) -> Iterable[Any]:
        """Yield the stream's chunks before the first event."""

    def take(self, index: int, event: Event) -> Iterable[Any]:
        """Collect an event of answer `index`, and yield the chunks that a stream sends for it."""

    def end(self) -> Iterable[Any]:
        """Yield the stream's chunks after the last event."""

    def whole(self) -> Any:
        """Return the body of a response that is not streamed; called after the last event."""


async def write_answer(  # noqa: PLR0913 - options of the answer
    request: web.Request,
    service: GenerationService,
    ask: Ask,
    form: Callable[[Answers], AnswerForm],
    *,
    stream: bool | None,
    explain: bool | None = None,
    framing: Framing = SSE,
) -> web.StreamResponse:
    """Generate the answers that `ask` describes, and send them: as a stream or as one body.

    `stream` and `explain` None mean False. `form` makes the object that converts events to the JSON
    of the endpoint. `explain` adds what each sampler did at each token, to an answer in one body.
    `framing` converts the chunks of a stream to bytes.
    """
    async with service.open(ask, request[CALLER]) as answers:
        made = form(answers)
        if not stream:
            if explain:
                check_recordable(answers.requests[0])
            received: list[Event] = []
            for _ in made.begin():
                pass
            async for index, event in answers:
                for _ in made.take(index, event):
                    pass
                if explain:
                    received.append(event)
            whole = made.whole()
            if explain:
                recording = await record_answer(answers, received, service)
                whole.explanation = await replay_positions(recording, {}, answers, service)
            return one_body(whole)
        async with ResponseStream(request, framing) as chunks:
            await chunks.send_all(made.begin())
            while events := await answers.next_events():
                await chunks.send_all(chunk for each in events for chunk in made.take(*each))
            await chunks.finish(made.end(), says_done=made.says_done)
    return chunks.response


def explainable_knobs(
    knobs: Mapping[str, Any], *, stream: bool | None, answers: int
) -> dict[str, Any]:
    """Return the parameters of a request with `explain`, after a check that it can be explained.

    `knobs` are the request's parameters. If they lack max_tokens, it becomes MOST, the most tokens
    that are explained. `stream`: the request asks for a stream; `answers`: how many answers it asks
    for. Raises InvalidParameter for a stream, several answers, or a max_tokens of 0 or above MOST.
    """
    if stream or answers != 1:
        raise InvalidParameter(
            "explain is for one whole answer to one prompt; remove stream, n and best_of",
            "explain",
        )
    if knobs.get("max_tokens") == 0:
        raise InvalidParameter("max_tokens is 0: there is nothing to explain", "explain")
    check_length(knobs)
    return {"max_tokens": MOST} | {name: each for name, each in knobs.items() if each is not None}
