"""Types of the answers and stream events of Anthropic's API.

Field names and values are Anthropic's; the field `type` of an event is its name in the stream.
"""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

StopReason = Literal[
    "end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"
]


class AnthropicUsage(msgspec.Struct):
    """Token counts; `input_tokens` counts those that were not in the cache."""

    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    dropped_messages: int | UnsetType = UNSET  # ours: left out because the context was full


class AnsweredText(msgspec.Struct, tag_field="type", tag="text"):
    """A text in an answer."""

    text: str


class AnsweredThoughts(msgspec.Struct, tag_field="type", tag="thinking"):
    """The thoughts before an answer; nothing signs them here."""

    thinking: str
    signature: str = ""


class AnsweredCall(msgspec.Struct, tag_field="type", tag="tool_use"):
    """A call of a tool in an answer."""

    id: str
    name: str
    input: dict[str, Any]


class AnthropicMessage(msgspec.Struct):
    """An answer."""

    id: str
    model: str
    content: list[AnsweredThoughts | AnsweredText | AnsweredCall] = msgspec.field(
        default_factory=list
    )
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    usage: AnthropicUsage = msgspec.field(default_factory=lambda: AnthropicUsage(0, 0))
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"


class MessageStart(msgspec.Struct):
    """The first event: the message without content."""

    message: AnthropicMessage
    type: Literal["message_start"] = "message_start"


class BlockStart(msgspec.Struct):
    """A part of the message begins."""

    index: int
    content_block: AnsweredThoughts | AnsweredText | AnsweredCall
    type: Literal["content_block_start"] = "content_block_start"


class TextDelta(msgspec.Struct, tag_field="type", tag="text_delta"):
    """A piece of a text."""

    text: str


class ThoughtDelta(msgspec.Struct, tag_field="type", tag="thinking_delta"):
    """A piece of the thoughts."""

    thinking: str


class InputDelta(msgspec.Struct, tag_field="type", tag="input_json_delta"):
    """A piece of the JSON text of a call's input."""

    partial_json: str


class BlockDelta(msgspec.Struct):
    """A part of the message grows."""

    index: int
    delta: ThoughtDelta | TextDelta | InputDelta
    type: Literal["content_block_delta"] = "content_block_delta"


class BlockStop(msgspec.Struct):
    """A part of the message is complete."""

    index: int
    type: Literal["content_block_stop"] = "content_block_stop"


class MessageEnd(msgspec.Struct):
    """Why the message ended."""

    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(msgspec.Struct):
    """The end of the message, with its counts."""

    delta: MessageEnd
    usage: AnthropicUsage
    type: Literal["message_delta"] = "message_delta"


class MessageStop(msgspec.Struct):
    """The last event."""

    type: Literal["message_stop"] = "message_stop"


class TokenCount(msgspec.Struct):
    """Number of tokens of a conversation."""

    input_tokens: int


class AnthropicProblem(msgspec.Struct):
    """Description of an error."""

    type: str
    message: str


class AnthropicErrorBody(msgspec.Struct):
    """Body of an error response, and the event of an error in a stream."""

    error: AnthropicProblem
    request_id: str | UnsetType = UNSET
    type: Literal["error"] = "error"
