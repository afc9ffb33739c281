"""The one crossing between the engine's thread and an event loop.

Used by the service. The engine lives on a thread of its own; the loop sends it submissions,
cancellations and questions through an inbox, and each ticket is told its events, a whole step's
worth at a time. Knows neither text nor HTTP. The only file that imports both `threading` and
`asyncio`.
"""

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, overload

from jaxllama.engine.engine import Engine
from jaxllama.engine.generation import Generation
from jaxllama.errors import EngineStopped, JaxLlamaError, QueueFull
from jaxllama.request import Event, Finished, GenerationRequest, TextTail

logger = logging.getLogger(__name__)

T = TypeVar("T")
Job = Callable[[], None]
# Called on the loop with all that one step brought; Finished comes last, or else an error.
Told = Sequence[Event] | JaxLlamaError
Tell = Callable[[Told], None]

LONGEST_STEPS = 5  # a busy engine that takes so many times its longest step is stalled


@dataclass(eq=False, slots=True)
class Ticket:
    """One request handed to the engine."""

    request: GenerationRequest
    tail: TextTail | None
    tell: Tell
    generation: Generation | None = None  # the thread's


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
        *,
        patience: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`patience` is how many seconds a busy engine may take for a step at least.

        `clock` gives seconds, and need not count those in which the process was stopped.
        """
        self.engine = engine
        self._clock = clock
        self.patience = patience
        self.failure: BaseException | None = None
        self.pulse = Pulse()
        self._inbox: queue.SimpleQueue[tuple[Job, Job] | None] = queue.SimpleQueue()
        self._tickets: dict[int, Ticket] = {}  # the thread's, by generation
        self._questions: deque[tuple[Callable[[Engine], Any], asyncio.Future[Any]]] = deque()
        self._looks: deque[tuple[Generator[None, None, Any], asyncio.Future[Any]]] = deque()
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

    def submit(self, request: GenerationRequest, tail: TextTail | None, tell: Tell) -> Ticket:
        """Hand a request over; `tell` gets its events, step by step."""
        ticket = Ticket(request, tail, tell)
        self._send(lambda: self._submit(ticket), lambda: tell(self._stopped()))
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """End what has not ended; it is still told its end."""

        def cancel() -> None:
            if ticket.generation is not None:
                self.engine.cancel(ticket.generation)

        self._send(cancel, lambda: None)

    @overload
    async def ask(self, question: Callable[[Engine], Generator[None, None, T]]) -> T: ...

    @overload
    async def ask(self, question: Callable[[Engine], T]) -> T: ...

    async def ask(self, question: Callable[[Engine], Any]) -> Any:
        """What a function of the engine returns, called between two steps.

        If it returns a generator, as `Engine.peek_by_and_by` does, that is advanced once between
        any two steps, and the answer is what it returns. One that raises QueueFull to begin with
        is called again once a slot is free.
        """
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._send(
            lambda: self._questions.append((question, answer)),
            lambda: settle(answer, None, self._stopped()),
        )
        return await answer

    def stalled(self) -> float | None:
        """How long a busy engine has made no step, if that is longer than it may be."""
        pulse = self.pulse
        if pulse.busy_since is None:
            return None
        seconds = self._clock() - pulse.busy_since
        return seconds if seconds > max(self.patience, LONGEST_STEPS * pulse.longest_step) else None

    # On the loop.

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
        """Take what has come in, step, tell what happened."""
        try:
            while self._take_in():
                began = self._clock()
                self._look_on()
                self._take_questions()
                events = self.engine.step()
                now = self._clock()
                self.pulse = self.pulse.after_step(now - began, now)
                if events:
                    self._call(tell_all, self._by_ticket(events))
        except BaseException as error:
            logger.exception("the engine has stopped")
            self.failure = error
        if self.failure is None:
            self.failure = EngineStopped("the engine was stopped")
        self._call(self._tell_end)

    def _take_in(self) -> bool:
        """Do what the inbox asks; wait there while the engine has nothing to do."""
        while True:
            waits = self.engine.idle and not self._questions and not self._looks
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

    def _submit(self, ticket: Ticket) -> None:
        try:
            ticket.generation = self.engine.submit(ticket.request, ticket.tail)
        except JaxLlamaError as error:  # a refusal belongs to the one who asked
            self._call(ticket.tell, error)
        else:
            self._tickets[ticket.generation.id] = ticket

    def _by_ticket(self, events: Sequence[Event]) -> list[tuple[Ticket, list[Event]]]:
        """Whose events these are; the last one of a ticket takes it off the list."""
        found: dict[int, tuple[Ticket, list[Event]]] = {}
        for event in events:
            if event.id not in found:
                found[event.id] = self._tickets[event.id], []
            found[event.id][1].append(event)
            if isinstance(event, Finished):
                del self._tickets[event.id]
        return list(found.values())

    def _take_questions(self) -> None:
        """Answer what can be answered at once, begin what takes longer."""
        for _ in range(len(self._questions)):
            question, answer = self._questions.popleft()
            if answer.cancelled():
                continue
            try:
                found = question(self.engine)
                if isinstance(found, Generator):
                    next(found)
                    self._looks.append((found, answer))
                    continue
            except QueueFull as error:
                if not self.engine.idle or self._looks:
                    self._questions.appendleft((question, answer))
                    return
                self._call(settle, answer, None, error)
            except StopIteration as end:
                self._call(settle, answer, end.value, None)
            except Exception as error:  # belongs to the one who asked
                self._call(settle, answer, None, error)
            else:
                self._call(settle, answer, found, None)

    def _look_on(self) -> None:
        """One piece of one look, in turn."""
        if not self._looks:
            return
        look, answer = self._looks.popleft()
        try:
            if answer.cancelled():
                look.close()
                return
            next(look)
        except StopIteration as end:
            self._call(settle, answer, end.value, None)
        except Exception as error:  # belongs to the one who asked
            self._call(settle, answer, None, error)
        else:
            self._looks.append((look, answer))

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(function, *arguments)

    def _tell_end(self) -> None:
        """On the loop, once the thread has ended: everybody learns that there will be no more."""
        tickets = list(self._tickets.values())
        waiting = [answer for _, answer in (*self._questions, *self._looks)]
        self._tickets.clear()
        self._questions.clear()
        self._looks.clear()
        while not self._inbox.empty():  # came in while the thread ended
            job = self._inbox.get()
            if job is not None:
                job[1]()
        for ticket in tickets:
            ticket.tell(self._stopped())
        for answer in waiting:
            settle(answer, None, self._stopped())


def tell_all(told: list[tuple[Ticket, list[Event]]]) -> None:
    """On the loop: to each ticket its events."""
    for ticket, events in told:
        ticket.tell(events)


def settle(answer: asyncio.Future[T], found: T | None, error: BaseException | None) -> None:
    """On the loop: give an answer to whoever still waits for it."""
    if answer.done():
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(found)  # type: ignore[arg-type]
