"""`/v1/messages` and `/v1/messages/count_tokens`: answers, and the tokens of a conversation.

Part of the Anthropic dialect. The same form makes the events of a stream and the whole message.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from aiohttp import web
from msgspec import UNSET

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
from jaxllama.serve.answering.models import check_adapted, check_model
from jaxllama.serve.answering.parsed import ParsedAnswer
from jaxllama.serve.answering.stops import ClientStops
from jaxllama.serve.answering.thinking import (
    BUDGET,
    knobs_of_effort,
    thinks,
    thought_parser,
    thoughts_start,
)
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
    AnsweredCall,
    AnsweredText,
    AnsweredThoughts,
    AnthropicMessage,
    AnthropicUsage,
    BlockDelta,
    BlockStart,
    BlockStop,
    InputDelta,
    MessageDelta,
    MessageEnd,
    MessageStart,
    MessageStop,
    StopReason,
    TextDelta,
    ThoughtDelta,
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
from jaxllama.text.thoughts import Thought
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
        """The tools as dicts, in the form that prompt formats take."""
        return [as_tool(tool) for tool in self.definitions]


def prepare(request: web.Request, model: Model, body: ConversationParams) -> PreparedConversation:
    """Convert the conversation and the tools of a body, and choose the prompt format for them.

    If it is not the model's own format, the headers of the response to `request` name it.
    """
    choice = choice_of(body.tool_choice)
    definitions = [] if choice == "none" else tools_of(body.tools or ())
    messages = messages_of(body)
    shown = [as_tool(tool) for tool in definitions]
    format_ = chosen_format(request, model, None, messages, shown)
    style = model.intake.with_format(format_).format.calls if definitions else None
    return PreparedConversation(messages, definitions, choice, format_, style)


async def create_message(request: web.Request, service: GenerationService) -> web.StreamResponse:
    """Answer POST /v1/messages: a conversation's next message, whole or as a stream of events."""
    body, knobs = await MESSAGES.read(request, service, CreateMessageParams)
    model = service.model
    name = check_adapted(body.model, model, knobs)
    if knobs.get("logprobs") is not None:
        raise InvalidParameter(
            "logprobs is not supported: use /v1/chat/completions for log-probabilities", "logprobs"
        )
    prepared = prepare(request, model, body)
    is_thinking = thinks(model, prepared.format)
    knobs |= thinking_knobs(request, body, knobs, is_thinking=is_thinking)
    constraint = constraint_of(body, prepared)
    ask = Ask(
        messages=prepared.messages,
        knobs=constraint.merge(knobs | {"max_tokens": body.max_tokens}),
        tools=prepared.tools,
        ending=ending_of(body),
        format=prepared.format,
        names=constraint.names,
        total=model.engine.config.context,
        overflow=body.context_overflow,
    )

    def form(answers: Answers) -> MessageForm:
        start = None
        if is_thinking:
            tokenizer = model.intake.tokenizer
            start = thoughts_start(tokenizer, answers, ask.ending, prepared.messages)
        parsed = ParsedAnswer(
            prepared.style,
            only_one=bool(body.tool_choice and body.tool_choice.disable_parallel_tool_use),
            thoughts=thought_parser(start),
        )
        return MessageForm(body, name, answers, parsed, knobs)

    return await write_answer(request, service, ask, form, stream=body.stream, framing=EVENTS)


def thinking_knobs(
    request: web.Request, body: CreateMessageParams, knobs: dict[str, Any], *, is_thinking: bool
) -> dict[str, Any]:
    """Return {"reasoning_budget": most tokens of thoughts} from `thinking` and the effort.

    Both are fields of the body (`output_config.effort`). Without `thinking` the budget is 0. {}
    sets no bound, or leaves a budget that is already in `knobs`, the request's sampling options.
    If the model never thinks (`is_thinking` false), both fields are reported as ignored, or
    refused under --strict.
    """
    thinking = body.thinking
    wants = thinking is not None and thinking.type != "disabled"
    effort = body.output_config.effort if body.output_config is not None else None
    if not is_thinking:
        found = knobs_of_effort(
            request, "max" if wants else None, knobs, "thinking", is_thinking=False
        )
        name = "output_config.effort"
        return found | knobs_of_effort(request, effort, knobs, name, is_thinking=False)
    if knobs.get(BUDGET) is not None:
        return {}
    if thinking is None or not wants:
        return {BUDGET: 0}
    if thinking.budget_tokens is None:
        name = "output_config.effort"
        return knobs_of_effort(request, effort, knobs, name, is_thinking=True)
    if not 0 < thinking.budget_tokens < body.max_tokens:
        raise InvalidParameter(
            f"thinking.budget_tokens is {thinking.budget_tokens}; it must be at least 1 and less "
            f"than max_tokens, {body.max_tokens}",
            "thinking.budget_tokens",
        )
    return {BUDGET: thinking.budget_tokens}


def constraint_of(body: CreateMessageParams, prepared: PreparedConversation) -> FormKnobs:
    """Return the knobs that constrain the answer to a JSON schema or to tool calls.

    Raises InvalidParameter if the request asks for both.
    """
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
    """Answer POST /v1/messages/count_tokens with the number of tokens of a conversation."""
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
        parsed: ParsedAnswer,
        knobs: dict[str, Any],
    ) -> None:
        self._id, self._name = f"msg_{answers.caller.id}", name
        request = answers.requests[0]
        self._prompt = len(request.prompt)
        self._is_shortened = request.max_tokens < body.max_tokens
        self._stops = ClientStops(knobs)
        self._parsed = parsed
        self._hides_thoughts = body.thinking is not None and body.thinking.display == "omitted"
        self._blocks = 0  # that have begun
        self._open_block: type[msgspec.Struct] | None = None

    def begin(self) -> Iterator[Any]:
        """Yield the event message_start.

        Its usage counts all tokens of the prompt; how many were cached is not known yet.
        """
        usage = AnthropicUsage(self._prompt, 0)
        yield MessageStart(AnthropicMessage(self._id, self._name, usage=usage))

    def take(self, index: int, event: Event) -> Iterator[Any]:
        """Collect an event of the answer, and yield Anthropic's stream events for it.

        `index`, the number of the answer, is ignored: there is only one.
        """
        del index
        for piece in self._parsed.receive(event):
            match piece:
                case str():
                    yield from self._enter(AnsweredText(""))
                    yield BlockDelta(self._blocks - 1, TextDelta(piece))
                case Thought():
                    yield from self._enter(AnsweredThoughts(""))
                    if not self._hides_thoughts:
                        yield BlockDelta(self._blocks - 1, ThoughtDelta(piece.text))
                case CallDelta():
                    yield from self._call(piece)

    def end(self) -> Iterator[Any]:
        """Yield the stream events after the content: block end, message_delta, message_stop."""
        yield from self._close()
        reason, stop = self._ending()
        yield MessageDelta(MessageEnd(reason, stop), self._usage())
        yield MessageStop()

    def whole(self) -> AnthropicMessage:
        """Return the whole message, for a response that is not streamed."""
        text, thoughts = self._parsed.text, self._parsed.thoughts
        content: list[AnsweredThoughts | AnsweredText | AnsweredCall] = []
        if thoughts:
            content.append(AnsweredThoughts("" if self._hides_thoughts else thoughts))
        if text:
            content.append(AnsweredText(text))
        content += [
            AnsweredCall(self._call_id(index), call.name, call.as_object())
            for index, call in enumerate(self._parsed.calls)
        ]
        reason, stop = self._ending()
        return AnthropicMessage(self._id, self._name, content, reason, stop, self._usage())

    def _enter(self, block: AnsweredThoughts | AnsweredText) -> Iterator[Any]:
        """Yield the events that start a content block, unless one of its kind is open."""
        if self._open_block is not type(block):
            yield from self._close()
            yield self._open(block)

    def _call(self, piece: CallDelta) -> Iterator[Any]:
        if piece.name is not None:
            yield from self._close()
            yield self._open(AnsweredCall(self._call_id(piece.index), piece.name, {}))
        if piece.arguments:
            yield BlockDelta(self._blocks - 1, InputDelta(piece.arguments))

    def _open(self, block: AnsweredThoughts | AnsweredText | AnsweredCall) -> BlockStart:
        self._blocks += 1
        self._open_block = type(block)
        return BlockStart(self._blocks - 1, block)

    def _close(self) -> Iterator[Any]:
        """Yield the event that ends the open content block, if one is open."""
        if self._open_block is not None:
            self._open_block = None
            yield BlockStop(self._blocks - 1)

    def _call_id(self, index: int) -> str:
        return f"toolu_{self._id}_{index}"

    def _ending(self) -> tuple[StopReason, str | None]:
        """Return Anthropic's stop reason, and the client's stop sequence that was met or None."""
        end = self._finished()
        if end.reason is FinishReason.LENGTH:
            return ("model_context_window_exceeded" if self._is_shortened else "max_tokens"), None
        if self._parsed.has_called:
            return "tool_use", None
        stop = self._stops.text_met(end)
        return ("end_turn", None) if stop is None else ("stop_sequence", stop)

    def _usage(self) -> AnthropicUsage:
        usage: Usage = self._finished().usage
        return AnthropicUsage(
            usage.prompt - usage.reused,
            usage.generated,
            cache_read_input_tokens=usage.reused,
            dropped_messages=usage.dropped or UNSET,
        )

    def _finished(self) -> Finished:
        end = self._parsed.end
        if end is None:
            raise RuntimeError("the answer has not ended")
        return end
