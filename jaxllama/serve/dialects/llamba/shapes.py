"""Types of LLaMbA's API, and the endpoints of single queries.

Field names and values are LLaMbA's. Knows no handler.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import msgspec

from jaxllama.messages import ContextOverflow
from jaxllama.request import Finished, FinishReason
from jaxllama.serve.endpoints import Endpoint, RequestShape
from jaxllama.serve.model_choice import Uses


class LlambaTurn(msgspec.Struct, forbid_unknown_fields=True):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class LlambaQuery(RequestShape, kw_only=True):
    """Base of queries: how to answer. `seed` and `top_k` are ours."""

    stream: bool | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: list[str] | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    repetition_range: int | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    # Whether the last message is continued; a completion continues its prompt in any case.
    continue_: bool | None = msgspec.field(name="continue", default=None)
    append_text: str | None = msgspec.field(name="appendText", default=None)


class LlambaChatQuery(LlambaQuery, kw_only=True):
    """A conversation to answer."""

    messages: list[LlambaTurn]
    context_overflow: ContextOverflow | None = None  # ours


class LlambaCompletionQuery(LlambaQuery, kw_only=True):
    """A text to continue."""

    prompt: str

    unheeded: ClassVar[Mapping[str, str]] = {"append_text": "it is for chats; extend the prompt"}


class LlambaChunk(msgspec.Struct):
    """A piece of an answer in a stream, or an answer of a batch."""

    content: str | None
    delta: str | None
    finish_reason: Literal["none", "stop", "limit"]


class LlambaToken(msgspec.Struct):
    """A token of a conversation."""

    id: int
    str: str


PING = Endpoint(
    "GET", "/ping", "Whether the server answers, as LLaMbA's does", answer=str, uses=Uses.NOTHING
)
CHAT = Endpoint(
    "POST",
    "/chat/completion",
    "Answer a conversation, in LLaMbA's form",
    body=LlambaChatQuery,
    answer=str,
    events=(LlambaChunk,),
)
COMPLETION = Endpoint(
    "POST",
    "/text-completion/completion",
    "Continue a text, in LLaMbA's form",
    body=LlambaCompletionQuery,
    answer=str,
    events=(LlambaChunk,),
)
TOKENIZE = Endpoint(
    "POST",
    "/chat/tokenize",
    "List the tokens of a conversation, in LLaMbA's form",
    body=LlambaChatQuery,
    answer=list[LlambaToken],
)


def reason_of(end: Finished) -> Literal["stop", "limit"]:
    """Return why an answer ended: "limit" at its token limit, else "stop"."""
    return "limit" if end.reason is FinishReason.LENGTH else "stop"
