"""`/v1/responses`: text in, text out, in the shapes of OpenAI's newer API.

One file of the OpenAI dialect. Nothing is kept between requests, so what builds on that is refused.
"""

import time
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import msgspec
from aiohttp import web

from jaxllama.answers import Answers
from jaxllama.errors import InvalidParameter
from jaxllama.request import Event, Finished, FinishReason, Usage
from jaxllama.serve.dialects.openai.chat import TextPart
from jaxllama.serve.dialects.openai.constraints import JsonSchema, ResponseFormat, knobs_for
from jaxllama.serve.dialects.openai.shapes import Common, Details, StreamOptions, check_model
from jaxllama.serve.dialects.openai.telling import tell
from jaxllama.serve.endpoints import Endpoint
from jaxllama.service import Ask, GenerationService

NOTHING_KEPT = "nothing is kept here between requests; send the whole conversation as input"
NO_TOOLS = "ask /v1/chat/completions for tools"


class InputMessage(msgspec.Struct, forbid_unknown_fields=True):
    """One message."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    type: Literal["message"] = "message"
    id: str | None = None  # this and the next: as clients send our answers back
    status: str | None = None
    phase: str | None = None


class TextFormat(msgspec.Struct, forbid_unknown_fields=True):
    """What the text has to look like."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class TextOptions(msgspec.Struct, forbid_unknown_fields=True):
    """What the text has to look like."""

    format: TextFormat | None = None


class ResponseBody(Common, kw_only=True):
    """What was said, and how to go on."""

    input: str | list[InputMessage]
    instructions: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_output_tokens: int | None = None
    text: TextOptions | None = None
    truncation: Literal["disabled"] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    parallel_tool_calls: bool | None = None
    tools: list[Any] | None = None
    store: bool | None = None
    background: bool | None = None
    top_logprobs: int | None = None
    include: Any = None
    previous_response_id: Any = None
    conversation: Any = None
    prompt: Any = None
    reasoning: Any = None
    max_tool_calls: Any = None
    context_management: Any = None
    moderation: Any = None
    prompt_cache_options: Any = None
    access_programs: Any = None
    image: Any = None

    unsupported: ClassVar[Mapping[str, str]] = {
        "tools": NO_TOOLS,
        "store": NOTHING_KEPT,
        "background": "a response is made while its client waits",
        "top_logprobs": "ask /v1/chat/completions for log-probabilities",
        "include": "there is nothing more to tell",
        "previous_response_id": NOTHING_KEPT,
        "conversation": NOTHING_KEPT,
        "prompt": "no prompts are kept here",
        "reasoning": "this model has no setting for it",
        "max_tool_calls": NO_TOOLS,
        "context_management": "a conversation is read as it is sent",
        "moderation": "there is no moderation here",
        "prompt_cache_options": "prompts that share a beginning share their work unasked",
        "access_programs": "there are none here",
        "image": "this model reads and writes text only",
    }


class OutputText(msgspec.Struct):
    """What is said."""

    text: str
    type: Literal["output_text"] = "output_text"
    annotations: list[None] = msgspec.field(default_factory=list)
    logprobs: list[None] = msgspec.field(default_factory=list)


Status = Literal["in_progress", "completed", "incomplete"]


class OutputMessage(msgspec.Struct):
    """The assistant's message."""

    id: str
    status: Status
    content: list[OutputText]
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"


class OutputDetails(msgspec.Struct):
    """How much of an answer was not shown."""

    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct):
    """What it cost, in tokens."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: Details
    output_tokens_details: OutputDetails


class Incomplete(msgspec.Struct):
    """Why a response is not whole."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class TextSettings(msgspec.Struct):
    """What the text looks like."""

    format: dict[str, str] = msgspec.field(default_factory=lambda: {"type": "text"})


class Response(msgspec.Struct, kw_only=True):
    """A response, as far as it has come."""

    id: str
    created_at: int
    model: str
    status: Status
    output: list[OutputMessage]
    instructions: str | None
    max_output_tokens: int | None
    temperature: float | None
    top_p: float | None
    metadata: dict[str, str]
    user: str | None
    usage: ResponseUsage | None = None
    incomplete_details: Incomplete | None = None
    error: None = None
    object: Literal["response"] = "response"
    parallel_tool_calls: bool = True
    tool_choice: Literal["auto"] = "auto"
    tools: list[None] = msgspec.field(default_factory=list)
    text: TextSettings = msgspec.field(default_factory=TextSettings)
    truncation: Literal["disabled"] = "disabled"
    previous_response_id: None = None
    reasoning: None = None
    background: bool = False
    store: bool = False


class WholeEvent(msgspec.Struct):
    """The response begins or ends."""

    type: Literal[
        "response.created", "response.in_progress", "response.completed", "response.incomplete"
    ]
    sequence_number: int
    response: Response


class ItemEvent(msgspec.Struct):
    """The message begins or ends."""

    type: Literal["response.output_item.added", "response.output_item.done"]
    sequence_number: int
    item: OutputMessage
    output_index: int = 0


class PartEvent(msgspec.Struct):
    """The text begins or ends."""

    type: Literal["response.content_part.added", "response.content_part.done"]
    sequence_number: int
    item_id: str
    part: OutputText
    output_index: int = 0
    content_index: int = 0


class DeltaEvent(msgspec.Struct):
    """What is new of the text."""

    type: Literal["response.output_text.delta"]
    sequence_number: int
    item_id: str
    delta: str
    output_index: int = 0
    content_index: int = 0
    logprobs: list[None] = msgspec.field(default_factory=list)


class TextEvent(msgspec.Struct):
    """All of the text."""

    type: Literal["response.output_text.done"]
    sequence_number: int
    item_id: str
    text: str
    output_index: int = 0
    content_index: int = 0
    logprobs: list[None] = msgspec.field(default_factory=list)


StreamEvent = WholeEvent | ItemEvent | PartEvent | DeltaEvent | TextEvent

RESPONSES = Endpoint(
    "POST",
    "/v1/responses",
    "Answer a conversation, in the newer shapes",
    body=ResponseBody,
    answer=Response,
    event=StreamEvent,
    takes_knobs=True,
)


async def respond(request: web.Request, service: GenerationService) -> web.StreamResponse:
    """Answer a conversation."""
    body, knobs = await RESPONSES.read(request, service, ResponseBody)
    name = service.model.name
    check_model(body.model, name)
    if body.max_output_tokens is not None:
        if knobs.get("max_tokens") is not None:
            raise InvalidParameter(
                "max_tokens is called max_output_tokens here; send that alone", "max_tokens"
            )
        knobs["max_tokens"] = body.max_output_tokens
    if knobs.get("logprobs") is not None:
        raise InvalidParameter(
            "logprobs is not supported: ask /v1/chat/completions for log-probabilities", "logprobs"
        )
    constraint = knobs_for(format_of(body), (), None)
    ask = Ask(messages=messages_of(body), knobs=knobs | constraint)

    def form(answers: Answers) -> ResponseForm:
        return ResponseForm(body, name, knobs, answers.id)

    return await tell(request, service, ask, form, stream=body.stream)


def messages_of(body: ResponseBody) -> list[dict[str, Any]]:
    """The conversation, instructions first."""
    given = [InputMessage("user", body.input)] if isinstance(body.input, str) else body.input
    system = [InputMessage("system", body.instructions)] if body.instructions else []
    return [
        {
            "role": "system" if each.role == "developer" else each.role,
            "content": msgspec.to_builtins(each.content),
        }
        for each in (*system, *given)
    ]


def format_of(body: ResponseBody) -> ResponseFormat | None:
    """What the text has to look like, in the words of chats."""
    wanted = body.text.format if body.text is not None else None
    if wanted is None:
        return None
    schema = JsonSchema(wanted.name or "", wanted.description, wanted.schema, wanted.strict)
    return ResponseFormat(wanted.type, schema)


class ResponseForm:
    """One response."""

    says_done = False

    def __init__(
        self, body: ResponseBody, model: str, knobs: Mapping[str, object], id_: str
    ) -> None:
        self._body, self._model, self._knobs = body, model, knobs
        self._id, self._item = f"resp-{id_}", f"msg-{id_}"
        self._created, self._number = int(time.time()), -1
        self._texts: list[str] = []
        self._status: Status = "in_progress"
        self._usage: Usage | None = None

    def begin(self) -> Iterator[StreamEvent]:
        """Everything that comes before the text."""
        yield WholeEvent("response.created", self._next(), self.whole())
        yield WholeEvent("response.in_progress", self._next(), self.whole())
        item = OutputMessage(self._item, "in_progress", [])
        yield ItemEvent("response.output_item.added", self._next(), item)
        part = OutputText("")
        yield PartEvent("response.content_part.added", self._next(), self._item, part)

    def take(self, index: int, event: Event) -> Iterator[StreamEvent]:
        """What is new of the text."""
        del index
        self._texts.append(event.text)
        if isinstance(event, Finished):
            is_cut = event.reason is FinishReason.LENGTH
            self._usage, self._status = event.usage, "incomplete" if is_cut else "completed"
        if event.text:
            yield DeltaEvent("response.output_text.delta", self._next(), self._item, event.text)

    def end(self) -> Iterator[StreamEvent]:
        """Everything again, whole."""
        message = self._message()
        part = message.content[0]
        yield TextEvent("response.output_text.done", self._next(), self._item, part.text)
        yield PartEvent("response.content_part.done", self._next(), self._item, part)
        yield ItemEvent("response.output_item.done", self._next(), message)
        is_cut = self._status == "incomplete"
        kind: Any = "response.incomplete" if is_cut else "response.completed"
        yield WholeEvent(kind, self._next(), self.whole())

    def whole(self) -> Response:
        """The response, as far as it has come."""
        body, usage = self._body, self._usage
        return Response(
            id=self._id,
            created_at=self._created,
            model=self._model,
            status=self._status,
            output=[self._message()] if usage is not None else [],
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            temperature=number(self._knobs.get("temperature")),
            top_p=number(self._knobs.get("top_p")),
            metadata=body.metadata or {},
            user=body.user,
            usage=None if usage is None else counted(usage),
            incomplete_details=Incomplete() if self._status == "incomplete" else None,
        )

    def _message(self) -> OutputMessage:
        return OutputMessage(self._item, self._status, [OutputText("".join(self._texts))])

    def _next(self) -> int:
        self._number += 1
        return self._number


def number(value: object) -> float | None:
    """A knob that was given."""
    return float(value) if isinstance(value, int | float) else None


def counted(usage: Usage) -> ResponseUsage:
    """What it cost."""
    return ResponseUsage(
        usage.prompt,
        usage.generated,
        usage.prompt + usage.generated,
        Details(usage.reused),
        OutputDetails(),
    )
