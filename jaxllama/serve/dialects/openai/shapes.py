"""Types that several endpoints of OpenAI's API share, of requests and responses.

Field names and values are OpenAI's. Knows no handler.
"""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from jaxllama.errors import HttpError, InvalidParameter, JaxLlamaError
from jaxllama.request import FinishReason, Usage
from jaxllama.serve.endpoints import RequestShape
from jaxllama.service import Model

Texts = str | list[str]
PromptField = str | list[str | int | list[int]]  # one text, texts, one list of token ids, or lists


class ModelBody(RequestShape, kw_only=True):
    """Base of request bodies with a `model` field."""

    model: str | None = None


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
    """Number of prompt tokens taken from the KV cache."""

    cached_tokens: int


class TokenUsage(msgspec.Struct):
    """Token counts of a request; the details are known at its end."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: Details | UnsetType = UNSET


class Problem(msgspec.Struct):
    """Description of an error."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct):
    """Body of an error response."""

    error: Problem


class Alternative(msgspec.Struct):
    """A token that could have been drawn, with its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Alternative):
    """A token and the likeliest alternatives: under the model, and as it was sampled."""

    top_logprobs: list[Alternative]
    sampled_logprob: float
    top_sampled_logprobs: list[Alternative]


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

ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
RATE_LIMITED, SERVER_FAULT = 429, 500


def error_body(error: JaxLlamaError) -> dict[str, Any]:
    """Return the body of an error response in OpenAI's form."""
    kind = ERROR_TYPES.get(error.status, "invalid_request_error")
    if error.status == RATE_LIMITED:
        kind = "rate_limit_error"
    elif error.status >= SERVER_FAULT:
        kind = "server_error"
    field = error.field if isinstance(error, InvalidParameter) else None
    problem = Problem(str(error), kind, field, error.code)
    return {"error": msgspec.to_builtins(problem)}


def check_model(asked: str | None, model: Model) -> str:
    """Return the model name for the answer; raises HttpError if `asked` is another model."""
    if asked is None or asked == model.name:
        return model.name
    if asked in model.aliases:
        return asked
    if model.encoder is not None and asked in model.encoder.names:
        raise HttpError(
            f"model {asked!r} only makes vectors of texts; use it with /v1/embeddings, and "
            f"{model.name!r} here",
            404,
            "model_not_found",
        )
    raise HttpError(
        f"model {asked[:100]!r} does not exist here; this server serves {model.name!r}",
        404,
        "model_not_found",
    )


def ending_of(reason: FinishReason) -> Literal["stop", "length"]:
    """Return OpenAI's finish_reason for the end of an answer."""
    return "length" if reason is FinishReason.LENGTH else "stop"


class Counts:
    """Makes the `usage` of stream chunks: at the end, in every chunk, or never."""

    def __init__(self, options: StreamOptions | None, prompt: int) -> None:
        self.at_end = bool(options and options.include_usage)
        self._in_every = bool(self.at_end and options and options.continuous_usage_stats)
        self._prompt = prompt  # tokens of all prompts, each counted once

    def so_far(self, generated: int) -> TokenUsage | UnsetType | None:
        """Return the `usage` of a chunk before the end; `generated` counts all answers' tokens."""
        if self._in_every:
            return TokenUsage(self._prompt, generated, self._prompt + generated)
        return None if self.at_end else UNSET


def sum_up(usages: list[Usage | None], per_prompt: int) -> TokenUsage:
    """Sum the token counts of all answers; count each prompt of `per_prompt` answers once."""
    firsts = [one for one in usages[::per_prompt] if one is not None]
    prompt = sum(one.prompt for one in firsts)
    generated = sum(one.generated for one in usages if one is not None)
    cached = sum(one.reused for one in firsts)
    return TokenUsage(prompt, generated, prompt + generated, Details(cached))
