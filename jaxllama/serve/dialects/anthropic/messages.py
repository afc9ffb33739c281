"""`/v1/messages` and `/v1/messages/count_tokens`: answers, and the tokens of a conversation.

Part of the Anthropic dialect. The same form makes the events of a stream and the whole message.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from aiohttp import web

from jaxllama.errors import InvalidParameter
from jaxllama.formats import CallStyle, Tool
from jaxllama.request import Event, Finished, FinishReason, Usage
from jaxllama.serve.answering.constraints import (
    FormKnobs,
    ToolChoice,
    ToolDefinition,
    as_tool,
    knobs_of_form,
    knobs_of_request,
)
from jaxllama.serve.answering.models import check_model
from jaxllama.serve.answering.parsed import ParsedAnswer
from jaxllama.serve.answering.turns import chosen_format
from jaxllama.serve.answering.writing import write_answer
from jaxllama.serve.dialects.anthropic.conversation import (
    Json,
    choice_of,
    ending_of,
    messages_of,
    tools_of,
)
from jaxllama.serve.dialects.anthropic.event_shapes import (
    AddedInput,
    AddedText,
    AnsweredCall,
    AnsweredText,
    AnthropicMessage,
    AnthropicUsage,
    BlockDelta,
    BlockStart,
    BlockStop,
    MessageDelta,
    MessageEnd,
    MessageStart,
    MessageStop,
    StopReason,
    TokenCount,
)
from jaxllama.serve.dialects.anthropic.shapes import (
    ConversationParams,
    CountTokensParams,
    CreateMessageParams,
)
from jaxllama.serve.endpoints import Endpoint
from jaxllama.serve.keys import CALLER
from jaxllama.serve.wire import SSE, one_json
from jaxllama.service import Ask, GenerationService, Model
from jaxllama.service.answers import Answers
from jaxllama.service.asking import estimate_characters
from jaxllama.text.tools import CallDelta

PING = b'event: ping\ndata: {"type":"ping"}\n\n'
EVENTS = replace(SSE, done=b"", ping=PING)

MESSAGES = Endpoint(
    "POST",
    "/v1/messages",
    "Answer a conversation, in Anthropic's form",
    body=CreateMessageParams,
    answer=AnthropicMessage,
    events=(MessageStart, BlockStart, BlockDelta, BlockStop, MessageDelta, MessageStop),
    takes_knobs=True,
)
COUNT_TOKENS = Endpoint(
    "POST",
    "/v1/messages/count_tokens",
    "Count the tokens of a conversation, in Anthropic's form",
    body=CountTokensParams,
    answer=TokenCount,
)


@dataclass(frozen=True)
class PreparedConversation:
    """A conversation and its tools in the forms of the intake."""

    messages: list[Json]
    definitions: list[ToolDefinition]
    choice: ToolChoice | None
    format: str | None
    style: CallStyle | None

    @property
    def tools(self) -> list[Tool]:
        """The tools as prompt formats show them."""
        return [as_tool(tool) for tool in self.definitions]


def prepare(request: web.Request, model: Model, body: ConversationParams) -> PreparedConversation:
    """Convert the conversation and the tools of a body, and choose its prompt format."""
    choice = choice_of(body.tool_choice)
    definitions = [] if choice == "none" else tools_of(body.tools or ())
    messages = messages_of(body)
    shown = [as_tool(tool) for tool in definitions]
    format_ = chosen_format(request, model, None, messages, shown)
    style = model.intake.with_format(format_).format.calls if definitions else None
    return PreparedConversation(messages, definitions, choice, format_, style)


async def create_message(request: web.Request, service: GenerationService) -> web.StreamResponse:
    """Answer a conversation, as one message or as a stream of events."""
    body, knobs = await MESSAGES.read(request, service, CreateMessageParams)
    model = service.model
    name = check_model(body.model, model)
    if knobs.get("logprobs") is not None:
        raise InvalidParameter(
            "logprobs is not supported: use /v1/chat/completions for log-probabilities", "logprobs"
        )
    prepared = prepare(request, model, body)
    constraint = constraint_of(body, prepared)
    ask = Ask(
        messages=prepared.messages,
        knobs=constraint.merge(knobs | {"max_tokens": body.max_tokens}),
        tools=prepared.tools,
        ending=ending_of(body),
        format=prepared.format,
        names=constraint.names,
        total=model.engine.config.context,
    )

    def form(answers: Answers) -> MessageForm:
        return MessageForm(body, name, answers, prepared.style, knobs)

    return await write_answer(request, service, ask, form, stream=body.stream, framing=EVENTS)


def constraint_of(body: CreateMessageParams, prepared: PreparedConversation) -> FormKnobs:
    """Return the knobs that hold the answer to a form or to calls of tools; refuse both."""
    tools = knobs_of_request(None, prepared.definitions, prepared.choice, prepared.style)
    output = body.output_config.format if body.output_config is not None else None
    where = "output_format" if output is None else "output_config.format"
    output = output or body.output_format
    if output is None:
        return tools
    if tools.knobs:
        raise InvalidParameter(
            f"{where} and tool_choice both say what the answer looks like; send one of them", where
        )
    return knobs_of_form("json_schema", output.schema, where, f"{where}.schema")


async def count_tokens(request: web.Request, service: GenerationService) -> web.Response:
    """Answer with the number of tokens of a conversation."""
    body, _ = await COUNT_TOKENS.read(request, service, CountTokensParams)
    check_model(body.model, service.model)
    prepared = prepare(request, service.model, body)
    ending = ending_of(body)

    def count(model: Model) -> int:
        speaking = model.intake.with_format(prepared.format)
        ids = speaking.chat_ids(prepared.messages, tools=prepared.tools, ending=ending, fits=False)
        return len(ids)

    size = estimate_characters([prepared.messages, prepared.tools])
    return one_json(TokenCount(await service.off_loop(count, request[CALLER], size=size)))


class MessageForm:
    """Converts the events of an answer to Anthropic's events, or to one message."""

    says_done = False

    def __init__(
        self,
        body: CreateMessageParams,
        name: str,
        answers: Answers,
        style: CallStyle | None,
        knobs: dict[str, Any],
    ) -> None:
        self._id, self._name = f"msg_{answers.caller.id}", name
        request = answers.requests[0]
        self._prompt = len(request.prompt)
        self._is_shortened = request.max_tokens < body.max_tokens
        self._stops = as_list(knobs.get("stop"))
        only_one = body.tool_choice is not None and body.tool_choice.disable_parallel_tool_use
        self._parsed = ParsedAnswer(style, only_one=bool(only_one))
        self._blocks = 0  # that have begun
        self._in_text = False
        self._in_call = False

    def begin(self) -> Iterator[Any]:
        """Yield the event before the content; cached tokens are known at the end."""
        usage = AnthropicUsage(self._prompt, 0)
        yield MessageStart(AnthropicMessage(self._id, self._name, usage=usage))

    def take(self, index: int, event: Event) -> Iterator[Any]:
        """Collect an event of the answer, and yield its events."""
        del index
        for piece in self._parsed.receive(event):
            if isinstance(piece, str):
                yield from self._text(piece)
            else:
                yield from self._call(piece)

    def end(self) -> Iterator[Any]:
        """Yield the events after the content."""
        yield from self._close()
        reason, stop = self._ending()
        yield MessageDelta(MessageEnd(reason, stop), self._usage())
        yield MessageStop()

    def whole(self) -> AnthropicMessage:
        """Return the whole message."""
        text = self._parsed.text
        content: list[AnsweredText | AnsweredCall] = [AnsweredText(text)] if text else []
        content += [
            AnsweredCall(self._call_id(index), call.name, call.as_object())
            for index, call in enumerate(self._parsed.calls)
        ]
        reason, stop = self._ending()
        return AnthropicMessage(self._id, self._name, content, reason, stop, self._usage())

    def _text(self, piece: str) -> Iterator[Any]:
        if not self._in_text:
            yield from self._close()
            yield self._open(AnsweredText(""))
            self._in_text = True
        yield BlockDelta(self._blocks - 1, AddedText(piece))

    def _call(self, piece: CallDelta) -> Iterator[Any]:
        if piece.name is not None:
            yield from self._close()
            yield self._open(AnsweredCall(self._call_id(piece.index), piece.name, {}))
            self._in_call = True
        if piece.arguments:
            yield BlockDelta(self._blocks - 1, AddedInput(piece.arguments))

    def _open(self, block: AnsweredText | AnsweredCall) -> BlockStart:
        self._blocks += 1
        return BlockStart(self._blocks - 1, block)

    def _close(self) -> Iterator[Any]:
        """Yield the end of the open block, if there is one."""
        if self._in_text or self._in_call:
            self._in_text = self._in_call = False
            yield BlockStop(self._blocks - 1)

    def _call_id(self, index: int) -> str:
        return f"toolu_{self._id}_{index}"

    def _ending(self) -> tuple[StopReason, str | None]:
        """Return the reason of the end, and the client's stop sequence that was met."""
        end = self._finished()
        if end.reason is FinishReason.LENGTH:
            return ("model_context_window_exceeded" if self._is_shortened else "max_tokens"), None
        if self._parsed.has_called:
            return "tool_use", None
        if end.stop is not None and end.stop in self._stops:
            return "stop_sequence", end.stop
        return "end_turn", None

    def _usage(self) -> AnthropicUsage:
        usage: Usage = self._finished().usage
        return AnthropicUsage(
            usage.prompt - usage.reused, usage.generated, cache_read_input_tokens=usage.reused
        )

    def _finished(self) -> Finished:
        end = self._parsed.end
        if end is None:
            raise RuntimeError("the answer has not ended")
        return end


def as_list(stop: object) -> list[object]:
    """Return stop sequences as a list; one may come alone."""
    if stop is None:
        return []
    return [stop] if isinstance(stop, str) else list(stop)  # type: ignore[call-overload]
