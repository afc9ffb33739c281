"""Answers: the events of all choices of one request, as one stream.

The service makes an `Answers` for each open request; a dialect iterates it. If a request ends early
(a fault, the operator's time limit, a cancellation, a client that does not read), the iteration
raises the error once and all choices are cancelled. Runs on the event loop; must not know HTTP.
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
    """The sender of a request and its route; the fair queue distinguishes callers by `client`."""

    id: str = field(default_factory=lambda: secrets.token_hex(12))
    client: str = ""
    route: str = ""
    was_opened: bool = False  # then the service logs the end of the request
    # Further fields for the log and the response headers.
    notes: dict[str, str] = field(default_factory=dict)

    def as_facts(self) -> dict[str, str]:
        """Return the caller's id, client, route and notes, as fields for the log."""
        return {"id": self.id, "client": self.client, "route": self.route, **self.notes}


@dataclass(eq=False, slots=True)
class AnswerChoice:
    """One answer of a request: waiting in the queue, running in the engine, or ended."""

    answers: "Answers"
    index: int
    request: GenerationRequest
    tail: TextTail | None  # None: the text of the answer is not wanted
    ticket: Ticket | None = None  # set when the choice is queued
    is_over: bool = False
    usage: Usage | None = None  # set at the end, if the engine reported it
    newest: float | None = None  # time of the newest token

    @property
    def size(self) -> int:
        """Number of prompt tokens, those of a negative prompt (for guidance) included."""
        return sum(map(len, self.request.prompts))


class Answers:
    """Stream of (index, event) of all choices; answer i to prompt p has the index p * n + i.

    Each choice yields Tokens and one Finished at its end; the stream ends when all choices ended.
    """

    def __init__(
        self,
        caller: Caller,
        bounds: Bounds,
        stop: Callable[[AnswerChoice], None],
        waited: Callable[[float, int, bool], None],
    ) -> None:
        self.caller = caller
        self.choices: list[AnswerChoice] = []
        self.error: JaxLlamaError | None = None
        self.refusal: JaxLlamaError | None = None  # the error that the dialect sent as response
        self._clock = asyncio.get_running_loop().time
        self.began = self._clock()
        self.reason: str | None = None  # how the request ended, set when the dialect has finished
        self.first: float | None = None  # time of the first token of any choice
        self._bounds = bounds
        self._stop = stop
        self._waited = waited
        self._inbox: list[tuple[int, Event]] = []
        self._oldest = 0.0  # arrival time of the first event in the inbox
        self._awake = asyncio.Event()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._owed = 0  # choices whose Finished was not returned yet
        self.retired = Usage(0, 0, 0)  # what choices cost that were retired
        self.running = 0  # choices that have been queued and are not over
        self.freed = asyncio.Event()  # set whenever a choice is over

    @property
    def id(self) -> str:
        """Id of the request, by which a client can cancel it."""
        return self.caller.id

    @property
    def requests(self) -> list[GenerationRequest]:
        """Engine requests of the answers, in their order: prompt tokens, seed, token budget."""
        return [choice.request for choice in self.choices]

    async def __aiter__(self) -> AsyncIterator[tuple[int, Event]]:
        while events := await self.next_events():
            for each in events:
                yield each

    async def next_events(self) -> list[tuple[int, Event]]:
        """Wait for at least one event and return all that arrived; [] once all answers have ended.

        Each event is paired with the index of its answer: (index, event). One engine call yields
        several tokens of an answer, which can be sent together. If the request fails, the error is
        raised after the last events were returned.
        """
        while not self._inbox:
            if self.error is not None:
                raise self.error
            if not self._owed:
                return []
            self._awake.clear()
            await self._awake.wait()
        events, self._inbox = self._inbox, []
        self._owed -= sum(isinstance(event, Finished) for _, event in events)
        return events

    # For the service.

    def expect(self, count: int) -> None:
        """Set how many answers have to end before the stream ends."""
        self._owed = count

    def add(self, choices: Sequence[AnswerChoice]) -> None:
        """Add answers that are about to be queued; the stream will yield their events.

        `choices` are the answers.
        """
        self.choices += choices
        self.running += len(choices)

    def retire(self) -> None:
        """Forget the answers that have ended; keep only their token counts.

        Otherwise a search, which requests answers many times, would need more and more memory.
        """
        for choice in self.choices:
            if choice.is_over and choice.usage is not None:
                used, more = self.retired, choice.usage
                self.retired = Usage(
                    used.prompt + more.prompt,
                    used.reused + more.reused,
                    used.generated + more.generated,
                )
        self.choices = [choice for choice in self.choices if not choice.is_over]

    async def wait_for(self, work: asyncio.Future[T]) -> T:
        """Return the result of `work`.

        If the request fails first, `work` is cancelled and the error of the request is raised.
        """
        try:
            await asyncio.wait((work, self._failed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            work.cancel()
        if self.error is not None:
            raise self.error
        return work.result()

    def receive(self, choice: AnswerChoice, update: Emitted) -> None:
        """Pass on what the engine reports about the answer `choice`.

        `update` is the list of new events, which go to the client's stream, or the error that ended
        the answer. An error fails the whole request.
        """
        if isinstance(update, JaxLlamaError):
            self._end(choice)
            self.fail(update)
            return
        end = update[-1]
        if not isinstance(end, Finished):
            self._deliver(choice, update)
            return
        self._end(choice)
        choice.usage = end.usage
        if end.reason in (FinishReason.FAILED, FinishReason.CANCELLED):
            self._deliver(choice, update[:-1])
            self.fail(end.error or Cancelled("the request was cancelled"))
        else:
            self._deliver(choice, update)

    def _end(self, choice: AnswerChoice) -> None:
        choice.is_over = True
        self.running -= 1
        self.freed.set()

    def _deliver(self, choice: AnswerChoice, events: Sequence[Event]) -> None:
        """Put events of the answer `choice` into the client's stream.

        Also records how long the client waited for them. The request fails if too many events are
        left unread for too long.
        """
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
        """Cancel all answers; the stream yields what has arrived, and then raises `error`."""
        if self.error is None:
            self.error = error
            self._awake.set()
            self._failed.set_result(None)
        self.stop()

    def stop(self) -> None:
        """Cancel every answer that has not ended."""
        for choice in self.choices:
            if not choice.is_over:
                self._stop(choice)


@dataclass(frozen=True)
class Outcome:
    """Result and cost of one request, for the log and metrics."""

    id: str
    client: str
    route: str
    reason: str  # how it ended: stop, length, or the code of an error
    choices: int
    prompt: int  # prompt tokens of all choices
    reused: int  # prompt tokens taken from the KV cache
    generated: int
    seconds: float
    seconds_to_first: float | None
    notes: Mapping[str, str]  # of the caller
    error: JaxLlamaError | None = None  # why it did not end well

    def as_facts(self) -> dict[str, object]:
        """Return the outcome as fields for the log, with rounded times and the speed."""
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
            # Over the whole time: a short answer may come in one piece, without later tokens.
            "tokens_per_second": round(self.generated / self.seconds, 1) if self.seconds else None,
        }


class Observer(Protocol):
    """Collects metrics of requests; its methods are called on the event loop."""

    def waited(self, seconds: float, tokens: int, is_first: bool, /) -> None:
        """Record how long a client waited for the next `tokens` tokens of an answer.

        `seconds` count from the tokens before or, for the first ones (`is_first`), from the
        request.
        """

    def ended(self, outcome: Outcome, /) -> None:
        """Record the outcome of a request that has ended and holds no slot."""


def outcome_of(answers: Answers) -> Outcome:
    """Return result and cost of a request that has ended."""
    caller, now = answers.caller, asyncio.get_running_loop().time()
    usages = [choice.usage for choice in answers.choices if choice.usage is not None]
    usages.append(answers.retired)
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
