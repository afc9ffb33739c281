"""Types of requests to Anthropic's API.

Field names and values are Anthropic's. Knows no handler.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from jaxllama.errors import InvalidParameter
from jaxllama.messages import ContextOverflow
from jaxllama.serve.answering.constraints import FunctionName
from jaxllama.serve.endpoints import RequestShape

NO_SETTING = "this model has no setting for it"
NO_PROFILES = "this server knows clients by their keys only"
TOOL_NOTES = ("input_examples", "allowed_callers", "defer_loading")  # not shown to the model
NO_SERVER_TOOLS = "this server runs no tools and keeps no containers"


class CacheControl(msgspec.Struct, forbid_unknown_fields=True):
    """A mark up to which the prompt is cached; prefixes are cached without it, too."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class MessageBlock(msgspec.Struct, tag_field="type", forbid_unknown_fields=True, kw_only=True):
    """Base of the parts of a message."""

    cache_control: CacheControl | None = None


class TextBlock(MessageBlock, tag="text", kw_only=True):
    """A text."""

    text: str
    citations: list[Any] | None = None  # of an earlier answer


class TextSource(msgspec.Struct, forbid_unknown_fields=True):
    """The source of a document's text; other sources than text are refused."""

    type: str
    data: str | None = None
    media_type: str | None = None
    content: Any = None
    url: str | None = None
    file_id: str | None = None


class DocumentBlock(MessageBlock, tag="document", kw_only=True):
    """A document; the model reads it if it is text."""

    source: TextSource
    title: str | None = None
    context: str | None = None
    citations: dict[str, Any] | None = None


class ImageBlock(MessageBlock, tag="image", kw_only=True):
    """An image, which this model cannot read."""

    source: dict[str, Any]


class ToolUseBlock(MessageBlock, tag="tool_use", kw_only=True):
    """A call of a tool in an earlier answer."""

    id: str
    name: FunctionName
    input: dict[str, Any]
    caller: dict[str, Any] | None = None
    toolset_name: str | None = None


class ToolResultBlock(MessageBlock, tag="tool_result", kw_only=True):
    """The result of a call."""

    tool_use_id: str
    content: str | list[TextBlock | DocumentBlock | ImageBlock] | None = None
    is_error: bool | None = None
    toolset_name: str | None = None


class ThinkingBlock(MessageBlock, tag="thinking", kw_only=True):
    """The thinking of an earlier answer; templates show it to the model if it was trained so."""

    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(MessageBlock, tag="redacted_thinking", kw_only=True):
    """Thinking of an earlier answer that is not shown."""

    data: str


ContentBlock = (
    TextBlock
    | DocumentBlock
    | ImageBlock
    | ToolUseBlock
    | ToolResultBlock
    | ThinkingBlock
    | RedactedThinkingBlock
)


class MessageParam(msgspec.Struct, forbid_unknown_fields=True):
    """One message of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | list[ContentBlock]


class CustomTool(msgspec.Struct, forbid_unknown_fields=True):
    """A tool that the model may call; tools that a server would run are refused."""

    name: FunctionName
    input_schema: dict[str, Any] | None = None
    description: str | None = None
    type: str | None = None  # custom, or the name of a tool of the server
    cache_control: CacheControl | None = None
    strict: bool | None = None
    input_examples: list[Any] | None = None
    allowed_callers: list[str] | None = None
    defer_loading: bool | None = None
    eager_input_streaming: bool | None = None  # pieces are sent as they come, in any case


class ToolChoiceParam(msgspec.Struct, forbid_unknown_fields=True):
    """Whether the model calls a tool, and which one."""

    type: Literal["auto", "any", "tool", "none"]
    name: FunctionName | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingParam(msgspec.Struct, forbid_unknown_fields=True):
    """Whether the model thinks before it answers."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: int | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(msgspec.Struct, forbid_unknown_fields=True):
    """The form that the answer must have."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct, forbid_unknown_fields=True):
    """Options of the answer."""

    format: OutputFormat | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None


class RequestMetadata(msgspec.Struct, forbid_unknown_fields=True):
    """Notes of the client; of no effect."""

    user_id: Annotated[str, msgspec.Meta(max_length=512)] | None = None


class ConversationParams(RequestShape, kw_only=True):
    """Base of requests with a conversation."""

    model: str
    messages: list[MessageParam]
    system: str | list[TextBlock] | None = None
    tools: list[CustomTool] | None = None
    tool_choice: ToolChoiceParam | None = None
    thinking: ThinkingParam | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None  # older than output_config
    cache_control: CacheControl | None = None
    speed: Literal["standard", "fast"] | None = None
    context_management: Any = None
    mcp_servers: list[Any] | None = None
    user_profile_id: str | None = None
    workspace_id: str | None = None

    unsupported: ClassVar[Mapping[str, str]] = {"mcp_servers": NO_SERVER_TOOLS}
    unheeded: ClassVar[Mapping[str, str]] = {
        "context_management": "the whole conversation is read",
        "speed": NO_SETTING,
        "user_profile_id": NO_PROFILES,
        "workspace_id": NO_PROFILES,
    }

    def ignored(self, *, strict: bool) -> list[str]:
        """Return the given fields that have no effect; with `strict`, raise InvalidParameter."""
        names = super().ignored(strict=strict)
        more = {
            f"tools[].{name}": any(getattr(tool, name) for tool in self.tools or ())
            for name in TOOL_NOTES
        }
        found = [name for name, given in more.items() if given]
        if found and strict:
            raise InvalidParameter(f"{found[0]} is not supported: {NO_SETTING}", found[0])
        return [*names, *found]


class CountTokensParams(ConversationParams, kw_only=True):
    """Request: a conversation whose tokens are counted."""


class CreateMessageParams(ConversationParams, kw_only=True):
    """Request: a conversation to answer, with any sampler's knobs beside it."""

    max_tokens: int
    stream: bool | None = None
    metadata: RequestMetadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    container: Any = None
    inference_geo: str | None = None
    diagnostics: Any = None
    context_overflow: ContextOverflow | None = None  # ours

    unsupported: ClassVar[Mapping[str, str]] = {
        **ConversationParams.unsupported,
        "container": NO_SERVER_TOOLS,
    }
    unheeded: ClassVar[Mapping[str, str]] = {
        **ConversationParams.unheeded,
        "inference_geo": "this server is where it is",
        "diagnostics": NO_SETTING,
    }
