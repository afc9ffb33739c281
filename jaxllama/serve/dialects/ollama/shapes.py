"""Types of Ollama's API: requests, responses and stream lines.

Field names and values are Ollama's. Knows no handler.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from jaxllama.durations import seconds_in
from jaxllama.errors import HttpError, InvalidParameter
from jaxllama.messages import ContextOverflow
from jaxllama.request import Usage
from jaxllama.serve.answering.constraints import FormKnobs, FunctionName, ToolDefinition
from jaxllama.serve.answering.logprobs import TokenLogprob
from jaxllama.serve.answering.models import check_adapted, check_model
from jaxllama.serve.decode import note_ignored
from jaxllama.serve.endpoints import RequestShape
from jaxllama.serve.keys import LEASED, SETTINGS
from jaxllama.service import Model
from jaxllama.service.served_models import LATEST

ALWAYS_LOADED = "the model stays loaded while the server runs"
TEXT_ONLY = "this model reads text only"
NANOSECONDS = 1_000_000_000

Duration = Annotated[str, msgspec.Meta(pattern=r"^-?(\d+(\.\d+)?(ns|us|µs|ms|s|m|h))+$|^-?0$")]
KeepAlive = Duration | float

# Options of Ollama that set how a model is loaded: that is the operator's choice here.
LOADING_OPTIONS = frozenset(
    (
        *("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "low_vram"),
        *("use_mmap", "use_mlock", "f16_kv", "numa", "vocab_only", "logits_all"),
        *("embedding_only", "rope_frequency_base", "rope_frequency_scale", "penalize_newline"),
    )
)


class OllamaBody(RequestShape, kw_only=True):
    """Base of requests that need the model loaded."""

    model: str
    keep_alive: KeepAlive | None = None
    options: dict[str, Any] | None = None


class AnswerBody(OllamaBody, kw_only=True):
    """Base of requests that generate."""

    stream: bool | None = None  # None: true
    format: Literal["json", ""] | dict[str, Any] | None = None
    think: bool | Literal["low", "medium", "high"] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    shift: bool | None = None

    unheeded: ClassVar[Mapping[str, str]] = {"shift": "an answer ends where the context ends"}


class OllamaGenerateBody(AnswerBody, kw_only=True):
    """Request: a prompt to answer."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None  # the prompt goes to the model as it is
    context: list[int] | None = None  # of an earlier answer
    images: list[str] | None = None
    suffix: str | None = None
    template: str | None = None
    truncate: bool | None = None

    unsupported: ClassVar[Mapping[str, str]] = {
        "images": TEXT_ONLY,
        "suffix": "this model was not trained to fill gaps",
        "template": "templates of a request are not used; send raw and a whole prompt instead",
    }
    unheeded: ClassVar[Mapping[str, str]] = {
        **AnswerBody.unheeded,
        "truncate": "a prompt that does not fit is refused",
    }


class OllamaPastFunction(msgspec.Struct, forbid_unknown_fields=True):
    """A called function, with its arguments as an object."""

    name: FunctionName
    arguments: dict[str, Any]
    index: int | None = None
    description: str | None = None


class OllamaPastCall(msgspec.Struct, forbid_unknown_fields=True):
    """A tool call in an earlier message."""

    function: OllamaPastFunction
    id: str | None = None
    type: Literal["function"] = "function"


class OllamaTurn(msgspec.Struct, forbid_unknown_fields=True):
    """One message of the request's conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None  # of an earlier answer, for templates that show it
    images: list[str] | None = None
    tool_calls: list[OllamaPastCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class OllamaChatBody(AnswerBody, kw_only=True):
    """Request: a conversation to answer."""

    messages: list[OllamaTurn] | None = None
    tools: list[ToolDefinition] | None = None
    truncate: bool | None = None  # whether a full context loses its oldest turns; None: true
    context_overflow: ContextOverflow | None = None  # ours, in place of truncate

    @property
    def overflow(self) -> ContextOverflow:
        """The treatment of a conversation that does not fit into the context."""
        if self.context_overflow is not None:
            return self.context_overflow
        is_refused = self.truncate is False
        return ContextOverflow.ERROR if is_refused else ContextOverflow.DROP_OLDEST


class Timings(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The end of an answer: durations in nanoseconds, and numbers of tokens."""

    done_reason: Literal["stop", "length", "load", "unload"] | None = None
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_cached_count: int | None = None  # ours: of these, taken from the KV cache
    dropped_messages: int | None = None  # ours: left out because the context was full
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None


class OllamaGenerated(Timings, kw_only=True):
    """A piece of an answer to a prompt, or all of it."""

    model: str = msgspec.field()
    created_at: str = msgspec.field()
    response: str = msgspec.field()
    thinking: str | None = None  # the thoughts before the answer
    done: bool = msgspec.field()
    context: list[int] | None = None
    logprobs: list[TokenLogprob] | None = None


class OllamaCalledFunction(msgspec.Struct):
    """A function to call, with its arguments as an object."""

    index: int
    name: str
    arguments: dict[str, Any]


class OllamaCall(msgspec.Struct):
    """A tool call."""

    id: str
    function: OllamaCalledFunction


class OllamaMessage(msgspec.Struct):
    """The assistant's message, or a piece of it."""

    role: Literal["assistant"]
    content: str
    tool_calls: list[OllamaCall] | UnsetType = UNSET
    thinking: str | UnsetType = UNSET


class OllamaChatted(Timings, kw_only=True):
    """A piece of an answer to a conversation, or all of it."""

    model: str = msgspec.field()
    created_at: str = msgspec.field()
    message: OllamaMessage = msgspec.field()
    done: bool = msgspec.field()
    logprobs: list[TokenLogprob] | None = None


class OllamaError(msgspec.Struct):
    """Body of an error."""

    error: str


def apply_keep_alive(request: web.Request, keep_alive: KeepAlive | None) -> None:
    """Set how long the request's model stays loaded after its last request; None: no change.

    `keep_alive` is a text such as "5m" or a number of seconds; a negative one means forever. If
    the server has a single model, the model stays loaded anyway: a duration that is not forever
    is reported as ignored, or refused under --strict.
    """
    if keep_alive is None:
        return
    seconds = seconds_in(keep_alive) if isinstance(keep_alive, str) else keep_alive
    is_forever = seconds is not None and seconds < 0
    leased = request.get(LEASED)
    if leased is not None:
        leased.keep_alive = None if is_forever else seconds
    elif not is_forever:
        if request.app[SETTINGS].strict:
            raise InvalidParameter(f"keep_alive has no effect: {ALWAYS_LOADED}", "keep_alive")
        note_ignored(request, ["keep_alive"])


def check_name(asked: str, model: Model, knobs: dict[str, Any] | None = None) -> str:
    """Return `asked`, the model name for the answer; raise HttpError 404 if it is not served.

    The tag :latest may follow the name. If `knobs` (request parameters) are given, `asked` may also
    name a loaded LoRA adapter, which is then added to `knobs`.
    """
    try:
        name = asked.removesuffix(LATEST)
        check_model(name, model) if knobs is None else check_adapted(name, model, knobs)
    except HttpError as error:
        raise HttpError(f"model '{asked[:100]}' not found: {error}", 404, error.code) from error
    return asked


def form_of(body: AnswerBody) -> FormKnobs:
    """Return the knobs (request parameters) that constrain the answer to the field `format`."""
    if isinstance(body.format, dict):
        return FormKnobs({"json_schema": body.format}, {"json_schema": "format"})
    if body.format == "json":
        return FormKnobs({"json_object": True}, {"json_object": "format"})
    return FormKnobs()


def now() -> str:
    """Return the time in UTC, as Ollama writes it."""
    return f"{datetime.now(UTC).replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


def timings_of(usage: Usage, *, is_cut: bool) -> dict[str, Any]:
    """Return Ollama's fields for the end of an answer: reason, durations, token counts.

    `is_cut` says that the answer reached its token limit.
    """
    first = round(usage.seconds_to_first * NANOSECONDS)
    total = round(usage.seconds * NANOSECONDS)
    return {
        "done_reason": "length" if is_cut else "stop",
        "total_duration": total,
        "load_duration": 0,
        "prompt_eval_count": usage.prompt,
        "prompt_eval_cached_count": usage.reused,
        "dropped_messages": usage.dropped or None,
        "prompt_eval_duration": first,
        "eval_count": usage.generated,
        "eval_duration": max(total - first, 0),
    }
