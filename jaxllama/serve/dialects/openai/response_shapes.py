"""Types of `/v1/responses`: request, response and stream events."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import msgspec

from jaxllama.serve.answering.turns import TextPart
from jaxllama.serve.dialects.openai.chat_shapes import (
    NO_SETTING,
    SHARED_UNASKED,
    TEXT_ONLY,
)
from jaxllama.serve.dialects.openai.shapes import Common, Details, StreamOptions

NOTHING_KEPT = "nothing is stored here between requests; send the whole conversation as input"
NO_TOOLS = "use /v1/chat/completions for tools"


class InputMessage(msgspec.Struct, forbid_unknown_fields=True):
    """One message of the request's conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    type: Literal["message"] = "message"
    id: str | None = None  # this and the next: clients send our answers back
    status: str | None = None
    phase: str | None = None


class TextFormat(msgspec.Struct, forbid_unknown_fields=True):
    """Form that the text must have."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class TextOptions(msgspec.Struct, forbid_unknown_fields=True):
    """Options for the text of an answer."""

    format: TextFormat | None = None


class ResponseBody(Common, kw_only=True):
    """Request: a conversation, and options for the answer."""

    input: str | list[InputMessage]
    instructions: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
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
        "background": "a response is made while its client waits",
        "top_logprobs": "use /v1/chat/completions for log-probabilities",
        "previous_response_id": NOTHING_KEPT,
        "conversation": NOTHING_KEPT,
        "prompt": "no prompts are stored here",
        "max_tool_calls": NO_TOOLS,
        "moderation": "there is no moderation here",
        "access_programs": "this server has no access programs",
        "image": TEXT_ONLY,
    }
    unheeded: ClassVar[Mapping[str, str]] = {
        "store": NOTHING_KEPT,
        "include": "answers contain no further data",
        "reasoning": NO_SETTING,
        "context_management": "the conversation is used as it was sent",
        "prompt_cache_options": SHARED_UNASKED,
    }


class OutputText(msgspec.Struct):
    """The text of an answer."""

    text: str
    type: Literal["output_text"] = "output_text"
    annotations: list[None] = msgspec.field(default_factory=list)
    logprobs: list[None] = msgspec.field(default_factory=list)


ResponseStatus = Literal["in_progress", "completed", "incomplete"]


class OutputMessage(msgspec.Struct):
    """The assistant's message."""

    id: str
    status: ResponseStatus
    content: list[OutputText]
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"


class OutputDetails(msgspec.Struct):
    """Number of answer tokens that were not shown: 0."""

    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct):
    """Token counts of a request."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: Details
    output_tokens_details: OutputDetails


class Incomplete(msgspec.Struct):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class TextSettings(msgspec.Struct):
    """Form of the text of a response."""

    format: dict[str, str] = msgspec.field(default_factory=lambda: {"type": "text"})


class Response(msgspec.Struct, kw_only=True):
    """A response, whole or in progress."""

    id: str
    created_at: int
    model: str
    status: ResponseStatus
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
    """Event: the response starts or ends."""

    type: Literal[
        "response.created", "response.in_progress", "response.completed", "response.incomplete"
    ]
    sequence_number: int
    response: Response


class ItemEvent(msgspec.Struct):
    """Event: the message starts or ends."""

    type: Literal["response.output_item.added", "response.output_item.done"]
    sequence_number: int
    item: OutputMessage
    output_index: int = 0


class PartEvent(msgspec.Struct):
    """Event: the text starts or ends."""

    type: Literal["response.content_part.added", "response.content_part.done"]
    sequence_number: int
    item_id: str
    part: OutputText
    output_index: int = 0
    content_index: int = 0


class DeltaEvent(msgspec.Struct):
    """Event: a new part of the text."""

    type: Literal["response.output_text.delta"]
    sequence_number: int
    item_id: str
    delta: str
    output_index: int = 0
    content_index: int = 0
    logprobs: list[None] = msgspec.field(default_factory=list)


class TextEvent(msgspec.Struct):
    """Event: the whole text."""

    type: Literal["response.output_text.done"]
    sequence_number: int
    item_id: str
    text: str
    output_index: int = 0
    content_index: int = 0
    logprobs: list[None] = msgspec.field(default_factory=list)


StreamEvent = WholeEvent | ItemEvent | PartEvent | DeltaEvent | TextEvent
EVENTS = (WholeEvent, ItemEvent, PartEvent, DeltaEvent, TextEvent)
