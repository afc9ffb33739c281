"""Answers: the events of all choices of one request, as one stream.

Made by the service for each request that is open; a dialect iterates it. Whatever ends it early -
a fault, the operator's time limit, a cancellation, a reader who does not read - is raised there,
once, and stops all choices. Lives on the event loop; must not know HTTP.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from jaxllama.bridge import Emitted, Ticket
from jaxllama.errors import Cancelled, JaxLlamaError, SlowReader
from jaxllama.request import Event, Finished, FinishReason, GenerationRequest, TextTail, Usage
from jaxllama.service.bounds import Bounds

T = TypeVar("T")


@dataclass
class Caller:
    """Who asks, and where; fairness goes by `client`."""

    id: str = field(default_factory=lambda: secrets.token_hex(12))
    client: str = ""
    route: str = ""
    was_opened: bool = False  # the service tells how it went
    notes: dict[str, str] = field(default_factory=dict)  # more for the log and the answer's headers

    def as_facts(self) -> dict[str, str]:
        """For the log."""
        return {"id": self.id, "client": self.client, "route": self.route, **self.notes}


@dataclass(eq=False, slots=True)
class Choice:
    """One stream of a request: waiting in the queue, in the engine, or over."""

    answers: "Answers"
    index: int
    request: GenerationRequest
    tail: TextTail
    ticket: Ticket | None = None  # once it is in the queue
    is_over: bool = False
    usage: Usage | None = None  # once it is over, if the engine could say
    newest: float | None = None  # when its last token came

    @property
    def size(self) -> int:
        """Tokens of its prompts."""
        return sum(map(len, self.request.prompts))


class Answers:
    """(index, event) of every choice; answer i to prompt p has the index p * n + i.

    Tokens, and for each choice one Finished at its end; the stream ends when all have ended.
    """

    def __init__(
        self,
        caller: Caller,
        bounds: Bounds,
        stop: Callable[[Choice], None],
        waited: Callable[[float, int, bool], None],
    ) -> None:
        self.caller = caller
        self.choices: list[Choice] = []
        self.error: JaxLlamaError | None = None
        self.refusal: JaxLlamaError | None = None  # the error that its dialect answered
        self._clock = asyncio.get_running_loop().time
        self.began = self._clock()
        self.reason: str | None = None  # why its dialect has left, once it has
        self.first: float | None = None  # when the first token of all came
        self._bounds = bounds
        self._stop = stop
        self._waited = waited
        self._inbox: list[tuple[int, Event]] = []
        self._oldest = 0.0  # when the first of these came
        self._awake = asyncio.Event()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._owed = 0  # choices whose end was not handed out yet

    @property
    def id(self) -> str:
        """The request's, by which it can be cancelled."""
        return self.caller.id

    @property
    def requests(self) -> list[GenerationRequest]:
        """What was asked of the engine, by index: prompts in tokens, seeds, budgets."""
        return [choice.request for choice in self.choices]

    async def __aiter__(self) -> AsyncIterator[tuple[int, Event]]:
        while news := await self.news():
            for each in news:
                yield each

    async def news(self) -> list[tuple[int, Event]]:
        """What has come by now, at least one event; nothing once all have ended.

        An engine's call brings several tokens of a choice, which can be handed on together.
        """
        while not self._inbox:
            if self.error is not None:
                raise self.error
            if not self._owed:
                return []
            self._awake.clear()
            await self._awake.wait()
        news, self._inbox = self._inbox, []
        self._owed -= sum(isinstance(event, Finished) for _, event in news)
        return news

    # For the service.

    def begin(self, choices: list[Choice]) -> None:
        """These are what will be told."""
        self.choices, self._owed = choices, len(choices)

    async def unless_over(self, work: asyncio.Future[T]) -> T:
        """The result of `work`, given up as soon as the request is."""
        try:
            await asyncio.wait((work, self._failed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            work.cancel()
        if self.error is not None:
            raise self.error
        return work.result()

    def tell(self, choice: Choice, told: Emitted) -> None:
        """Something happened to a choice."""
        if isinstance(told, JaxLlamaError):
            choice.is_over = True
            self.fail(told)
            return
        end = told[-1]
        if not isinstance(end, Finished):
            self._put(choice, told)
            return
        choice.is_over, choice.usage = True, end.usage
        if end.reason in (FinishReason.FAILED, FinishReason.CANCELLED):
            self._put(choice, told[:-1])
            self.fail(end.error or Cancelled("the request was cancelled"))
        else:
            self._put(choice, told)

    def _put(self, choice: Choice, events: Sequence[Event]) -> None:
        """Keep what is new, unless nobody will be told."""
        if self.error is not None or not events:
            return
        now = self._clock()
        tokens = len(events) - isinstance(events[-1], Finished)
        if tokens:
            is_first = choice.newest is None
            self._waited(now - (choice.newest or self.began), tokens, is_first)
            choice.newest = now
            self.first = self.first or now
        if not self._inbox:
            self._oldest = now
        self._inbox += [(choice.index, event) for event in events]
        self._awake.set()
        most, seconds = self._bounds.behind_events, self._bounds.behind_seconds
        if len(self._inbox) > most and now - self._oldest > seconds:
            self._inbox.clear()
            self.fail(
                SlowReader(
                    f"the client is more than {most} tokens and {seconds} s behind; read "
                    f"faster, or ask without streaming"
                )
            )

    def fail(self, error: JaxLlamaError) -> None:
        """End all choices; what was told already can still be read, then the error is raised."""
        if self.error is None:
            self.error = error
            self._awake.set()
            self._failed.set_result(None)
        self.stop()

    def stop(self) -> None:
        """Whatever has not ended is not wanted any more."""
        for choice in self.choices:
            if not choice.is_over:
                self._stop(choice)


@dataclass(frozen=True)
class Outcome:
    """How one request went."""

    id: str
    client: str
    route: str
    reason: str  # how it ended: stop, length, or the code of an error
    choices: int
    prompt: int  # tokens, each prompt counted once
    reused: int  # of these, not computed again
    generated: int
    seconds: float
    seconds_to_first: float | None
    notes: Mapping[str, str]  # of the caller
    error: JaxLlamaError | None = None  # why it did not end well

    def as_facts(self) -> dict[str, object]:
        """For the log."""
        first = self.seconds_to_first
        figures = {
            name: value for name, value in vars(self).items() if name not in ("error", "notes")
        }
        return {
            **figures,
            **self.notes,
            **({} if self.error is None else self.error.as_facts() | {"reason": self.reason}),
            "seconds": round(self.seconds, 4),
            "seconds_to_first": None if first is None else round(first, 4),
            # Of all its time: a short answer may come in one piece, with none behind the first.
            "tokens_per_second": round(self.generated / self.seconds, 1) if self.seconds else None,
        }


class Observer(Protocol):
    """Whoever counts and measures; called on the event loop."""

    def waited(self, seconds: float, tokens: int, is_first: bool, /) -> None:
        """So many tokens of one answer came, so long after the request or the ones before."""

    def ended(self, outcome: Outcome, /) -> None:
        """A request is over and all it held is free."""


def outcome_of(answers: Answers) -> Outcome:
    """What is told about a request that is over."""
    caller, now = answers.caller, asyncio.get_running_loop().time()
    usages = [choice.usage for choice in answers.choices if choice.usage is not None]
    return Outcome(
        id=caller.id,
        client=caller.client,
        route=caller.route,
        reason=answers.reason or "",
        choices=len(answers.choices),
        prompt=sum(usage.prompt for usage in usages),
        reused=sum(usage.reused for usage in usages),
        generated=sum(usage.generated for usage in usages),
        seconds=now - answers.began,
        seconds_to_first=answers.first and answers.first - answers.began,
        notes=caller.notes,
        error=answers.error or answers.refusal,
    )
