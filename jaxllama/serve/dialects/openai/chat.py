"""`/v1/chat/completions`: generates the assistant's next message of a conversation.

Part of the OpenAI dialect. Tool calls are parsed from the answer (`text/tools.py`); knobs that
constrain the form of an answer come from `constraints.py`.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from aiohttp import web
from msgspec import UNSET

from jaxllama.errors import InvalidParameter
from jaxllama.formats import CallStyle
from jaxllama.messages import Ending as PromptEnding
from jaxllama.request import Event, Finished, Token, Usage
from jaxllama.serve.answering.constraints import as_tool, knobs_of_request
from jaxllama.serve.answering.logprobs import TokenLogprob, chat_logprob
from jaxllama.serve.answering.models import check_adapted
from jaxllama.serve.answering.parsed import ParsedAnswer
from jaxllama.serve.answering.stops import ClientStops
from jaxllama.serve.answering.thinking import (
    knobs_of_effort,
    thinks,
    thought_parser,
    thoughts_start,
)
from jaxllama.serve.answering.turns import as_turn, chosen_format
from jaxllama.serve.answering.writing import explainable_knobs, write_answer
from jaxllama.serve.dialects.openai import shapes
from jaxllama.serve.dialects.openai.chat_shapes import (
    ChatBody,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatDelta,
    ChatMessage,
    ChunkChoice,
)
from jaxllama.serve.dialects.openai.shapes import (
    Call,
    CalledFunction,
    CompletionDetails,
    Counts,
    Logprobs,
    TokenUsage,
    ids_of,
)
from jaxllama.serve.endpoints import Endpoint
from jaxllama.service import Ask, GenerationService
from jaxllama.service.answers import Answers
from jaxllama.text.thoughts import Thought, ThoughtStart
from jaxllama.text.tokenizer import Tokenizer
from jaxllama.text.tools import CallDelta

CHAT = Endpoint(
    "POST",
    "/v1/chat/completions",
    "Answer a conversation",
    body=ChatBody,
    answer=ChatCompletion,
    events=(ChatChunk,),
    takes_knobs=True,
)


async def chat(request: web.Request, service: GenerationService) -> web.StreamResponse:
    """Answer POST /v1/chat/completions: answers to a conversation, as one body or as a stream."""
    body, knobs = await CHAT.read(request, service, ChatBody)
    model = service.model
    name = check_adapted(body.model, model, knobs)
    if body.stream_options is not None and not body.stream:
        raise InvalidParameter("stream_options needs stream to be true", "stream_options")
    tools = [] if body.tool_choice == "none" else body.tools or []
    messages = [as_turn(each) for each in body.messages]
    shown = [as_tool(tool) for tool in tools]
    format_ = chosen_format(request, model, body.format, messages, shown)
    style = model.intake.with_format(format_).format.calls if tools else None
    constraint = knobs_of_request(body.response_format, tools, body.tool_choice, style)
    n = 1 if body.n is None else body.n
    is_thinking = thinks(model, format_)
    knobs |= knobs_of_effort(
        request, body.reasoning_effort, knobs, "reasoning_effort", is_thinking=is_thinking
    )
    shows_thoughts = is_thinking and body.reasoning_format != "none"
    knobs = constraint.merge(knobs | logprobs_of(body))
    if body.explain:
        knobs = explainable_knobs(knobs, stream=body.stream, answers=n)
    ask = Ask(
        messages=messages,
        knobs=knobs,
        n=n,
        tools=shown,
        ending=ending_of(body),
        format=format_,
        overflow=body.context_overflow,
        names=constraint.names,
    )

    def form(answers: Answers) -> ChatForm:
        tokenizer = model.intake.tokenizer
        start = None
        if shows_thoughts:
            start = thoughts_start(tokenizer, answers, ask.ending, messages)
        return ChatForm(
            body, knobs, answers, AnswerSyntax(style, start), AnsweredBy(name, tokenizer)
        )

    return await write_answer(request, service, ask, form, stream=body.stream, explain=body.explain)


def ending_of(body: ChatBody) -> PromptEnding:
    """Return where the prompt ends: before a new answer, in the last message, or after it."""
    if body.continue_final_message:
        if body.add_generation_prompt:
            raise InvalidParameter(
                "continue_final_message and add_generation_prompt are both true; choose one",
                "continue_final_message",
            )
        return PromptEnding.LAST
    return PromptEnding.CLOSED if body.add_generation_prompt is False else PromptEnding.ANSWER


def logprobs_of(body: ChatBody) -> dict[str, object]:
    """Convert the fields `logprobs` and `top_logprobs` to the engine's parameter `logprobs`.

    Its value is the number of top tokens to list. The result is {} without log-probabilities.
    """
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidParameter("top_logprobs needs logprobs to be true", "top_logprobs")
    return {"logprobs": body.top_logprobs or 0} if body.logprobs else {}


@dataclass(frozen=True)
class AnswerSyntax:
    """The marks of calls and thoughts; None: the model has none, or they stay in the text."""

    calls: CallStyle | None
    thoughts: ThoughtStart | None


@dataclass(frozen=True)
class AnsweredBy:
    """The model of an answer."""

    name: str
    tokenizer: Tokenizer


class ChatForm:
    """Converts the answers to a conversation to OpenAI's messages or chunks."""

    says_done = True

    def __init__(
        self,
        body: ChatBody,
        knobs: Mapping[str, object],
        answers: Answers,
        syntax: AnswerSyntax,
        model: AnsweredBy,
    ) -> None:
        self._id = f"chatcmpl-{answers.caller.id}"
        self._created, self._tokenizer, self._name = int(time.time()), model.tokenizer, model.name
        self._stops, self._shows_ids = ClientStops(knobs), bool(body.return_token_ids)
        self._prompt = answers.requests[0].prompt
        self._answers = [
            ChatAnswer(f"call_{answers.caller.id}_{index}", syntax, body)
            for index in range(len(answers.requests))
        ]
        self._generated = 0
        self._thinks = syntax.thoughts is not None
        self._counts = Counts(body.stream_options, len(answers.requests[0].prompt))

    def begin(self) -> Iterator[ChatChunk]:
        """Yield the stream's first chunk of each answer, which has the role."""
        for index in range(len(self._answers)):
            chunk = self._chunk([ChunkChoice(index, ChatDelta(role="assistant", content=""))])
            if self._shows_ids and index == 0:
                chunk.prompt_token_ids = list(self._prompt)
            yield chunk

    def take(self, index: int, event: Event) -> Iterator[ChatChunk]:
        """Collect an event of answer `index`, and yield the chunks that a stream sends for it."""
        answer = self._answers[index]
        self._generated += isinstance(event, Token)
        delta = answer.receive(event)
        found = (
            []
            if isinstance(event, Finished) or event.logprobs is None
            else [chat_logprob(self._tokenizer, event.token, event.logprobs)]
        )
        answer.logprobs += found
        ids = ids_of(event) if self._shows_ids else []
        answer.token_ids += ids
        if isinstance(event, Finished):
            if delta != ChatDelta():
                yield self._chunk([ChunkChoice(index, delta)])
            answer.stop_reason = self._stops.met(event)
            choice = ChunkChoice(index, ChatDelta(), answer.ending, stop_reason=answer.stop_reason)
        elif found or ids or delta != ChatDelta():
            choice = ChunkChoice(index, delta, logprobs=Logprobs(found) if found else None)
        else:
            return
        if self._shows_ids:
            choice.token_ids = ids
        yield self._chunk([choice])

    def end(self) -> Iterator[ChatChunk]:
        """Yield a chunk with the token counts if the request asked for it."""
        if self._counts.at_end:
            yield ChatChunk(self._id, self._created, self._name, [], usage=self._usage())

    def whole(self) -> ChatCompletion:
        """Return the body of a response that is not streamed, with all answers."""
        choices = [
            ChatChoice(
                index,
                answer.message(),
                answer.ending,
                logprobs=Logprobs(answer.logprobs) if answer.has_logprobs else None,
                stop_reason=answer.stop_reason,
                token_ids=answer.token_ids if self._shows_ids else UNSET,
            )
            for index, answer in enumerate(self._answers)
        ]
        whole = ChatCompletion(self._id, self._created, self._name, choices, self._usage())
        if self._shows_ids:
            whole.prompt_token_ids = list(self._prompt)
        return whole

    def _usage(self) -> TokenUsage:
        usages = [answer.usage for answer in self._answers]
        usage = shapes.sum_up(usages, len(usages))
        if self._thinks:
            tokens = sum(answer.thought_tokens for answer in self._answers)
            details = usage.completion_tokens_details or CompletionDetails()
            details.reasoning_tokens = tokens
            usage.completion_tokens_details = details
        return usage

    def _chunk(self, choices: list[ChunkChoice]) -> ChatChunk:
        usage = self._counts.so_far(self._generated)
        return ChatChunk(self._id, self._created, self._name, choices, usage=usage)


class ChatAnswer:
    """Collects one answer from its events: text, tool calls, reason of its end."""

    def __init__(self, prefix: str, syntax: AnswerSyntax, body: ChatBody) -> None:
        self.logprobs: list[TokenLogprob] = []
        self.has_logprobs = bool(body.logprobs)
        self.usage: Usage | None = None
        self.ending: shapes.ChatFinish = "stop"
        self.stop_reason: str | int | None = None
        self.token_ids: list[int] = []
        self._prefix = prefix
        only_one = body.parallel_tool_calls is False
        thoughts = thought_parser(syntax.thoughts)
        self._parsed = ParsedAnswer(syntax.calls, only_one=only_one, thoughts=thoughts)

    @property
    def thought_tokens(self) -> int:
        """Number of tokens in the thoughts so far."""
        return self._parsed.thought_tokens

    def receive(self, event: Event) -> ChatDelta:
        """Add an event to the answer; return the part of a message that a stream sends for it."""
        pieces = self._parsed.receive(event)
        if isinstance(event, Finished):
            self.usage = event.usage
            has_called = self._parsed.has_called
            self.ending = "tool_calls" if has_called else shapes.ending_of(event.reason)
        texts = [piece for piece in pieces if isinstance(piece, str)]
        calls = [self._call(piece) for piece in pieces if isinstance(piece, CallDelta)]
        thoughts = [piece.text for piece in pieces if isinstance(piece, Thought)]
        return ChatDelta(
            content="".join(texts) if texts else UNSET,
            tool_calls=calls if calls else UNSET,
            reasoning_content="".join(thoughts) if thoughts else UNSET,
        )

    def message(self) -> ChatMessage:
        """Return the answer so far as a message."""
        calls = [
            Call(CalledFunction(call.arguments, call.name), id=self._id(index), type="function")
            for index, call in enumerate(self._parsed.calls)
        ]
        text, thoughts = self._parsed.text, self._parsed.thoughts
        return ChatMessage(
            text if text or not (calls or thoughts) else None,
            tool_calls=calls or UNSET,
            reasoning_content=thoughts or UNSET,
        )

    def _call(self, piece: CallDelta) -> Call:
        """Convert a piece of a tool call to its JSON in a chunk of the stream."""
        if piece.name is None:
            return Call(CalledFunction(piece.arguments), index=piece.index)
        function = CalledFunction(piece.arguments, piece.name)
        return Call(function, index=piece.index, id=self._id(piece.index), type="function")

    def _id(self, index: int) -> str:
        return f"{self._prefix}_{index}"
