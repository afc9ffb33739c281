"""`/chat/completion`, `/text-completion/completion` and `/chat/tokenize` of LLaMbA's API.

A stream has lines `data: {...}` without an end mark; a whole answer is its text.
"""

from collections.abc import Iterator
from typing import Any

from aiohttp import web

from jaxllama.errors import HttpError, InvalidParameter, PromptTooLong
from jaxllama.messages import Ending
from jaxllama.serve.answering.text_form import TextForm
from jaxllama.serve.answering.writing import write_answer
from jaxllama.serve.decode import note_ignored
from jaxllama.serve.dialects.llamba.sampling import NAMES, SamplerName, knobs_of
from jaxllama.serve.dialects.llamba.shapes import (
    CHAT,
    COMPLETION,
    TOKENIZE,
    LlambaChatQuery,
    LlambaChunk,
    LlambaCompletionQuery,
    LlambaQuery,
    LlambaToken,
    LlambaTurn,
    reason_of,
)
from jaxllama.serve.keys import CALLER, SETTINGS
from jaxllama.serve.wire import encode
from jaxllama.service import Ask, GenerationService, Model
from jaxllama.service.asking import estimate_characters

Json = dict[str, Any]


class LlambaAnswering:
    """The handlers of single queries, with the operator's sampler."""

    def __init__(self, sampler: SamplerName) -> None:
        self._sampler: SamplerName = sampler

    async def chat(self, request: web.Request, service: GenerationService) -> web.StreamResponse:
        """Answer POST /chat/completion: the answer to a conversation, as text or as a stream."""
        body, _ = await CHAT.read(request, service, LlambaChatQuery)
        ask = self.ask_of_chat(body, service.model)
        return await self._answer(request, service, ask, stream=body.stream)

    async def complete(
        self, request: web.Request, service: GenerationService
    ) -> web.StreamResponse:
        """Answer POST /text-completion/completion with the continuation, as text or as a stream."""
        body, _ = await COMPLETION.read(request, service, LlambaCompletionQuery)
        ask = self.ask_of_completion(body, service.model)
        return await self._answer(request, service, ask, stream=body.stream)

    async def tokenize(self, request: web.Request, service: GenerationService) -> web.Response:
        """Answer POST /chat/tokenize with the tokens of the prompt that a chat would have."""
        body, _ = await TOKENIZE.read(request, service, LlambaChatQuery)
        refuse_sampling(request, body)
        messages, ending = conversation_of(body)

        def work(model: Model) -> list[LlambaToken]:
            piece = model.intake.tokenizer.piece
            ids = model.intake.chat_ids(messages, ending=ending, fits=False)
            return [
                LlambaToken(id_, piece(id_, special=True).decode("utf-8", "replace")) for id_ in ids
            ]

        size = estimate_characters(messages)
        found = await service.off_loop(work, request[CALLER], size=size)
        return web.Response(body=encode(found) + b"\n", content_type="application/json")

    def ask_of_chat(self, query: LlambaChatQuery, model: Model) -> Ask:
        """Convert the query for a chat to a generation task for the service."""
        messages, ending = conversation_of(query)
        knobs = knobs_of(query, self._sampler, model)
        overflow = query.context_overflow
        return Ask(messages=messages, knobs=knobs, ending=ending, names=NAMES, overflow=overflow)

    def ask_of_completion(
        self, query: LlambaCompletionQuery, model: Model, *, trims: bool = False
    ) -> Ask:
        """Convert the query to a generation task; `trims` removes spaces around its prompt."""
        prompt = query.prompt.strip() if trims else query.prompt
        knobs = knobs_of(query, self._sampler, model)
        return Ask(prompts=[prompt], knobs=knobs, names=NAMES)

    async def _answer(
        self,
        request: web.Request,
        service: GenerationService,
        ask: Ask,
        *,
        stream: bool | None,
    ) -> web.StreamResponse:
        try:
            return await write_answer(request, service, ask, LlambaForm, stream=stream)
        except PromptTooLong as error:
            raise await too_long(request, service, ask) from error


def conversation_of(query: LlambaChatQuery) -> tuple[list[Json], Ending]:
    """Return the messages without spaces around them, and how the prompt ends.

    The last message keeps its spaces. Ending.LAST: the answer continues the last message.
    """
    messages = [
        {"role": turn.role, "content": turn.content.strip()} for turn in query.messages[:-1]
    ]
    messages += [as_message(turn) for turn in query.messages[-1:]]
    if query.continue_:
        return messages, Ending.LAST
    if query.append_text:
        return [*messages, {"role": "assistant", "content": query.append_text}], Ending.LAST
    return messages, Ending.ANSWER


def as_message(turn: LlambaTurn) -> Json:
    """Convert a turn to a message as JSON, without changes."""
    return {"role": turn.role, "content": turn.content}


def refuse_sampling(request: web.Request, query: LlambaQuery) -> None:
    """Report sampling fields of a tokenizing query as ignored; refuse them under --strict."""
    used = ("continue_", "append_text", "messages")
    given = [
        name
        for name in query.__struct_fields__
        if name not in used and getattr(query, name) is not None
    ]
    if given and request.app[SETTINGS].strict:
        raise InvalidParameter(f"{given[0]} has no effect on tokens; remove it", given[0])
    note_ignored(request, given)


async def too_long(request: web.Request, service: GenerationService, ask: Ask) -> HttpError:
    """Return LLaMbA's error for a prompt that leaves no room for its answer."""

    def count(model: Model) -> int:
        if ask.messages is not None:
            return len(model.intake.chat_ids(ask.messages, ending=ask.ending, fits=False))
        return len(model.intake.ids(ask.prompts[0], fits=False))

    size = estimate_characters([*ask.prompts, *(ask.messages or ())])
    tokens = await service.off_loop(count, request[CALLER], size=size)
    context = service.model.engine.config.context
    return HttpError(
        f"Body of {tokens} requested {ask.knobs['max_tokens']}, surpassing {context}.",
        400,
        PromptTooLong.code,
    )


class LlambaForm(TextForm):
    """Converts the events of an answer to LLaMbA's lines, or to its text."""

    def piece(self, index: int, text: str) -> LlambaChunk:
        """Return the stream's line for a piece of the text; `index` is not used."""
        del index
        return LlambaChunk(None, text, "none")

    def end(self) -> Iterator[LlambaChunk]:
        """Yield the last line, with the reason of the end."""
        yield LlambaChunk(None, "", reason_of(self.finished()))

    def whole(self) -> str:
        """Return the text of the whole answer."""
        return self.text
