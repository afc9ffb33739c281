"""`/batch` of LLaMbA's API: up to thousands of answers to one request.

The queue takes them piece by piece (`service.open_many`), and they are cancelled as one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import msgspec
from aiohttp import web

from jaxllama.errors import InvalidParameter, PromptTooLong
from jaxllama.limits import check_count
from jaxllama.request import Event, Finished
from jaxllama.serve.decode import note_ignored
from jaxllama.serve.dialects.llamba.answering import LlambaAnswering, too_long
from jaxllama.serve.dialects.llamba.shapes import (
    LlambaChatQuery,
    LlambaChunk,
    LlambaCompletionQuery,
    LlambaQuery,
    reason_of,
)
from jaxllama.serve.endpoints import Endpoint, RequestShape
from jaxllama.serve.keys import CALLER, SETTINGS
from jaxllama.serve.wire import SSE, ResponseStream, one_json
from jaxllama.service import Ask, GenerationService, Model
from jaxllama.service.answers import Answers


class LlambaQueryBatch(RequestShape, kw_only=True):
    """Texts to continue and conversations to answer, numbered in this order."""

    completion_queries: list[LlambaCompletionQuery] | None = msgspec.field(
        name="completionQueries", default=None
    )
    chat_queries: list[LlambaChatQuery] | None = msgspec.field(name="chatQueries", default=None)
    stop: list[str] | None = None  # the end of every answer, which keeps it
    stream: bool | None = None

    @property
    def queries(self) -> list[LlambaCompletionQuery | LlambaChatQuery]:
        """All queries, completions before chats; the number of a query is its index here."""
        return [*(self.completion_queries or ()), *(self.chat_queries or ())]


class LlambaBatchItem(msgspec.Struct):
    """An answer, or a piece of one, with its number."""

    id: int
    response: LlambaChunk


class LlambaBatchChunk(msgspec.Struct):
    """One line of a stream: at most one piece of each answer that has not ended."""

    responses: list[LlambaBatchItem]


BATCH = Endpoint(
    "POST",
    "/batch",
    "Answer many queries, in LLaMbA's form",
    body=LlambaQueryBatch,
    answer=list[LlambaBatchItem],
    events=(LlambaBatchChunk,),
)


class LlambaBatch:
    """The handler of batches."""

    def __init__(self, answering: LlambaAnswering) -> None:
        self._answering = answering

    async def answer(self, request: web.Request, service: GenerationService) -> web.StreamResponse:
        """Answer POST /batch: the answers to all queries, as one list or as a stream."""
        body, _ = await BATCH.read(request, service, LlambaQueryBatch)
        queries = body.queries
        check_queries(request, queries)
        stops = [stop.replace("\\n", "\n") for stop in body.stop or ()]
        asks = [self._ask(query, service.model, stops) for query in queries]
        try:
            async with service.open_many(asks, request[CALLER]) as answers:
                if body.stream:
                    return await write_lines(request, answers, stops)
                return one_json(await collect(answers, stops))
        except PromptTooLong as error:
            if len(asks) > 1:
                raise  # which query it is, only its own numbers say
            raise await too_long(request, service, asks[0]) from error

    def _ask(
        self,
        query: LlambaCompletionQuery | LlambaChatQuery,
        model: Model,
        stops: Sequence[str],
    ) -> Ask:
        """Convert one query to a generation task; add `stops` to the stop strings of the query."""
        if isinstance(query, LlambaChatQuery):
            ask = self._answering.ask_of_chat(query, model)
        else:
            ask = self._answering.ask_of_completion(query, model, trims=True)
        if not stops:
            return ask
        return replace(ask, knobs={**ask.knobs, "stop": [*(query.stop or ()), *stops]})


def check_queries(request: web.Request, queries: Sequence[LlambaQuery]) -> None:
    """Raise InvalidParameter if the batch is empty or too large, or if a query has a wrong field.

    The names of fields without effect are reported in a response header.
    """
    if not queries:
        raise InvalidParameter(
            "completionQueries and chatQueries are empty; expected at least one query",
            "completionQueries",
        )
    check_count("queries", len(queries))
    strict = request.app[SETTINGS].strict
    ignored: dict[str, None] = {}
    for query in queries:
        query.check()
        ignored |= dict.fromkeys(query.ignored(strict=strict))
    if any(query.stream is not None for query in queries):
        ignored["stream"] = None
    note_ignored(request, [f"queries[].{name}" for name in ignored])


async def write_lines(
    request: web.Request, answers: Answers, stops: Sequence[str]
) -> web.StreamResponse:
    """Stream the answers: each line has the new texts of several answers.

    An answer that ended at a string in `stops` is sent with this string at its end.
    """
    async with ResponseStream(request, SSE) as lines:
        while events := await answers.next_events():
            await lines.send_all(LlambaBatchChunk(items) for items in join(events, stops))
        await lines.finish(says_done=False)
    return lines.response


def join(
    events: Sequence[tuple[int, Event]], stops: Sequence[str]
) -> Iterator[list[LlambaBatchItem]]:
    """Yield at most two lines of a stream, each a list of items: new texts, then ends of answers.

    Each event comes with the number of its answer. An answer that ended at a string in `stops` is
    sent with this string at its end.
    """
    texts: dict[int, str] = {}
    ends: list[LlambaBatchItem] = []
    for index, event in events:
        texts[index] = texts.get(index, "") + text_of(event, stops)
        if isinstance(event, Finished):
            ends.append(LlambaBatchItem(index, LlambaChunk(None, "", reason_of(event))))
    told = [
        LlambaBatchItem(index, LlambaChunk(None, text, "none"))
        for index, text in texts.items()
        if text
    ]
    for items in (told, ends):
        if items:
            yield items


async def collect(answers: Answers, stops: Sequence[str]) -> list[LlambaBatchItem]:
    """Return all answers when they have ended, in the order of their numbers.

    An answer that ended at a string in `stops` has this string at its end.
    """
    texts: dict[int, list[str]] = {}
    ends: dict[int, Finished] = {}
    async for index, event in answers:
        texts.setdefault(index, []).append(text_of(event, stops))
        if isinstance(event, Finished):
            ends[index] = event
    return [
        LlambaBatchItem(index, LlambaChunk("".join(texts[index]), None, reason_of(ends[index])))
        for index in sorted(ends)
    ]


def text_of(event: Event, stops: Sequence[str]) -> str:
    """Return the text of an event.

    If a stop string in `stops` ended the answer, the text ends with it.
    """
    stop = event.stop if isinstance(event, Finished) else None
    return event.text + (stop if stop is not None and stop in stops else "")
