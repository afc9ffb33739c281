"""The service: the interface between a front end and one model that serves many clients.

Made by the server, used by its dialects. The service loads the model, makes checked requests of
generation tasks off the event loop, and keeps them in a fair queue, from which the engine's thread
takes a request when a slot is free. It also reports state and metrics. Runs on one event loop; must
not know HTTP.

    async with service.open(Ask(prompts=["Once"]), caller) as answers:
        async for index, event in answers:  # leaving the block cancels unfinished answers
            ...
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from jaxllama.bridge import EngineThread, Probe, Question, Ticket
from jaxllama.engine.adapters import AdapterWeights, check_adapter_name, loaded
from jaxllama.engine.engine import Engine
from jaxllama.engine.probes import InSteps
from jaxllama.errors import (
    Cancelled,
    CheckpointError,
    EngineStopped,
    InvalidParameter,
    JaxLlamaError,
    NotReady,
    TimedOut,
)
from jaxllama.intake import PreparedRequest
from jaxllama.request import GenerationRequest, TextTail
from jaxllama.service.answers import AnswerChoice, Answers, Caller, Observer, outcome_of
from jaxllama.service.asking import (
    Ask,
    check_cost,
    count_choices,
    estimate_size,
    has_to_compile,
    prepare_requests,
)
from jaxllama.service.bounds import Bounds
from jaxllama.service.dispatch import Dispatch
from jaxllama.service.fair_queue import FairQueue
from jaxllama.service.model import (
    Model,
    ServedEncoder,
    close_engine,
    confine,
    make_one_token,
    release,
)
from jaxllama.service.patience import until_room
from jaxllama.service.preparation import RequestPreparation
from jaxllama.service.rounds import Rounds
from jaxllama.service.slot_states import SlotState, slot_states
from jaxllama.startup import Startup

__all__ = [
    "Answers",
    "Ask",
    "Bounds",
    "Caller",
    "GenerationService",
    "Model",
    "Observer",
    "Question",
    "ServedEncoder",
    "SlotState",
    "State",
]

logger = logging.getLogger(__name__)

T = TypeVar("T")

SECONDS_PER_CHECK = 1.0  # between two checks of the engine's pulse
PREPARED_PER_WAITING = (
    4  # requests that may wait for preparation, per request that may wait for the engine
)
AHEAD = 2  # answers of one large request that are under way at a time, per slot
GOODBYE_SECONDS = 2.0  # to send clients the error that the server shuts down


class State(StrEnum):
    """State of the service."""

    LOADING = "loading"
    READY = "ready"
    STALLED = "stalled"  # the engine makes no progress
    DRAINING = "draining"
    FAILED = "failed"


class GenerationService:
    """Serves the requests of all clients with one model."""

    def __init__(
        self,
        open_model: Callable[[], Model],
        bounds: Bounds,
        *,
        observer: Observer | None = None,
        log_prompts: bool = False,
        startup: Startup | None = None,
    ) -> None:
        """Store the settings; `start` will call `open_model` in a thread to load the model.

        `bounds` has the limits and timeouts. `observer` collects metrics, None: nobody does.
        `log_prompts`: the log of requests has the prompts' texts. `startup` shows the progress of
        loading; None: it is only logged.
        """
        self.bounds = bounds
        self._dispatch = Dispatch(bounds, lambda choice: self._settle(choice.answers))
        self.failure: BaseException | None = None
        self.failed = asyncio.Event()
        self.ready = asyncio.Event()  # set once the model is loaded and has made a token
        self.startup = startup or Startup(logger.info)
        self.is_draining = False
        self.thread: EngineThread | None = None
        self.observer = observer
        self.log_prompts = log_prompts
        self.preparation = RequestPreparation(PREPARED_PER_WAITING * bounds.queue_requests)
        self._open_model = open_model
        self._model: Model | None = None
        # Requests whose dialect still handles them, by request id.
        self._open: dict[str, Answers] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._weight_bytes = 0
        self._preparing = 0
        self._opening: asyncio.Future[Model] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    # Start and stop.

    def start(self) -> None:
        """Start the background tasks that load the model and watch the engine."""
        self._tasks.append(asyncio.create_task(self._load(), name="load"))
        self._tasks.append(asyncio.create_task(self._watch(), name="watch"))

    async def drain(self, seconds: float) -> None:
        """Refuse new requests, wait for open ones to end, and fail the rest after `seconds`."""
        self.is_draining = True
        if await self._wait_until_idle(seconds):
            return
        for answers in list(self._open.values()):
            answers.fail(NotReady("the server is going away; ask again elsewhere or later"))
        await self._wait_until_idle(GOODBYE_SECONDS)

    async def close(self, seconds: float | None = None) -> bool:
        """Fail open requests and stop all threads; return False if the engine did not end in time.

        `seconds` is the longest wait for the engine; None: as long as it takes.
        """
        self.is_draining = True
        for task in self._tasks:
            task.cancel()
        for answers in list(self._open.values()):
            answers.fail(NotReady("the server is closed"))
        self.preparation.close()
        stopped = self._opening is None or self._opening.done()
        if self.thread is not None:
            stopped &= await self.thread.stop(seconds)
        if self._model is not None:
            await asyncio.to_thread(release, self._model.intake)
            if stopped:
                # Waits for a program that is being compiled.
                await asyncio.to_thread(close_engine, [self._model])
                if self._model.encoder is not None:
                    self._model.encoder.encoder.close()
        return stopped

    @property
    def state(self) -> State:
        """Return whether the service is loading, ready, stalled, draining or failed."""
        if self.failure is not None or (self.thread is not None and self.thread.failure):
            return State.FAILED
        if self.thread is not None and self.thread.stalled() is not None:
            return State.STALLED
        if self.is_draining:
            return State.DRAINING
        return State.LOADING if self._model is None else State.READY

    @property
    def queue(self) -> FairQueue[Ticket | Probe]:
        """The fair queue of requests and probes that wait for a slot.

        A probe is a task that reads given tokens and generates none.
        """
        return self._dispatch.queue

    @property
    def model(self) -> Model:
        """The served model; raises NotReady or EngineStopped while there is none."""
        if self._model is None:
            self._check_state()
        assert self._model is not None
        return self._model

    def figures(self) -> dict[str, float]:
        """Return counters and gauges of the service and the engine, by name, for metrics."""
        found: dict[str, float] = {
            "queue_requests": self.queue.items,
            "queue_tokens": self.queue.tokens,
            "open_requests": len(self._open),
            "ready": self.state is State.READY,
        }
        if self.thread is None:
            return found
        engine, pulse = self.thread.engine, self.thread.pulse
        counts = engine.counts
        found |= {f"engine_{phase}": counts[phase] for phase in ("waiting", "filling", "running")}
        seconds = engine.calls.step_seconds
        return found | {
            "slots": engine.config.slots,
            "slots_used": counts["slots"],
            "step_seconds": seconds,
            "engine_steps": pulse.steps,
            "engine_step_seconds": pulse.seconds,
            "faults": engine.recovery.faults,
            "adapters": 0 if engine.adapters is None else len(engine.adapters.names),
            "drafted_tokens": engine.drafts["drafted"],
            "accepted_tokens": engine.drafts["accepted"],
            **engine.programs.figures,
            **engine.programs.roofline(seconds, counts["running"]),
            **engine.prompt_store.figures,
        }

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights that each decode step reads; 0 while there is no model."""
        return self._weight_bytes

    def adapter_requests(self) -> dict[str, int]:
        """Count the accepted requests of each LoRA adapter, by its name."""
        adapters = None if self.thread is None else self.thread.engine.adapters
        return {} if adapters is None else dict(adapters.requests)

    @property
    def compiling(self) -> tuple[str, ...]:
        """Names of the engine's XLA programs that a background thread still has to compile.

        The program that is being compiled now comes first.
        """
        return () if self._model is None else self._model.engine.programs.pending

    def slots(self) -> list[SlotState]:
        """Return the state of every engine slot; raises NotReady while the model is not loaded."""
        return slot_states(self.model.engine)

    # For dialects.

    @asynccontextmanager
    async def open(self, ask: Ask, caller: Caller) -> AsyncIterator[Answers]:
        """Queue the requests of `ask` (prompts with settings); yield the stream of their events.

        Unfinished requests are cancelled on exit. Raises QueueFull if the queue has no room.
        """
        async with self._opened(caller) as answers:
            self._check_state()
            ready = await self._prepare(answers, ask)
            answers.expect(len(ready))
            self._admit(answers, ready)
            yield answers

    @asynccontextmanager
    async def open_many(self, asks: Sequence[Ask], caller: Caller) -> AsyncIterator[Answers]:
        """Queue many tasks (prompts with settings) of one client; yield one stream of their events.

        The tasks are queued little by little: a new one once fewer than two answers per slot are
        queued or running. So their number is not bounded by the queue. Answers are numbered in the
        order of the tasks.
        Unfinished requests are cancelled on exit.
        """
        async with self._opened(caller) as answers:
            self._check_state()
            answers.expect(sum(map(count_choices, asks)))
            rest = iter(asks)
            first = next(rest, None)
            if first is not None:
                self._admit(answers, await self._prepare(answers, first))
            feeding = asyncio.create_task(self._feed(answers, rest))
            try:
                yield answers
            finally:
                feeding.cancel()

    @asynccontextmanager
    async def open_rounds(self, caller: Caller) -> AsyncIterator[Rounds]:
        """Yield a `Rounds`: its method `ask` queues a list of requests and waits for their events.

        `ask` can be called repeatedly, for a search whose next requests depend on earlier answers.
        All rounds are logged as one request. Unfinished requests are cancelled on exit.
        """
        async with self._opened(caller) as answers:

            def admit(requests: Sequence[GenerationRequest]) -> None:
                self._check_state(caller)
                self._admit(answers, [(request, None) for request in requests])
                if answers.first is not None:  # for metrics: these are no first tokens
                    for choice in answers.choices:
                        choice.newest = asyncio.get_running_loop().time()

            self._check_state()
            yield Rounds(answers, admit)

    @asynccontextmanager
    async def _opened(self, caller: Caller) -> AsyncIterator[Answers]:
        """Register a request of `caller` and yield the stream of its events, empty at first.

        On exit, cancels the answers that have not ended and logs the request.
        """
        answers = Answers(caller, self.bounds, self._dispatch.drop, self._waited)
        seconds = self.bounds.request_seconds
        timer = seconds and asyncio.get_running_loop().call_later(
            seconds, lambda: answers.fail(TimedOut(f"the request took more than {seconds} s"))
        )
        self._open[caller.id] = answers
        caller.was_opened = True
        self._idle.clear()
        reason = "left"
        try:
            yield answers
            reason = "done"
        except JaxLlamaError as error:
            reason, answers.refusal = error.code, error
            raise
        finally:
            if timer:
                timer.cancel()
            answers.reason = answers.error.code if answers.error is not None else reason
            answers.stop()
            del self._open[caller.id]
            if not self._open:
                self._idle.set()
            self._settle(answers)

    def cancel(self, id_: str, client: str) -> bool:
        """Cancel a request by its id; False if this client has no open request with that id."""
        answers = self._open.get(id_)
        if answers is None or answers.caller.client != client:
            return False
        answers.fail(Cancelled("the request was cancelled by its id"))
        return True

    async def off_loop(
        self, work: Callable[[Model], T], caller: Caller, *, size: int = 0, is_dear: bool = False
    ) -> T:
        """Call `work` with the model in a thread, when it is the client's turn; return its result.

        For slow work that does not need the engine: tokenizing, templates. `size` is the number of
        characters to process; `is_dear` marks expensive work, which does not delay cheap work.
        """
        self._check_state(caller)
        model = self.model
        return await self.preparation.do(
            caller.client, lambda: work(model), size=size, is_dear=is_dear
        )

    async def ask_engine(self, questions: Sequence[Question[T]], caller: Caller) -> list[T]:
        """Return the engine's results for `questions` of one request, such as log-probabilities.

        A question is a task that draws no tokens. Each one waits in the fair queue for a slot, and
        the engine computes one piece of it per step, so that streams continue. Raises QueueFull if
        the queue has no room. Cancelling the call frees its place in the queue and its slot.
        """
        self._check_state(caller)
        return await self._dispatch.ask(caller.client, questions)

    async def load_adapter(self, name: str, path: Path, caller: Caller) -> None:
        """Load a LoRA adapter from the folder `path`; one with the same name is replaced.

        The engine loads it between two steps. Raises InvalidParameter if it cannot be loaded.
        """
        check_adapter_name(name)

        def read(model: Model) -> AdapterWeights:
            assert model.read_adapter is not None
            loaded(model.engine.adapters)
            try:
                return model.read_adapter(path)
            except CheckpointError as error:
                raise InvalidParameter(str(error), "lora_path") from error

        weights = await self.off_loop(read, caller, is_dear=True)

        def load(engine: Engine) -> InSteps[None]:
            loaded(engine.adapters).load(name, weights)
            yield 0

        await self.ask_engine([Question(load, tokens=1, slots=0)], caller)
        logger.info("adapter %s loaded from %s", name, path)

    async def unload_adapter(self, name: str, caller: Caller) -> None:
        """Unload a LoRA adapter; requests that use it already keep it to their end."""

        def unload(engine: Engine) -> InSteps[None]:
            loaded(engine.adapters).unload(name)
            yield 0

        await self.ask_engine([Question(unload, tokens=1, slots=0)], caller)
        logger.info("adapter %s unloaded", name)

    # From a task to queued requests.

    def _check_state(self, caller: Caller | None = None) -> None:
        """Raise NotReady or EngineStopped unless the service takes requests of this caller.

        While the service drains (is about to stop), only a caller whose request is open may
        continue; None: no caller may.
        """
        match self.state:
            case State.DRAINING if caller is not None and caller.id in self._open:
                return
            case State.FAILED:
                raise EngineStopped("the engine has stopped; the server has to be started again")
            case State.STALLED:
                raise NotReady("the engine makes no progress at the moment; try again later")
            case State.DRAINING:
                raise NotReady("the server is going away; ask again elsewhere or later")
            case State.LOADING:
                raise NotReady("the model is still loading; try again in a few seconds")

    async def _prepare(self, answers: Answers, ask: Ask) -> list[PreparedRequest]:
        """Check and tokenize the prompts of `ask` in a thread; return one request for each answer.

        `answers` is the stream that gets the requests' events later. Raises QueueFull, before any
        work is done, if the queue has no room for all requests.
        """
        self._check_state(answers.caller)
        count = count_choices(ask)
        self._dispatch.check(answers.caller.client, self._preparing + count)
        self._preparing += count
        try:
            intake = self.model.intake
            work = self.preparation.do(
                answers.caller.client,
                lambda: prepare_requests(intake, ask),
                size=estimate_size(ask),
                is_dear=has_to_compile(intake, ask),
            )
            ready = await answers.wait_for(asyncio.ensure_future(work))
        finally:
            self._preparing -= count
        dropped = sum(request.dropped for request, _ in ready[:1])
        if dropped:
            answers.caller.notes["dropped"] = str(dropped)
        return ready

    def _admit(
        self, answers: Answers, ready: Sequence[tuple[GenerationRequest, TextTail | None]]
    ) -> None:
        """Put prepared requests into the queue; their events go to the stream `answers`.

        `ready` pairs each request with the decoder of its answer's text; None: no text is wanted.
        Raises QueueFull if the queue has no room for all, InvalidParameter if all together may take
        more tokens than one request of a client is allowed.
        """
        check_cost(ready, self.bounds.request_tokens)
        choices = [
            AnswerChoice(answers, index, request, tail)
            for index, (request, tail) in enumerate(ready, len(answers.choices))
        ]
        client = answers.caller.client
        self._dispatch.check(client, len(choices), sum(choice.size for choice in choices))
        answers.add(choices)
        self._dispatch.push(client, choices)

    async def _feed(self, answers: Answers, asks: Iterator[Ask]) -> None:
        """Queue the tasks `asks` one after the other; their events go to the stream `answers`.

        Waits while too many of the answers queued earlier have not ended. An error of a task fails
        the whole request.
        """
        most = AHEAD * self.model.engine.config.slots
        try:
            for ask in asks:
                while answers.running >= most:
                    answers.freed.clear()
                    await answers.freed.wait()
                await self._admit_with_patience(answers, ask)
        except JaxLlamaError as error:
            answers.fail(error)

    async def _admit_with_patience(self, answers: Answers, ask: Ask) -> None:
        """Prepare and queue the requests of one task; wait while the queue is full.

        Their events go to the stream `answers`. `ask` has the prompts and the settings.
        """
        ready = await until_room(lambda: self._prepare(answers, ask))

        async def queue() -> None:
            self._admit(answers, ready)

        await until_room(queue)

    def _settle(self, answers: Answers) -> None:
        """Log a request of a client and report it to the observer, if it is over.

        It is over once its handler has ended and all answers in the stream `answers` have ended;
        before, does nothing.
        """
        if answers.reason is None or not all(choice.is_over for choice in answers.choices):
            return
        outcome = outcome_of(answers)
        facts = outcome.as_facts()
        if self.log_prompts and self._model is not None:
            decode = self._model.intake.tokenizer.decode
            facts["text"] = [decode(request.prompt, special=True) for request in answers.requests]
        logger.info("request", extra={"facts": facts})
        if self.observer is not None:
            self.observer.ended(outcome)

    def _waited(self, seconds: float, tokens: int, is_first: bool) -> None:
        if self.observer is not None:
            self.observer.waited(seconds, tokens, is_first)

    # Background tasks.

    async def _load(self) -> None:
        """Load the model, start the engine thread, and set `ready` once the model made a token."""
        try:
            with self.startup:
                self._opening = asyncio.ensure_future(asyncio.to_thread(self._open_model))
                model = await asyncio.shield(self._opening)
            intake = await asyncio.to_thread(confine, model.intake, self.bounds.render_seconds)
            clock = asyncio.get_running_loop().time  # may stand still while the process is stopped
            patience = self.bounds.patience_seconds
            thread = EngineThread(model.engine, self.queue, patience=patience, clock=clock)
            self._dispatch.start(thread)
            thread.start()
            self.thread = thread
            await make_one_token(thread)
            self._weight_bytes = model.engine.programs.weight_bytes
            self._model = replace(model, intake=intake)
            self.ready.set()
        except Exception as error:
            self._fail(error)

    def _fail(self, failure: BaseException) -> None:
        self.failure = failure
        self.failed.set()

    async def _watch(self) -> None:
        """Check the engine thread at intervals; mark the service as failed if the thread died.

        If the thread stalls, open requests end with EngineStopped.
        """
        while not self.failed.is_set():
            await asyncio.sleep(SECONDS_PER_CHECK)
            if self.thread is None:
                continue
            if self.thread.failure is not None:
                self._fail(self.thread.failure)
            stalled = self.thread.stalled()
            if stalled is not None:
                error = EngineStopped(f"the engine has made no step for {stalled:.0f} s")
                for answers in list(self._open.values()):
                    answers.fail(error)

    async def _wait_until_idle(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            return False
        return True
