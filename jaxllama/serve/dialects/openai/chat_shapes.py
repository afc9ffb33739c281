"""Types of `/v1/chat/completions`: request, response and stream chunks."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, UnsetType

from jaxllama.explain import Position
from jaxllama.messages import ContextOverflow
from jaxllama.serve.answering.constraints import (
    ResponseFormat,
    ToolChoice,
    ToolDefinition,
)
from jaxllama.serve.answering.thinking import Effort
from jaxllama.serve.answering.turns import Turn
from jaxllama.serve.dialects.openai import shapes
from jaxllama.serve.dialects.openai.shapes import Call, Common, Logprobs, StreamOptions, TokenUsage

NO_SETTING = "this model has no setting for it"
NOTHING_STORED = "nothing is stored here"
SHARED_UNASKED = "the KV cache of a common prefix is shared anyway"
TEXT_ONLY = "this model reads and writes text only"


class ChatBody(Common, kw_only=True):
    """Request: a conversation, and options for the answer."""

    messages: list[Turn]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: ResponseFormat | None = None
    tools: list[ToolDefinition] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    format: str | None = None  # name of an installed prompt format
    context_overflow: ContextOverflow | None = None
    return_token_ids: bool | None = None  # vLLM's field: of the prompt and of each answer
    explain: bool | None = None  # report the effect of each sampler on each token
    reasoning_effort: Effort | None = None  # another way to say reasoning_budget
    # none: thoughts stay in the text; the others: apart, as reasoning_content (llama.cpp's names)
    reasoning_format: Literal["none", "auto", "deepseek"] | None = None
    modalities: list[Literal["text"]] | None = None
    store: bool | None = None
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    moderation: Any = None
    prediction: Any = None
    prompt_cache_options: Any = None
    use_beam_search: bool | None = None
    verbosity: Any = None
    web_search_options: Any = None

    unsupported: ClassVar[Mapping[str, str]] = {
        "audio": TEXT_ONLY,
        "function_call": "send tool_choice instead",
        "functions": "send tools instead",
        "moderation": "there is no moderation here",
        "use_beam_search": "send the prompt to /v1/completions",
        "web_search_options": "this server does not search the web",
    }
    unheeded: ClassVar[Mapping[str, str]] = {
        "store": NOTHING_STORED,
        "prediction": "this server does not use predicted answers",
        "prompt_cache_options": SHARED_UNASKED,
        "verbosity": NO_SETTING,
    }


class ChatMessage(msgspec.Struct):
    """The assistant's message."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    tool_calls: list[Call] | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET  # the thoughts before the answer


class ChatChoice(msgspec.Struct):
    """One answer of a response."""

    index: int
    message: ChatMessage
    finish_reason: shapes.ChatFinish
    logprobs: Logprobs | None = None
    stop_reason: str | int | None = None  # the client's stop string or token that ended it
    token_ids: list[int] | UnsetType = UNSET  # with the end token, if one was drawn


class ChatCompletion(msgspec.Struct):
    """Response with all answers."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: TokenUsage
    object: Literal["chat.completion"] = "chat.completion"
    prompt_token_ids: list[int] | UnsetType = UNSET
    explanation: list[Position] | UnsetType = UNSET


class ChatDelta(msgspec.Struct, omit_defaults=True):
    """The new part of a message in a stream."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tool_calls: list[Call] | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET


class ChunkChoice(msgspec.Struct):
    """The new part of one answer in a stream."""

    index: int
    delta: ChatDelta
    finish_reason: shapes.ChatFinish | None = None
    logprobs: Logprobs | None = None
    stop_reason: str | int | UnsetType | None = UNSET  # given with finish_reason
    token_ids: list[int] | UnsetType = UNSET


class ChatChunk(msgspec.Struct):
    """One event of a stream."""

    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: TokenUsage | UnsetType | None = UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    prompt_token_ids: list[int] | UnsetType = UNSET  # in the first chunk
