"""Types of `/v1/responses`: request, response and stream events."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, UnsetType

from jaxllama.messages import ContextOverflow
from jaxllama.serve.answering.constraints import FunctionName
from jaxllama.serve.answering.thinking import Effort
from jaxllama.serve.answering.turns import TextPart
from jaxllama.serve.dialects.openai.chat_shapes import (
    SHARED_UNASKED,
    TEXT_ONLY,
)
from jaxllama.serve.dialects.openai.shapes import Common, Details, StreamOptions

NO_TOOLS = "this server runs no tools itself"


class InputItem(msgspec.Struct, forbid_unknown_fields=True):
    """A message, a call, the result of a call, or thoughts; each type has some of the fields."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[TextPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[TextPart] | None = None
    summary: list[TextPart] | None = None
    encrypted_content: str | None = None  # this and the next: clients send our answers back
    id: str | None = None
    status: str | None = None
    phase: str | None = None


class FunctionTool(msgspec.Struct, forbid_unknown_fields=True):
    """A tool that the model may call; tools that a server would run are refused."""

    type: str
    name: FunctionName | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedFunctionTool(msgspec.Struct, forbid_unknown_fields=True):
    """A tool choice: the function to call."""

    name: FunctionName
    type: Literal["function"] = "function"


ResponseToolChoice = Literal["none", "auto", "required"] | NamedFunctionTool


class ReasoningOptions(msgspec.Struct, forbid_unknown_fields=True):
    """Length of the thoughts before an answer."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None  # of no effect: thoughts are sent
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


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

    input: str | list[InputItem]
    instructions: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    text: TextOptions | None = None
    truncation: Literal["auto", "disabled"] | None = None
    context_overflow: ContextOverflow | None = None  # ours, in place of truncation
    tool_choice: ResponseToolChoice | None = None
    parallel_tool_calls: bool | None = None
    tools: list[FunctionTool] | None = None
    store: bool | None = None
    background: bool | None = None
    top_logprobs: int | None = None
    include: Any = None
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None
    reasoning: ReasoningOptions | None = None
    max_tool_calls: Any = None
    context_management: Any = None
    moderation: Any = None
    prompt_cache_options: Any = None
    access_programs: Any = None
    image: Any = None

    @property
    def overflow(self) -> ContextOverflow:
        """The treatment of a conversation that does not fit into the context."""
        if self.context_overflow is not None:
            return self.context_overflow
        is_cut = self.truncation == "auto"
        return ContextOverflow.DROP_OLDEST if is_cut else ContextOverflow.ERROR

    unsupported: ClassVar[Mapping[str, str]] = {
        "background": "a response is made while its client waits",
        "top_logprobs": "use /v1/chat/completions for log-probabilities",
        "conversation": "send previous_response_id, or the whole conversation as input",
        "prompt": "no prompts are stored here",
        "max_tool_calls": NO_TOOLS,
        "moderation": "there is no moderation here",
        "access_programs": "this server has no access programs",
        "image": TEXT_ONLY,
    }
    unheeded: ClassVar[Mapping[str, str]] = {
        "include": "answers contain no further data",
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


class OutputMessage(msgspec.Struct, tag_field="type", tag="message"):
    """The assistant's message."""

    id: str
    status: ResponseStatus
    content: list[OutputText]
    role: Literal["assistant"] = "assistant"


class FunctionCallItem(msgspec.Struct, tag_field="type", tag="function_call"):
    """A call of a tool, with its arguments as JSON text."""

    id: str
    status: ResponseStatus
    call_id: str
    name: str
    arguments: str


class ReasoningText(msgspec.Struct):
    """Thoughts."""

    text: str
    type: Literal["reasoning_text"] = "reasoning_text"


class ReasoningItem(msgspec.Struct, tag_field="type", tag="reasoning"):
    """The thoughts before an answer."""

    id: str
    status: ResponseStatus
    content: list[ReasoningText]
    summary: list[None] = msgspec.field(default_factory=list)


OutputItem = OutputMessage | FunctionCallItem | ReasoningItem


class OutputDetails(msgspec.Struct):
    """Number of answer tokens in thoughts."""

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
    output: list[OutputItem]
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
    tool_choice: ResponseToolChoice = "auto"
    tools: list[FunctionTool] = msgspec.field(default_factory=list)
    text: TextSettings = msgspec.field(default_factory=TextSettings)
    truncation: Literal["auto", "disabled"] = "disabled"
    previous_response_id: str | None = None
    reasoning: ReasoningOptions | None = None
    background: bool = False
    store: bool = True


class WholeEvent(msgspec.Struct):
    """Event with the whole response: it starts or ends."""

    type: Literal[
        "response.created", "response.in_progress", "response.completed", "response.incomplete"
    ]
    sequence_number: int
    response: Response


class ItemEvent(msgspec.Struct):
    """Event: an item of the output starts or ends."""

    type: Literal["response.output_item.added", "response.output_item.done"]
    sequence_number: int
    item: OutputItem
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


class PieceEvent(msgspec.Struct):
    """Event: a new part of the arguments of a call, or of the thoughts."""

    type: Literal["response.function_call_arguments.delta", "response.reasoning_text.delta"]
    sequence_number: int
    item_id: str
    delta: str
    output_index: int
    content_index: int | UnsetType = UNSET  # of thoughts


class ArgumentsEvent(msgspec.Struct):
    """Event: the whole arguments of a call."""

    sequence_number: int
    item_id: str
    name: str
    arguments: str
    output_index: int
    type: Literal["response.function_call_arguments.done"] = "response.function_call_arguments.done"


class ThoughtsEvent(msgspec.Struct):
    """Event: the whole thoughts."""

    sequence_number: int
    item_id: str
    text: str
    output_index: int
    content_index: int = 0
    type: Literal["response.reasoning_text.done"] = "response.reasoning_text.done"


EVENTS = (
    WholeEvent,
    ItemEvent,
    PartEvent,
    DeltaEvent,
    TextEvent,
    PieceEvent,
    ArgumentsEvent,
    ThoughtsEvent,
)
StreamEvent = (
    WholeEvent
    | ItemEvent
    | PartEvent
    | DeltaEvent
    | TextEvent
    | PieceEvent
    | ArgumentsEvent
    | ThoughtsEvent
)


class ResponseDeleted(msgspec.Struct):
    """Confirmation that a response was deleted."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True
