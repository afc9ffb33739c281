"""The bridge between the engine's thread and an event loop.

Used by the service. The engine runs on a thread of its own. Requests and probes wait in a backlog
until a slot is free and the thread takes them; cancellations come through an inbox. The events of
each request are emitted on the loop, those of all steps since the last time together. Knows neither
text nor HTTP. The only file that imports both `threading` and `asyncio`.
"""

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from jaxllama.engine.engine import Engine
from jaxllama.engine.generation import Generation
from jaxllama.engine.probes import InSteps
from jaxllama.errors import EngineStopped, JaxLlamaError
from jaxllama.request import Event, Finished, GenerationRequest, TextTail, Token

logger = logging.getLogger(__name__)

T = TypeVar("T")
Job = Callable[[], None]
# The events of one request in one step (the last event of a request is Finished), or its error.
Emitted = Sequence[Event] | JaxLlamaError
Emit = Callable[[Emitted], None]  # called on the loop

LONGEST_STEPS = 5  # a busy engine that takes so many times its longest step is stalled


@dataclass(eq=False, slots=True)
class Ticket:
    """One request from a client, in the backlog or in the engine."""

    request: GenerationRequest
    tail: TextTail | None
    emit: Emit
    client: str = ""  # the client that is charged; "" is the server itself
    generation: Generation | None = None  # set and read by the thread only

    @property
    def size(self) -> int:
        """Count the tokens of the request's prompts."""
        return sum(map(len, self.request.prompts))

    @property
    def slots(self) -> int:
        """Count the slots that the request needs at once."""
        return len(self.request.prompts)

    @property
    def is_probe(self) -> bool:
        """Return False: this work generates tokens."""
        return False


@dataclass(frozen=True)
class Question(Generic[T]):
    """A task for the engine that draws no token: log-probabilities, logits or an embedding.

    `begin` creates a generator, such as `Probes.peek`; its return value is the answer.
    """

    begin: Callable[[Engine], InSteps[T]]
    tokens: int  # the most tokens that it computes
    slots: int = 1  # 0 if it runs beside the engine's slots, as an encoder does


@dataclass(eq=False, slots=True)
class Probe:
    """One question of a client, in the backlog or in the engine."""

    question: Question[Any]
    client: str
    answer: asyncio.Future[Any]
    steps: InSteps[Any] | None = None  # used by the thread only; None until it holds a slot

    @property
    def size(self) -> int:
        """Return an upper bound of the number of tokens that the engine computes for this work."""
        return self.question.tokens

    @property
    def slots(self) -> int:
        """Return the number of slots that this work needs: 1, or 0, as for loading an adapter."""
        return self.question.slots

    @property
    def is_probe(self) -> bool:
        """Return True: this work reads given tokens and generates none."""
        return True


class Backlog(Protocol):
    """The requests and probes that wait for a slot, in order.

    The event loop and the engine's thread may both call its methods.
    """

    def __len__(self) -> int: ...

    @property
    def is_shared(self) -> bool:
        """Say whether several clients use the engine."""

    def push(self, work: Ticket | Probe, /) -> None:
        """Add a request, or a probe (which reads tokens and generates none), to the backlog."""

    def remove(self, work: Ticket | Probe, /) -> bool:
        """Remove work from the backlog; return False if the backlog does not hold it."""

    def pop(self, free: int, /) -> Ticket | Probe | None:
        """Remove and return the next request or probe that fits `free` slots, or None.

        A probe reads known tokens and generates none. The caller must call `ended` with the
        returned work once that work has ended.
        """

    def charge(self, work: Ticket | Probe, tokens: int, /) -> None:
        """Add `tokens` computed tokens to the account of the client of `work`.

        `work` is a request, or a probe, which reads known tokens and generates none.
        """

    def ended(self, work: Ticket | Probe, /) -> None:
        """Note that `work`, which `pop` returned, has ended and holds no slot any more."""

    def drain(self) -> list[Ticket | Probe]:
        """Remove all work from the backlog and return it."""


@dataclass(frozen=True)
class Pulse:
    """Counts and times of the engine thread's steps; replaced as a whole after each step."""

    steps: int = 0
    seconds: float = 0.0  # of all steps together
    longest_step: float = 0.0
    busy_since: float | None = None  # start of the present work; None while the thread waits

    def after_step(self, seconds: float, now: float) -> "Pulse":
        """Return a copy that counts one more step, which took `seconds` and ended at time `now`."""
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
        """Prepare a thread that runs `engine` on work from `backlog`; `start` starts it.

        An engine that takes less than `patience` seconds for a step is never reported as stalled.
        `clock` returns seconds; it may leave out time in which the process was stopped.
        """
        self.engine = engine
        self.backlog = backlog
        self._clock = clock
        self.patience = patience
        self.failure: BaseException | None = None
        self.pulse = Pulse()
        self._inbox: queue.SimpleQueue[tuple[Job, Job] | None] = queue.SimpleQueue()
        self._tickets: dict[int, Ticket] = {}  # by generation id; used by the thread only
        self._probes: deque[Probe] = deque()  # taken from the backlog; used by the thread only
        self._probe_paused = False  # probes were paused in the last turn
        self._loop: asyncio.AbstractEventLoop | None = None
        # Calls that wait for the event loop; it makes all of them when it wakes up.
        self._calls: deque[Callable[[], None]] = deque()
        self._wakes_loop = threading.Lock()  # held from a wake-up until the loop makes the calls
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread; call from the event loop that will use it."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self, seconds: float | None = None) -> bool:
        """End the thread after its current step; return False if it still runs after `seconds`."""
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join, seconds)
        return not self._thread.is_alive()

    def submit(
        self, request: GenerationRequest, tail: TextTail | None, emit: Emit, client: str = ""
    ) -> Ticket:
        """Put a request into the backlog and return the `Ticket` by which it can be cancelled.

        `tail` converts the generated tokens to text; None: the events have token ids only. `emit`
        is called on the event loop with the request's events, or with the error that ended it.
        `client` is the name of the client to whom the computed tokens are charged; "" stands for
        the server itself.
        """
        ticket = Ticket(request, tail, emit, client)
        self._push(ticket)
        return ticket

    def cancel(self, ticket: Ticket) -> bool:
        """Cancel the request of a ticket; return False if it was still in the backlog.

        A request that is cancelled in the backlog emits no event. `ticket` comes from `submit`.
        """
        if self.backlog.remove(ticket):
            return False

        def cancel() -> None:
            if ticket.generation is not None:
                self.engine.cancel(ticket.generation)

        self._send(cancel, lambda: None)
        return True

    async def ask(self, question: Question[T], client: str = "") -> T:
        """Return the engine's answer to a question, such as the log-probabilities of given tokens.

        A question is a task that generates no tokens. It waits in the backlog, then one piece of it
        is computed per engine step. If the caller is cancelled, the question leaves the backlog or
        frees its slot. `client` is the name of the client who asks; "" stands for the server
        itself.
        """
        probe = Probe(question, client, asyncio.get_running_loop().create_future())
        self._push(probe)
        try:
            answer: T = await probe.answer
            return answer
        finally:
            self.backlog.remove(probe)

    def stalled(self) -> float | None:
        """Return the seconds since the last step if the engine is stalled, else None."""
        pulse = self.pulse
        if pulse.busy_since is None:
            return None
        seconds = self._clock() - pulse.busy_since
        return seconds if seconds > max(self.patience, LONGEST_STEPS * pulse.longest_step) else None

    # On the loop.

    def _push(self, work: Ticket | Probe) -> None:
        """Add a request or a probe to the backlog, and wake the thread."""
        self.backlog.push(work)
        self._send(lambda: None, self._refuse_backlog)

    def _refuse_backlog(self) -> None:
        """End all work in the backlog with the error EngineStopped."""
        for work in self.backlog.drain():
            if isinstance(work, Ticket):
                work.emit(self._stopped())
            else:
                settle(work.answer, None, self._stopped())

    def _send(self, job: Job, refuse: Job) -> None:
        """Have the thread call `job`; if the thread has ended, let the event loop call `refuse`."""
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
        """Run the thread: call `turn` until the thread is stopped or the engine fails."""
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
        """Take work from the backlog, compute a piece of a probe, step the engine, emit events.

        A probe reads known tokens and generates none. While a request waits for its first token,
        only every second call computes a piece of a probe.
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
            by_ticket = self._by_ticket(events)
            self._call(*(partial(ticket.emit, its) for ticket, its in by_ticket))

    def _take_in(self) -> bool:
        """Call the functions sent to the thread, and wait for more while there is nothing to do.

        Waits without a limit if there is no work at all, and as long as the engine can spare if
        the device is busy. Returns False if the thread is to stop.
        """
        until = self._clock() + (0.0 if self._probes else self.engine.spare_seconds)
        while True:
            waits = self.engine.idle and not self._probes and not self.backlog
            if waits:
                self.pulse = replace(self.pulse, busy_since=None)
            spare = until - self._clock()
            try:
                job = self._inbox.get(waits or spare > 0, None if waits else max(spare, 0))
            except queue.Empty:
                return True
            if self.pulse.busy_since is None:
                self.pulse = replace(self.pulse, busy_since=self._clock())
            if job is None:
                return False
            job[0]()

    def _take_work(self) -> None:
        """Move requests and probes from the backlog to the engine, as many as fit into free slots.

        A probe reads known tokens and generates none. Tells the engine whether more requests wait
        and whether several clients share the engine.
        """
        # For probes that will start.
        claimed = sum(probe.slots for probe in self._probes if probe.steps is None)
        while work := self.backlog.pop(self.engine.room - claimed):
            if isinstance(work, Ticket):
                self._submit(work)
            else:
                self._probes.append(work)
                claimed += work.slots
        self.engine.requests_wait = bool(self.backlog)
        self.engine.is_shared = self.backlog.is_shared

    def _submit(self, ticket: Ticket) -> None:
        try:
            request, tail = ticket.request, ticket.tail
            ticket.generation = self.engine.submit(request, tail, client=ticket.client)
        except JaxLlamaError as error:  # the client gets the refusal
            self.backlog.ended(ticket)
            self._call(partial(ticket.emit, error))
        else:
            self.backlog.charge(ticket, ticket.size)
            self._tickets[ticket.generation.id] = ticket

    def _by_ticket(self, events: Sequence[Event]) -> list[tuple[Ticket, list[Event]]]:
        """Group events by the request (`Ticket`) that they belong to, in the order of first events.

        Charges the requests' clients for the generated tokens, and forgets requests that have
        ended.
        """
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
        """Compute one piece of one probe (work that generates no tokens); probes take turns."""
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
        except Exception as error:  # the client gets the error
            self._end_probe(probe, None, error)
        else:
            self._probes.append(probe)

    def _end_probe(self, probe: Probe, found: Any, error: Exception | None) -> None:
        self.backlog.ended(probe)
        self._call(partial(settle, probe.answer, found, error))

    def _call(self, *calls: Callable[[], None]) -> None:
        """Have the event loop make the calls, and wake it unless it has been woken already.

        A loop that is behind makes all waiting calls at once, and then serves its sockets again.
        With a wake-up for each step, the calls of fast steps would keep it from new requests until
        the engine has nothing to do.
        """
        loop = self._loop
        if loop is None or loop.is_closed():
            return
        self._calls += calls
        if self._wakes_loop.acquire(blocking=False):
            loop.call_soon_threadsafe(self._make_calls)

    def _make_calls(self) -> None:
        """Make all calls that wait for the event loop; runs on the loop."""
        self._wakes_loop.release()  # first: a call that is added from now on wakes the loop again
        for _ in range(len(self._calls)):
            try:
                self._calls.popleft()()
            except Exception:
                logger.exception("a call on the event loop failed")

    def _emit_end(self) -> None:
        """End all work, in the backlog and in progress, with the error EngineStopped.

        Runs on the event loop after the thread has ended.
        """
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


def settle(answer: asyncio.Future[T], found: T | None, error: BaseException | None) -> None:
    """Set the result `found` of a future, or `error` if there is one; runs on the event loop.

    Does nothing if the future is done or cancelled.
    """
    if answer.done():
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(found)  # type: ignore[arg-type]
