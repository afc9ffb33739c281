"""Types that several endpoints of OpenAI's API share, of requests and responses.

Field names and values are OpenAI's. Knows no handler.
"""

from collections.abc import Sequence
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from jaxllama.request import Event, Finished, FinishReason, Usage
from jaxllama.serve.answering.logprobs import TokenLogprob
from jaxllama.serve.answering.models import ModelBody


class Common(ModelBody, kw_only=True):
    """Base of request bodies with OpenAI's fields about the client, which have no effect."""

    user: str | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    service_tier: Literal["auto", "default"] | None = None


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """Options of a stream."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = (
        None  # vLLM's field: with include_usage, send the usage in every chunk
    )
    include_obfuscation: bool | None = None  # of no effect: obfuscation is for public networks


class Details(msgspec.Struct):
    """Number of prompt tokens taken from the KV cache, and of messages left out of the prompt."""

    cached_tokens: int
    dropped_messages: int | UnsetType = UNSET


class CompletionDetails(msgspec.Struct):
    """Number of answer tokens in thoughts, and of drafted tokens that became part of an answer."""

    reasoning_tokens: int | UnsetType = UNSET  # of models that think
    accepted_prediction_tokens: int | UnsetType = UNSET  # where speculation drafted tokens
    rejected_prediction_tokens: int | UnsetType = UNSET


class TokenUsage(msgspec.Struct):
    """Token counts of a request; the details are known at its end."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: Details | UnsetType = UNSET
    completion_tokens_details: CompletionDetails | UnsetType = UNSET


class Logprobs(msgspec.Struct):
    """Log-probabilities of an answer's tokens."""

    content: list[TokenLogprob]
    refusal: None = None


class CalledFunction(msgspec.Struct):
    """A function to call, with its arguments as JSON text."""

    arguments: str
    name: str | UnsetType = UNSET


class Call(msgspec.Struct):
    """A tool call, or a piece of it; the first piece has the id and the name."""

    function: CalledFunction
    index: int | UnsetType = UNSET
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


ChatFinish = Literal["stop", "length", "tool_calls"]


def ending_of(reason: FinishReason) -> Literal["stop", "length"]:
    """Return OpenAI's finish_reason: "length" at the token limit, else "stop"."""
    return "length" if reason is FinishReason.LENGTH else "stop"


def ids_of(event: Event) -> list[int]:
    """Return a list with the token id of an event; an empty list if the event has no token.

    The event that ends an answer has the end token, if one was drawn.
    """
    token = event.end_token if isinstance(event, Finished) else event.token
    return [] if token is None else [token]


class Counts:
    """Makes the `usage` of a stream's chunks: in the last chunk, in every chunk, or in none."""

    def __init__(self, options: StreamOptions | None, prompt: int) -> None:
        self.at_end = bool(options and options.include_usage)
        self._in_every = bool(self.at_end and options and options.continuous_usage_stats)
        self._prompt = prompt  # tokens of all prompts, each counted once

    def so_far(self, generated: int) -> TokenUsage | UnsetType | None:
        """Return the field `usage` for a chunk of a stream that is not the last one.

        `generated` counts the tokens of all answers so far. Depending on the stream's options the
        field has counts, is null (None), or is left out (UNSET).
        """
        if self._in_every:
            return TokenUsage(self._prompt, generated, self._prompt + generated)
        return None if self.at_end else UNSET


def sum_up(usages: list[Usage | None], per_prompt: int) -> TokenUsage:
    """Sum the token counts of all answers of a request.

    `usages` has the token counts of each answer, None for one that has not ended. Each prompt has
    `per_prompt` answers, which follow each other; the tokens of the prompt are counted once.
    """
    firsts = [one for one in usages[::per_prompt] if one is not None]
    prompt = sum(one.prompt for one in firsts)
    generated = sum(one.generated for one in usages if one is not None)
    cached = sum(one.reused for one in firsts)
    dropped = sum(one.dropped for one in firsts)
    details = Details(cached, dropped or UNSET)
    return TokenUsage(prompt, generated, prompt + generated, details, drafts_of(usages))


def drafts_of(usages: Sequence[Usage | None]) -> CompletionDetails | UnsetType:
    """Sum the accepted and rejected draft tokens of all answers; UNSET if none was drafted.

    `usages` are the token counts of the answers, None for one that has not ended.
    """
    drafted = sum(one.drafted for one in usages if one is not None)
    accepted = sum(one.accepted for one in usages if one is not None)
    if not drafted:
        return UNSET
    return CompletionDetails(
        accepted_prediction_tokens=accepted, rejected_prediction_tokens=drafted - accepted
    )
