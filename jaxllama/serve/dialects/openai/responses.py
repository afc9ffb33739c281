"""`/v1/responses`: answers a conversation, in the form of OpenAI's newer API.

Part of the OpenAI dialect. A response is stored unless the request says otherwise, so that a later
request can go on with `previous_response_id`.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import web
from msgspec import UNSET

from jaxllama.errors import InvalidParameter
from jaxllama.request import Event, Finished, FinishReason, Usage
from jaxllama.serve.answering.constraints import (
    FormKnobs,
    ToolDefinition,
    as_tool,
    knobs_of_form,
    knobs_of_request,
)
from jaxllama.serve.answering.models import check_adapted
from jaxllama.serve.answering.parsed import ParsedAnswer
from jaxllama.serve.answering.thinking import (
    knobs_of_effort,
    thinks,
    thought_parser,
    thoughts_start,
)
from jaxllama.serve.answering.turns import chosen_format
from jaxllama.serve.answering.writing import write_answer
from jaxllama.serve.dialects.openai.batch_work import owner_of
from jaxllama.serve.dialects.openai.response_input import Turn, choice_of, tools_of, turns_of
from jaxllama.serve.dialects.openai.response_shapes import (
    EVENTS,
    ArgumentsEvent,
    DeltaEvent,
    FunctionCallItem,
    Incomplete,
    ItemEvent,
    OutputDetails,
    OutputItem,
    OutputMessage,
    OutputText,
    PartEvent,
    PieceEvent,
    ReasoningItem,
    ReasoningText,
    Response,
    ResponseBody,
    ResponseDeleted,
    ResponseStatus,
    ResponseUsage,
    StreamEvent,
    TextEvent,
    ThoughtsEvent,
    WholeEvent,
)
from jaxllama.serve.dialects.openai.response_store import KeptResponse, ResponseStore
from jaxllama.serve.dialects.openai.shapes import Details
from jaxllama.serve.endpoints import Endpoint, Serves
from jaxllama.serve.keys import CALLER
from jaxllama.serve.model_choice import Uses
from jaxllama.serve.wire import one_json
from jaxllama.service import Ask, GenerationService
from jaxllama.service.answers import Answers
from jaxllama.text.thoughts import Thought
from jaxllama.text.tools import CallDelta

RESPONSES = Endpoint(
    "POST",
    "/v1/responses",
    "Answer a conversation, in the form of OpenAI's newer API",
    body=ResponseBody,
    answer=Response,
    events=EVENTS,
    takes_knobs=True,
)
RESPONSE = Endpoint(
    "GET",
    "/v1/responses/{response}",
    "A stored response",
    answer=Response,
    uses=Uses.NOTHING,
)
DELETE_RESPONSE = Endpoint(
    "DELETE",
    "/v1/responses/{response}",
    "Delete a stored response",
    answer=ResponseDeleted,
    uses=Uses.NOTHING,
)

Keep = Callable[[Response, Sequence[Turn]], None]  # stores a response and the turns it adds


class ResponseRoutes:
    """The handlers of responses, which are kept in one store."""

    def __init__(self, store: ResponseStore) -> None:
        self._store = store

    @property
    def endpoints(self) -> Mapping[Endpoint, Serves]:
        """The endpoints, each with the function that answers its requests."""
        return {
            RESPONSES: self.respond,
            RESPONSE: self.retrieve_response,
            DELETE_RESPONSE: self.delete_response,
        }

    async def respond(self, request: web.Request, service: GenerationService) -> web.StreamResponse:
        """Answer POST /v1/responses: the answer to a conversation, whole or as a stream."""
        body, knobs = await RESPONSES.read(request, service, ResponseBody)
        model = service.model
        name = check_adapted(body.model, model, knobs)
        if knobs.get("logprobs") is not None:
            raise InvalidParameter(
                "logprobs is not supported: use /v1/chat/completions for log-probabilities",
                "logprobs",
            )
        definitions = [] if body.tool_choice == "none" else tools_of(body.tools or ())
        tools = [as_tool(tool) for tool in definitions]
        turns = self._turns(body, request)
        system = [{"role": "system", "content": body.instructions}] if body.instructions else []
        messages = [*system, *turns]
        format_ = chosen_format(request, model, None, messages, tools)
        is_thinking = thinks(model, format_)
        effort = body.reasoning.effort if body.reasoning is not None else None
        knobs |= knobs_of_effort(
            request, effort, knobs, "reasoning.effort", is_thinking=is_thinking
        )
        style = model.intake.with_format(format_).format.calls if tools else None
        constraint = constraint_of(body, definitions, style)
        ask = Ask(
            messages=messages,
            knobs=constraint.merge(knobs),
            tools=tools,
            format=format_,
            overflow=body.overflow,
            names=constraint.names,
        )

        def keep(response: Response, added: Sequence[Turn]) -> None:
            raw = msgspec.Raw(msgspec.json.encode(response))
            kept = KeptResponse(owner_of(request[CALLER]), raw, [*turns, *added])
            self._store.keep(response.id, kept)

        def form(answers: Answers) -> ResponseForm:
            start = thoughts_start(model.intake.tokenizer, answers) if is_thinking else None
            parsed = ParsedAnswer(
                style,
                only_one=body.parallel_tool_calls is False,
                thoughts=thought_parser(start),
            )
            facts = ResponseFacts(answers.id, name, knobs)
            return ResponseForm(body, facts, parsed, None if body.store is False else keep)

        return await write_answer(request, service, ask, form, stream=body.stream)

    async def retrieve_response(
        self, request: web.Request, service: GenerationService
    ) -> web.Response:
        """Answer GET /v1/responses/{response} with a stored response."""
        del service
        kept = self._store.find(request.match_info["response"], owner_of(request[CALLER]))
        return one_json(kept.response)

    async def delete_response(
        self, request: web.Request, service: GenerationService
    ) -> web.Response:
        """Answer DELETE /v1/responses/{response}: delete a stored response."""
        del service
        id_ = request.match_info["response"]
        self._store.delete(id_, owner_of(request[CALLER]))
        return one_json(ResponseDeleted(id_))

    def _turns(self, body: ResponseBody, request: web.Request) -> list[Turn]:
        """Return the messages of the conversation that a request continues or starts.

        They are the conversation of the previous response, if the body names one, and then the new
        input. Instructions, old and new, are left out.
        """
        turns = turns_of(body.input)
        if body.previous_response_id is None:
            return turns
        past = self._store.find(body.previous_response_id, owner_of(request[CALLER]))
        return [*past.turns, *turns]


def constraint_of(body: ResponseBody, tools: Sequence[ToolDefinition], style: Any) -> FormKnobs:
    """Return the knobs (generation parameters) that constrain an answer to a form or to tool calls.

    The form is the body's `text.format`; `tools` are the tools of the request. `style` is the
    prompt format's syntax of tool calls; None if it has none. Raises InvalidParameter if the
    request asks for both constraints.
    """
    calls = knobs_of_request(None, tools, choice_of(body.tool_choice), style)
    format_ = body.text.format if body.text is not None else None
    if format_ is None:
        return calls
    form = knobs_of_form(format_.type, format_.schema, "text.format", "text.format.schema")
    if form.knobs and calls.knobs:
        raise InvalidParameter(
            "text.format and tool_choice both say what the answer looks like; send one of them",
            "text.format",
        )
    return form if form.knobs else calls


@dataclass(frozen=True)
class ResponseFacts:
    """The fields of a request that its response repeats."""

    id: str
    model: str
    knobs: Mapping[str, object]


class ResponseForm:
    """Converts the events of an answer to one response or to stream events."""

    says_done = False

    def __init__(
        self, body: ResponseBody, facts: ResponseFacts, parsed: ParsedAnswer, keep: Keep | None
    ) -> None:
        self._body, self._facts, self._parsed, self._keep = body, facts, parsed, keep
        self._id = f"resp-{facts.id}"
        self._created, self._number = int(time.time()), -1
        self._items: list[OutputItem] = []  # the last one is open until `_is_open` is False
        self._pieces: list[str] = []  # of the open item
        self._is_open = False
        self._status: ResponseStatus = "in_progress"
        self._usage: Usage | None = None

    def begin(self) -> Iterator[StreamEvent]:
        """Yield the stream events before the output: response.created and response.in_progress."""
        yield WholeEvent("response.created", self._next(), self.whole())
        yield WholeEvent("response.in_progress", self._next(), self.whole())

    def take(self, index: int, event: Event) -> Iterator[StreamEvent]:
        """Collect an event of the answer, and yield the stream events for it.

        `index` is the index of the answer; it has no effect, as there is only one.
        """
        del index
        for piece in self._parsed.receive(event):
            match piece:
                case str():
                    yield from self._text(piece)
                case Thought():
                    yield from self._thought(piece.text)
                case CallDelta():
                    yield from self._call(piece)
        if not isinstance(event, Finished):
            return
        is_cut = event.reason is FinishReason.LENGTH
        self._usage = event.usage
        if not self._items:
            yield from self._text("")
        yield from self._close("incomplete" if is_cut else "completed")
        self._status = "incomplete" if is_cut else "completed"
        if self._keep is not None:
            self._keep(self.whole(), [self._turn()])

    def end(self) -> Iterator[StreamEvent]:
        """Yield the last stream event, which repeats the whole response."""
        is_cut = self._status == "incomplete"
        kind: Any = "response.incomplete" if is_cut else "response.completed"
        yield WholeEvent(kind, self._next(), self.whole())

    def whole(self) -> Response:
        """Return the response as it is now; its `output` is empty until the answer has ended."""
        body, usage, knobs = self._body, self._usage, self._facts.knobs
        return Response(
            id=self._id,
            created_at=self._created,
            model=self._facts.model,
            status=self._status,
            output=list(self._items) if usage is not None else [],
            instructions=body.instructions,
            max_output_tokens=knobs.get("max_tokens"),  # type: ignore[arg-type]
            temperature=as_float(knobs.get("temperature")),
            top_p=as_float(knobs.get("top_p")),
            metadata=body.metadata or {},
            user=body.user,
            usage=None if usage is None else self._counts(usage),
            incomplete_details=Incomplete() if self._status == "incomplete" else None,
            parallel_tool_calls=body.parallel_tool_calls is not False,
            tool_choice=body.tool_choice or "auto",
            tools=body.tools or [],
            previous_response_id=body.previous_response_id,
            reasoning=body.reasoning,
            store=self._keep is not None,
            truncation=body.truncation or "disabled",
        )

    # The items of the output.

    def _text(self, text: str) -> Iterator[StreamEvent]:
        if not self._is_in(OutputMessage):
            yield from self._close("completed")
            yield self._open(OutputMessage(self._item_id("msg"), "in_progress", []))
            part = OutputText("")
            at = self._place
            yield PartEvent("response.content_part.added", self._next(), self._open_id, part, at)
        if text:
            self._pieces.append(text)
            yield DeltaEvent(
                "response.output_text.delta", self._next(), self._open_id, text, self._place
            )

    def _thought(self, text: str) -> Iterator[StreamEvent]:
        if not self._is_in(ReasoningItem):
            yield from self._close("completed")
            yield self._open(ReasoningItem(self._item_id("rs"), "in_progress", []))
        self._pieces.append(text)
        kind: Any = "response.reasoning_text.delta"
        yield PieceEvent(kind, self._next(), self._open_id, text, self._place, 0)

    def _call(self, piece: CallDelta) -> Iterator[StreamEvent]:
        if piece.name is not None:
            yield from self._close("completed")
            call_id = f"call_{self._facts.id}_{piece.index}"
            id_ = self._item_id("fc")
            yield self._open(FunctionCallItem(id_, "in_progress", call_id, piece.name, ""))
        if piece.arguments:
            self._pieces.append(piece.arguments)
            kind: Any = "response.function_call_arguments.delta"
            yield PieceEvent(kind, self._next(), self._open_id, piece.arguments, self._place)

    def _open(self, item: OutputItem) -> ItemEvent:
        self._items.append(item)
        self._pieces, self._is_open = [], True
        return ItemEvent(
            "response.output_item.added", self._next(), msgspec.structs.replace(item), self._place
        )

    def _close(self, status: ResponseStatus) -> Iterator[StreamEvent]:
        """Set the status of the open output item, and yield the stream events that end it.

        Does nothing if no item is open.
        """
        if not self._is_open:
            return
        self._is_open = False
        item, at, text = self._items[-1], self._place, "".join(self._pieces)
        item.status = status
        match item:
            case OutputMessage():
                part = OutputText(text)
                item.content = [part]
                yield TextEvent("response.output_text.done", self._next(), item.id, text, at)
                yield PartEvent("response.content_part.done", self._next(), item.id, part, at)
            case ReasoningItem():
                item.content = [ReasoningText(text)]
                yield ThoughtsEvent(self._next(), item.id, text, at)
            case FunctionCallItem():
                item.arguments = text
                yield ArgumentsEvent(self._next(), item.id, item.name, text, at)
        yield ItemEvent("response.output_item.done", self._next(), item, at)

    def _is_in(self, kind: type[OutputItem]) -> bool:
        return self._is_open and isinstance(self._items[-1], kind)

    @property
    def _place(self) -> int:
        return len(self._items) - 1

    @property
    def _open_id(self) -> str:
        return self._items[-1].id

    def _item_id(self, prefix: str) -> str:
        """Return the id of the next output item; it begins with `prefix`, such as "msg"."""
        return f"{prefix}-{self._facts.id}-{len(self._items)}"

    def _turn(self) -> Turn:
        """Return the answer as a message of a conversation."""
        parsed = self._parsed
        calls = [item for item in self._items if isinstance(item, FunctionCallItem)]
        turn: Turn = {"role": "assistant", "content": parsed.text}
        if parsed.thoughts:
            turn["reasoning_content"] = parsed.thoughts
        if calls:
            turn["tool_calls"] = [
                {
                    "id": call.call_id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in calls
            ]
        return turn

    def _counts(self, usage: Usage) -> ResponseUsage:
        return ResponseUsage(
            usage.prompt,
            usage.generated,
            usage.prompt + usage.generated,
            Details(usage.reused, usage.dropped or UNSET),
            OutputDetails(self._parsed.thought_tokens),
        )

    def _next(self) -> int:
        self._number += 1
        return self._number


def as_float(value: object) -> float | None:
    """Return the value of a request parameter as float; None if it was not given."""
    return float(value) if isinstance(value, int | float) else None
