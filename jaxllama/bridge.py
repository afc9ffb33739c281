"""The one crossing between the engine's thread and an event loop.

Used by the service. The engine lives on a thread of its own. Requests and probes wait in a backlog
until the thread takes them, as many as have a slot; cancellations come through an inbox. The events
of each request are emitted on the loop, a whole step's at a time. Knows neither text nor HTTP. The
only file that imports both `threading` and `asyncio`.
"""

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

from jaxllama.engine.engine import Engine, InSteps
from jaxllama.engine.generation import Generation
from jaxllama.errors import EngineStopped, JaxLlamaError
from jaxllama.request import Event, Finished, GenerationRequest, TextTail, Token

logger = logging.getLogger(__name__)

T = TypeVar("T")
Job = Callable[[], None]
# Called on the loop with all that one step brought; Finished comes last, or else an error.
Emitted = Sequence[Event] | JaxLlamaError
Emit = Callable[[Emitted], None]

LONGEST_STEPS = 5  # a busy engine that takes so many times its longest step is stalled


@dataclass(eq=False, slots=True)
class Ticket:
    """One request on its way through the backlog and the engine."""

    request: GenerationRequest
    tail: TextTail | None
    emit: Emit
    client: str = ""  # whom it is counted for; "" is the server itself
    generation: Generation | None = None  # the thread's

    @property
    def size(self) -> int:
        """Tokens of its prompts."""
        return sum(map(len, self.request.prompts))

    @property
    def slots(self) -> int:
        """How many slots it takes at a time."""
        return len(self.request.prompts)

    @property
    def is_probe(self) -> bool:
        """It generates."""
        return False


@dataclass(frozen=True)
class Question(Generic[T]):
    """What to read in a slot, without generating: log-probabilities, logits, an embedding.

    `begin` makes the engine's generator, such as `Engine.peek_in_steps`; the answer is what that
    returns.
    """

    begin: Callable[[Engine], InSteps[T]]
    tokens: int  # that it computes at most


@dataclass(eq=False, slots=True)
class Probe:
    """One question of a client on its way through the backlog and the engine."""

    question: Question[Any]
    client: str
    answer: asyncio.Future[Any]
    steps: InSteps[Any] | None = None  # the thread's, once it holds a slot

    @property
    def size(self) -> int:
        """Tokens it computes at most."""
        return self.question.tokens

    @property
    def slots(self) -> int:
        """It takes one slot."""
        return 1

    @property
    def is_probe(self) -> bool:
        """It reads."""
        return True


class Backlog(Protocol):
    """Requests and probes that wait for a slot, and their order; safe from loop and thread."""

    def __len__(self) -> int: ...

    @property
    def is_shared(self) -> bool:
        """Whether several clients use the engine."""

    def push(self, work: Ticket | Probe, /) -> None:
        """Let work wait."""

    def remove(self, work: Ticket | Probe, /) -> bool:
        """Take work out; False if it does not wait."""

    def pop(self, free: int, /) -> Ticket | Probe | None:
        """The next work that may take some of `free` slots; `ended` must be called after it."""

    def charge(self, work: Ticket | Probe, tokens: int, /) -> None:
        """The engine computed so many tokens for this work."""

    def ended(self, work: Ticket | Probe, /) -> None:
        """Work that was handed out holds no slot any more."""

    def drain(self) -> list[Ticket | Probe]:
        """Take out all work."""


@dataclass(frozen=True)
class Pulse:
    """What the thread did last; replaced whole."""

    steps: int = 0
    seconds: float = 0.0  # in all steps together
    longest_step: float = 0.0
    busy_since: float | None = None  # when it took up what it does now; None while it waits

    def after_step(self, seconds: float, now: float) -> "Pulse":
        """One step later."""
        longest = max(self.longest_step, seconds)
        return Pulse(self.steps + 1, self.seconds + seconds, longest, now)


class EngineThread:
    """Runs an engine until `stop`; safe to use from one event loop."""

    def __init__(
        self,
        engine: Engine,
        backlog: Backlog,
        *,
        patience: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Run `engine` on work from `backlog`.

        `patience` is how many seconds a busy engine may take for a step at least. `clock` gives
        seconds, and need not count those in which the process was stopped.
        """
        self.engine = engine
        self.backlog = backlog
        self._clock = clock
        self.patience = patience
        self.failure: BaseException | None = None
        self.pulse = Pulse()
        self._inbox: queue.SimpleQueue[tuple[Job, Job] | None] = queue.SimpleQueue()
        self._tickets: dict[int, Ticket] = {}  # the thread's, by generation
        self._probes: deque[Probe] = deque()  # the thread's: taken from the backlog
        self._probe_paused = False  # in the last turn
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin; call from within the event loop that will use it."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self, seconds: float | None = None) -> bool:
        """Let the thread end after its current step; False if it did not within the time."""
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join, seconds)
        return not self._thread.is_alive()

    def submit(
        self, request: GenerationRequest, tail: TextTail | None, emit: Emit, client: str = ""
    ) -> Ticket:
        """Put a request into the backlog; `tell` gets its events, step by step."""
        ticket = Ticket(request, tail, emit, client)
        self._push(ticket)
        return ticket

    def cancel(self, ticket: Ticket) -> bool:
        """End a request; False if it was still in the backlog, and nothing will be told of it."""
        if self.backlog.remove(ticket):
            return False

        def cancel() -> None:
            if ticket.generation is not None:
                self.engine.cancel(ticket.generation)

        self._send(cancel, lambda: None)
        return True

    async def ask(self, question: Question[T], client: str = "") -> T:
        """The answer to a question: it waits in the backlog and is read a piece per step.

        Cancelling the caller takes the probe out of the backlog or of its slot.
        """
        probe = Probe(question, client, asyncio.get_running_loop().create_future())
        self._push(probe)
        try:
            answer: T = await probe.answer
            return answer
        finally:
            self.backlog.remove(probe)

    def stalled(self) -> float | None:
        """How long a busy engine has made no step, if that is longer than it may be."""
        pulse = self.pulse
        if pulse.busy_since is None:
            return None
        seconds = self._clock() - pulse.busy_since
        return seconds if seconds > max(self.patience, LONGEST_STEPS * pulse.longest_step) else None

    # On the loop.

    def _push(self, work: Ticket | Probe) -> None:
        """Let work wait in the backlog, and wake the thread."""
        self.backlog.push(work)
        self._send(lambda: None, self._refuse_backlog)

    def _refuse_backlog(self) -> None:
        """Answer everything that waits with the end of the thread."""
        for work in self.backlog.drain():
            if isinstance(work, Ticket):
                work.emit(self._stopped())
            else:
                settle(work.answer, None, self._stopped())

    def _send(self, job: Job, refuse: Job) -> None:
        """Have the thread do a job; if it has ended, the loop refuses instead."""
        if self.failure is None:
            self._inbox.put((job, refuse))
        else:
            asyncio.get_running_loop().call_soon(refuse)

    def _stopped(self) -> EngineStopped:
        error = EngineStopped("the engine has stopped")
        error.__cause__ = self.failure
        return error

    # On the thread.

    def _run(self) -> None:
        """Take turns until the thread is stopped or the engine fails."""
        try:
            while self._take_in():
                self.turn()
        except BaseException as error:
            logger.exception("the engine has stopped")
            self.failure = error
        if self.failure is None:
            self.failure = EngineStopped("the engine was stopped")
        self._call(self._emit_end)

    def turn(self) -> None:
        """Take work that has a slot, compute a piece of one probe, step, emit the events.

        While a request waits for its first token, only every second turn computes a piece.
        """
        began = self._clock()
        self._take_work()
        self._probe_paused = self.engine.owes_first_token and not self._probe_paused
        if not self._probe_paused:
            self._advance_probe()
        events = self.engine.step()
        now = self._clock()
        self.pulse = self.pulse.after_step(now - began, now)
        if events:
            self._call(emit_all, self._by_ticket(events))

    def _take_in(self) -> bool:
        """Do what the inbox asks; wait there while the engine has nothing to do."""
        while True:
            waits = self.engine.idle and not self._probes and not self.backlog
            if waits:
                self.pulse = replace(self.pulse, busy_since=None)
            try:
                job = self._inbox.get(block=waits)
            except queue.Empty:
                return True
            if self.pulse.busy_since is None:
                self.pulse = replace(self.pulse, busy_since=self._clock())
            if job is None:
                return False
            job[0]()

    def _take_work(self) -> None:
        """Take from the backlog what has a slot, and tell the engine what is left there."""
        claimed = sum(probe.steps is None for probe in self._probes)  # by probes that will begin
        while work := self.backlog.pop(self.engine.room - claimed):
            if isinstance(work, Ticket):
                self._submit(work)
            else:
                self._probes.append(work)
                claimed += 1
        self.engine.requests_wait = bool(self.backlog)
        self.engine.is_shared = self.backlog.is_shared

    def _submit(self, ticket: Ticket) -> None:
        try:
            request, tail = ticket.request, ticket.tail
            ticket.generation = self.engine.submit(request, tail, client=ticket.client)
        except JaxLlamaError as error:  # a refusal belongs to the one who asked
            self.backlog.ended(ticket)
            self._call(ticket.emit, error)
        else:
            self.backlog.charge(ticket, ticket.size)
            self._tickets[ticket.generation.id] = ticket

    def _by_ticket(self, events: Sequence[Event]) -> list[tuple[Ticket, list[Event]]]:
        """The events of each ticket; charges its tokens, and forgets it with its last event."""
        found: dict[int, tuple[Ticket, list[Event]]] = {}
        for event in events:
            if event.id not in found:
                found[event.id] = self._tickets[event.id], []
            found[event.id][1].append(event)
        for ticket, its in found.values():
            self.backlog.charge(ticket, sum(isinstance(event, Token) for event in its))
            if isinstance(its[-1], Finished):
                del self._tickets[its[-1].id]
                self.backlog.ended(ticket)
        return list(found.values())

    def _advance_probe(self) -> None:
        """Compute one piece of one probe; probes take turns, and none has two of a client's."""
        if not self._probes:
            return
        probe = self._probes.popleft()
        try:
            if probe.answer.cancelled():
                if probe.steps is not None:
                    probe.steps.close()
                self.backlog.ended(probe)
                return
            if probe.steps is None:
                probe.steps = probe.question.begin(self.engine)
            self.backlog.charge(probe, next(probe.steps))
        except StopIteration as end:
            self._end_probe(probe, end.value, None)
        except Exception as error:  # belongs to the one who asked
            self._end_probe(probe, None, error)
        else:
            self._probes.append(probe)

    def _end_probe(self, probe: Probe, found: Any, error: Exception | None) -> None:
        self.backlog.ended(probe)
        self._call(settle, probe.answer, found, error)

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(function, *arguments)

    def _emit_end(self) -> None:
        """Once the thread has ended: tell the loop that nothing more will come."""
        tickets, probes = list(self._tickets.values()), list(self._probes)
        self._tickets.clear()
        self._probes.clear()
        for ticket in tickets:
            self.backlog.ended(ticket)
        for probe in probes:
            self.backlog.ended(probe)
        while not self._inbox.empty():  # came in while the thread ended
            job = self._inbox.get()
            if job is not None:
                job[1]()
        for ticket in tickets:
            ticket.emit(self._stopped())
        for probe in probes:
            settle(probe.answer, None, self._stopped())
        self._refuse_backlog()


def emit_all(told: list[tuple[Ticket, list[Event]]]) -> None:
    """On the loop: to each ticket its events."""
    for ticket, events in told:
        ticket.emit(events)


def settle(answer: asyncio.Future[T], found: T | None, error: BaseException | None) -> None:
    """On the loop: give an answer to whoever still waits for it."""
    if answer.done():
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(found)  # type: ignore[arg-type]
