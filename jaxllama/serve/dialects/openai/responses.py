"""`/v1/responses`: answers a conversation, in the form of OpenAI's newer API.

Part of the OpenAI dialect. The server stores nothing between requests, so fields that need stored
data are refused.
"""

import time
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from aiohttp import web

from jaxllama.errors import InvalidParameter
from jaxllama.request import Event, Finished, FinishReason, Usage
from jaxllama.serve.answering.constraints import FormKnobs, knobs_of_form
from jaxllama.serve.answering.models import check_model
from jaxllama.serve.answering.writing import write_answer
from jaxllama.serve.dialects.openai.response_shapes import (
    EVENTS,
    DeltaEvent,
    Incomplete,
    InputMessage,
    ItemEvent,
    OutputDetails,
    OutputMessage,
    OutputText,
    PartEvent,
    Response,
    ResponseBody,
    ResponseStatus,
    ResponseUsage,
    StreamEvent,
    TextEvent,
    WholeEvent,
)
from jaxllama.serve.dialects.openai.shapes import Details
from jaxllama.serve.endpoints import Endpoint
from jaxllama.service import Ask, GenerationService
from jaxllama.service.answers import Answers

RESPONSES = Endpoint(
    "POST",
    "/v1/responses",
    "Answer a conversation, in the form of OpenAI's newer API",
    body=ResponseBody,
    answer=Response,
    events=EVENTS,
    takes_knobs=True,
)


async def respond(request: web.Request, service: GenerationService) -> web.StreamResponse:
    """Generate the answer to a conversation, as one response or as a stream."""
    body, knobs = await RESPONSES.read(request, service, ResponseBody)
    name = check_model(body.model, service.model)
    if knobs.get("logprobs") is not None:
        raise InvalidParameter(
            "logprobs is not supported: use /v1/chat/completions for log-probabilities", "logprobs"
        )
    constraint = knobs_of_body(body)
    ask = Ask(messages=messages_of(body), knobs=constraint.merge(knobs), names=constraint.names)

    def form(answers: Answers) -> ResponseForm:
        return ResponseForm(body, name, knobs, answers.id)

    return await write_answer(request, service, ask, form, stream=body.stream)


def messages_of(body: ResponseBody) -> list[dict[str, Any]]:
    """Return the conversation's messages, with the instructions as first system message."""
    given = [InputMessage("user", body.input)] if isinstance(body.input, str) else body.input
    system = [InputMessage("system", body.instructions)] if body.instructions else []
    return [
        {
            "role": "system" if each.role == "developer" else each.role,
            "content": msgspec.to_builtins(each.content),
        }
        for each in (*system, *given)
    ]


def knobs_of_body(body: ResponseBody) -> FormKnobs:
    """Return the knobs that constrain the answer to `text.format`."""
    format_ = body.text.format if body.text is not None else None
    if format_ is None:
        return FormKnobs()
    return knobs_of_form(format_.type, format_.schema, "text.format", "text.format.schema")


class ResponseForm:
    """Converts the events of an answer to one response or to stream events."""

    says_done = False

    def __init__(
        self, body: ResponseBody, model: str, knobs: Mapping[str, object], id_: str
    ) -> None:
        self._body, self._model, self._knobs = body, model, knobs
        self._id, self._item = f"resp-{id_}", f"msg-{id_}"
        self._created, self._number = int(time.time()), -1
        self._texts: list[str] = []
        self._status: ResponseStatus = "in_progress"
        self._usage: Usage | None = None

    def begin(self) -> Iterator[StreamEvent]:
        """Yield the events before the text."""
        yield WholeEvent("response.created", self._next(), self.whole())
        yield WholeEvent("response.in_progress", self._next(), self.whole())
        item = OutputMessage(self._item, "in_progress", [])
        yield ItemEvent("response.output_item.added", self._next(), item)
        part = OutputText("")
        yield PartEvent("response.content_part.added", self._next(), self._item, part)

    def take(self, index: int, event: Event) -> Iterator[StreamEvent]:
        """Add an event of the answer; yield a stream event if it has text."""
        del index
        self._texts.append(event.text)
        if isinstance(event, Finished):
            is_cut = event.reason is FinishReason.LENGTH
            self._usage, self._status = event.usage, "incomplete" if is_cut else "completed"
        if event.text:
            yield DeltaEvent("response.output_text.delta", self._next(), self._item, event.text)

    def end(self) -> Iterator[StreamEvent]:
        """Yield the events after the text, which repeat it whole."""
        message = self._message()
        part = message.content[0]
        yield TextEvent("response.output_text.done", self._next(), self._item, part.text)
        yield PartEvent("response.content_part.done", self._next(), self._item, part)
        yield ItemEvent("response.output_item.done", self._next(), message)
        is_cut = self._status == "incomplete"
        kind: Any = "response.incomplete" if is_cut else "response.completed"
        yield WholeEvent(kind, self._next(), self.whole())

    def whole(self) -> Response:
        """Return the response as it is now."""
        body, usage = self._body, self._usage
        return Response(
            id=self._id,
            created_at=self._created,
            model=self._model,
            status=self._status,
            output=[self._message()] if usage is not None else [],
            instructions=body.instructions,
            max_output_tokens=self._knobs.get("max_tokens"),  # type: ignore[arg-type]
            temperature=as_float(self._knobs.get("temperature")),
            top_p=as_float(self._knobs.get("top_p")),
            metadata=body.metadata or {},
            user=body.user,
            usage=None if usage is None else as_response_usage(usage),
            incomplete_details=Incomplete() if self._status == "incomplete" else None,
        )

    def _message(self) -> OutputMessage:
        return OutputMessage(self._item, self._status, [OutputText("".join(self._texts))])

    def _next(self) -> int:
        self._number += 1
        return self._number


def as_float(value: object) -> float | None:
    """Return a knob's value as float; None if it was not given."""
    return float(value) if isinstance(value, int | float) else None


def as_response_usage(usage: Usage) -> ResponseUsage:
    """Convert token counts to the form of a response."""
    return ResponseUsage(
        usage.prompt,
        usage.generated,
        usage.prompt + usage.generated,
        Details(usage.reused),
        OutputDetails(),
    )
