"""`/api/chat` and `/api/generate`: answers to conversations and prompts.

Part of the Ollama dialect. Streams unless the client says `"stream": false`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from aiohttp import web
from msgspec import UNSET

from jaxllama.errors import InvalidParameter
from jaxllama.request import Event, Finished, FinishReason, Token
from jaxllama.serve.answering.constraints import as_tool
from jaxllama.serve.answering.logprobs import TokenLogprob, chat_logprob
from jaxllama.serve.answering.nested import read_options
from jaxllama.serve.answering.parsed import AnswerPiece, ParsedAnswer
from jaxllama.serve.answering.thinking import (
    BUDGET,
    EFFORTS,
    thinks,
    thought_parser,
    thoughts_start,
)
from jaxllama.serve.answering.turns import chosen_format
from jaxllama.serve.answering.writing import write_answer
from jaxllama.serve.dialects.ollama.shapes import (
    LOADING_OPTIONS,
    AnswerBody,
    OllamaCall,
    OllamaCalledFunction,
    OllamaChatBody,
    OllamaChatted,
    OllamaGenerateBody,
    OllamaGenerated,
    OllamaMessage,
    OllamaTurn,
    apply_keep_alive,
    check_name,
    form_of,
    now,
    timings_of,
)
from jaxllama.serve.endpoints import Endpoint
from jaxllama.serve.keys import CALLER, LEASED
from jaxllama.serve.wire import JSON_LINES, one_json
from jaxllama.service import Ask, GenerationService, Model
from jaxllama.service.answers import Answers
from jaxllama.service.asking import estimate_characters
from jaxllama.text.thoughts import Thought
from jaxllama.text.tokenizer import Tokenizer

CHAT = Endpoint(
    "POST",
    "/api/chat",
    "Answer a conversation, in Ollama's form",
    body=OllamaChatBody,
    answer=OllamaChatted,
    events=(OllamaChatted,),
    framing=JSON_LINES,
    any_type=True,
)
GENERATE = Endpoint(
    "POST",
    "/api/generate",
    "Answer a prompt, in Ollama's form",
    body=OllamaGenerateBody,
    answer=OllamaGenerated,
    events=(OllamaGenerated,),
    framing=JSON_LINES,
    any_type=True,
)


async def chat(request: web.Request, service: GenerationService) -> web.StreamResponse:
    """Answer POST /api/chat: answer messages; without any, say that the model is loaded."""
    body, _ = await CHAT.read(request, service, OllamaChatBody)
    apply_keep_alive(request, body.keep_alive)
    model = service.model
    named: dict[str, Any] = {}
    name = check_name(body.model, model, named)
    if not body.messages:
        message = OllamaMessage("assistant", "")
        loaded = OllamaChatted(
            model=name,
            created_at=now(),
            message=message,
            done=True,
            done_reason=load_reason(request),
        )
        return one_json(loaded)
    knobs, names = knobs_of(request, model, body)
    knobs |= named
    messages = [as_message(turn, index) for index, turn in enumerate(body.messages)]
    tools = [as_tool(tool) for tool in body.tools or ()]
    format_ = chosen_format(request, model, None, messages, tools)
    style = model.intake.with_format(format_).format.calls if tools else None
    is_thinking = thinks(model, format_)
    knobs |= thinking_knobs(body, knobs, is_thinking=is_thinking)
    ask = Ask(
        messages=messages,
        knobs=knobs,
        tools=tools,
        format=format_,
        names=names,
        total=model.engine.config.context,
        overflow=body.overflow,
    )

    def form(answers: Answers) -> OllamaChatForm:
        tokenizer = model.intake.tokenizer
        start = thoughts_start(tokenizer, answers) if is_thinking else None
        parsed = ParsedAnswer(style, thoughts=thought_parser(start))
        return OllamaChatForm(name, tokenizer, answers, parsed)

    streams = body.stream is not False
    return await write_answer(request, service, ask, form, stream=streams, framing=JSON_LINES)


async def generate(request: web.Request, service: GenerationService) -> web.StreamResponse:
    """Answer POST /api/generate: answer a prompt; without one, say that the model is loaded."""
    body, _ = await GENERATE.read(request, service, OllamaGenerateBody)
    apply_keep_alive(request, body.keep_alive)
    model = service.model
    named: dict[str, Any] = {}
    name = check_name(body.model, model, named)
    if not body.prompt:
        loaded = OllamaGenerated(
            model=name, created_at=now(), response="", done=True, done_reason=load_reason(request)
        )
        return one_json(loaded)
    knobs, names = knobs_of(request, model, body)
    knobs |= named
    total = model.engine.config.context
    is_thinking = not (body.raw or body.context) and thinks(model, None)
    knobs |= thinking_knobs(body, knobs, is_thinking=is_thinking)
    if body.raw:
        if body.system or body.context:
            raise InvalidParameter(
                "raw sends the prompt as it is; remove system and context", "raw"
            )
        ask = Ask(prompts=[body.prompt], knobs=knobs, names=names, total=total)
    elif body.context:
        past = await continued(request, service, body)
        ask = Ask(prompts=[past], names=names, knobs=knobs, total=total)
    else:
        ask = Ask(messages=messages_of(body), knobs=knobs, names=names, total=total)

    def form(answers: Answers) -> GenerateForm:
        tokenizer = model.intake.tokenizer
        start = thoughts_start(tokenizer, answers) if is_thinking else None
        parsed = ParsedAnswer(None, thoughts=thought_parser(start))
        return GenerateForm(name, tokenizer, answers, parsed, has_context=not body.raw)

    streams = body.stream is not False
    return await write_answer(request, service, ask, form, stream=streams, framing=JSON_LINES)


def load_reason(request: web.Request) -> Literal["load", "unload"]:
    """Return the `done_reason` of an answer to a request without text.

    It is "unload" if `keep_alive` of the model is 0, else "load".
    """
    leased = request.get(LEASED)
    return "unload" if leased is not None and leased.keep_alive == 0 else "load"


def messages_of(body: OllamaGenerateBody) -> list[dict[str, Any]]:
    """Return the prompt as a conversation: the system message, if any, and a user's message."""
    system = [{"role": "system", "content": body.system}] if body.system else []
    return [*system, {"role": "user", "content": body.prompt}]


async def continued(
    request: web.Request, service: GenerationService, body: OllamaGenerateBody
) -> list[int]:
    """Return the token ids of a prompt that continues an earlier exchange (`context` in the body).

    They are the ids of that exchange, followed by the ids of the new messages.
    """
    past, messages = body.context or [], messages_of(body)

    def read(model: Model) -> list[int]:
        return [*model.intake.ids(past), *model.intake.chat_ids(messages)]

    size = len(past) + estimate_characters(messages)
    return await service.off_loop(read, request[CALLER], size=size)


def knobs_of(
    request: web.Request, model: Model, body: AnswerBody
) -> tuple[dict[str, object], Mapping[str, str]]:
    """Return the knobs (request parameters) of a body, and their field paths for errors.

    The second result maps a knob's name to the field that sets it, such as `options.seed`.
    """
    options, names = read_options(
        request, body.options or {}, model.knobs, unheeded=LOADING_OPTIONS
    )
    if is_random(options.get("seed")):
        del options["seed"]
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidParameter("top_logprobs needs logprobs to be true", "top_logprobs")
    if body.logprobs:
        options["logprobs"] = body.top_logprobs or 0
    form = form_of(body)
    return form.merge(options), {**names, **form.names}


def thinking_knobs(
    body: AnswerBody, knobs: Mapping[str, object], *, is_thinking: bool
) -> dict[str, object]:
    """Convert the field `think` to `reasoning_budget`, the highest number of thought tokens.

    The result is merged into `knobs`, the request's parameters; {} changes nothing. A budget in
    `knobs` stays, unless `think` is false. `is_thinking` says whether the model thinks before it
    answers this request; if it does not, a `think` that asks for thoughts raises InvalidParameter.
    """
    if not body.think:
        return {BUDGET: 0} if body.think is False and is_thinking else {}
    if not is_thinking:
        raise InvalidParameter(
            "think is not supported: this model does not think before it answers, or the prompt "
            "is raw or has a context",
            "think",
        )
    if knobs.get(BUDGET) is not None or body.think is True:
        return {}
    budget = EFFORTS[body.think]
    return {} if budget is None else {BUDGET: budget}


def is_random(seed: object) -> bool:
    """Say whether a seed is a negative number, which asks for a random seed."""
    return isinstance(seed, int) and seed < 0


def as_message(turn: OllamaTurn, index: int) -> dict[str, Any]:
    """Convert a message to the dict that chat templates take; `index` is its place, for errors."""
    if turn.images:
        raise InvalidParameter(
            f"messages[{index}].images is not supported: this model reads text only",
            f"messages[{index}].images",
        )
    fields: dict[str, Any] = {"role": turn.role, "content": turn.content or ""}
    if turn.tool_calls:
        fields["tool_calls"] = [
            {
                "id": call.id or "",
                "function": {"name": call.function.name, "arguments": call.function.arguments},
            }
            for call in turn.tool_calls
        ]
    if turn.thinking:
        fields["reasoning_content"] = turn.thinking
    if turn.tool_name:
        fields["name"] = turn.tool_name
    if turn.tool_call_id:
        fields["tool_call_id"] = turn.tool_call_id
    return fields


class GenerateForm:
    """Converts the events of an answer to Ollama's lines, or to one response."""

    says_done = False

    def __init__(
        self,
        name: str,
        tokenizer: Tokenizer,
        answers: Answers,
        parsed: ParsedAnswer,
        *,
        has_context: bool,
    ) -> None:
        self._name, self._tokenizer = name, tokenizer
        self._tokens = list(answers.requests[0].prompt) if has_context else None
        self._parsed = parsed
        self._logprobs: list[TokenLogprob] = []

    def begin(self) -> Sequence[Any]:
        """Return no lines: nothing precedes the first event."""
        return ()

    def take(self, index: int, event: Event) -> Iterator[OllamaGenerated]:
        """Add an event to the answer; yield a line of the stream if there is something to send.

        `index`, the number of the answer, has no effect: there is only one answer.
        """
        del index
        found = logprobs_of(self._tokenizer, event)
        self._logprobs += found
        if isinstance(event, Token) and self._tokens is not None:
            self._tokens.append(event.token)
        pieces = self._parsed.receive(event)
        text, thoughts = text_in(pieces), thoughts_in(pieces)
        if text or thoughts or found:
            yield self._line(text, thoughts, found)

    def end(self) -> Iterator[OllamaGenerated]:
        """Yield the last line of the stream, with token counts and durations."""
        yield self._last("", "", [])

    def whole(self) -> OllamaGenerated:
        """Return the whole answer, for a response that is not streamed."""
        return self._last(self._parsed.text, self._parsed.thoughts, self._logprobs)

    def _line(self, text: str, thoughts: str, logprobs: list[TokenLogprob]) -> OllamaGenerated:
        return OllamaGenerated(
            model=self._name,
            created_at=now(),
            response=text,
            thinking=thoughts or None,
            done=False,
            logprobs=logprobs or None,
        )

    def _last(self, text: str, thoughts: str, logprobs: list[TokenLogprob]) -> OllamaGenerated:
        return OllamaGenerated(
            model=self._name,
            created_at=now(),
            response=text,
            thinking=thoughts or None,
            done=True,
            context=self._tokens,
            logprobs=logprobs or None,
            **timings_of_end(self._parsed.end),
        )


class OllamaChatForm:
    """Converts the events of an answer to Ollama's messages, or to one response."""

    says_done = False

    def __init__(
        self, name: str, tokenizer: Tokenizer, answers: Answers, parsed: ParsedAnswer
    ) -> None:
        self._name, self._tokenizer = name, tokenizer
        self._id = f"call_{answers.caller.id}"
        self._parsed = parsed
        self._logprobs: list[TokenLogprob] = []

    def begin(self) -> Sequence[Any]:
        """Return no lines: nothing precedes the first event."""
        return ()

    def take(self, index: int, event: Event) -> Iterator[OllamaChatted]:
        """Add an event to the answer; yield a line of the stream if there is something to send.

        `index`, the number of the answer, has no effect: there is only one answer.
        """
        del index
        pieces = self._parsed.receive(event)
        text, thoughts = text_in(pieces), thoughts_in(pieces)
        found = logprobs_of(self._tokenizer, event)
        self._logprobs += found
        if text or thoughts or found:
            message = OllamaMessage("assistant", text, thinking=thoughts or UNSET)
            yield self._line(message, found)

    def end(self) -> Iterator[OllamaChatted]:
        """Yield the stream's line with the tool calls, if any, and the last line."""
        if self._parsed.calls:
            yield self._line(OllamaMessage("assistant", "", self._calls()), [])
        yield self._last(OllamaMessage("assistant", ""), [])

    def whole(self) -> OllamaChatted:
        """Return the whole answer, for a response that is not streamed."""
        calls = self._calls() if self._parsed.calls else UNSET
        thoughts = self._parsed.thoughts or UNSET
        message = OllamaMessage("assistant", self._parsed.text, calls, thoughts)
        return self._last(message, self._logprobs)

    def _calls(self) -> list[OllamaCall]:
        return [
            OllamaCall(
                f"{self._id}_{index}", OllamaCalledFunction(index, call.name, call.as_object())
            )
            for index, call in enumerate(self._parsed.calls)
        ]

    def _line(self, message: OllamaMessage, logprobs: list[TokenLogprob]) -> OllamaChatted:
        return OllamaChatted(
            model=self._name,
            created_at=now(),
            message=message,
            done=False,
            logprobs=logprobs or None,
        )

    def _last(self, message: OllamaMessage, logprobs: list[TokenLogprob]) -> OllamaChatted:
        return OllamaChatted(
            model=self._name,
            created_at=now(),
            message=message,
            done=True,
            logprobs=logprobs or None,
            **timings_of_end(self._parsed.end),
        )


def text_in(pieces: Sequence[AnswerPiece]) -> str:
    """Join the pieces of an answer that are text, without thoughts and tool calls."""
    return "".join(piece for piece in pieces if isinstance(piece, str))


def thoughts_in(pieces: Sequence[AnswerPiece]) -> str:
    """Join the pieces of an answer that are thoughts."""
    return "".join(piece.text for piece in pieces if isinstance(piece, Thought))


def logprobs_of(tokenizer: Tokenizer, event: Event) -> list[TokenLogprob]:
    """Return the log-probabilities of an event's token; [] if the event has none."""
    if isinstance(event, Finished) or event.logprobs is None:
        return []
    return [chat_logprob(tokenizer, event.token, event.logprobs)]


def timings_of_end(end: Finished | None) -> dict[str, Any]:
    """Return Ollama's fields for the end of an answer (durations, counts); {} if `end` is None."""
    if end is None:
        return {}
    return timings_of(end.usage, is_cut=end.reason is FinishReason.LENGTH)
