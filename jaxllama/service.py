"""The service: what a front end talks to - one model, and everybody who asks it something.

Made by the server, used by its dialects. It loads the model, turns what clients ask into checked
requests off the event loop, keeps them in a fair queue, lets the engine have about as many as it
has slots, and knows how all of it fares. Lives on one event loop. Must not know HTTP.

    async with service.open(Ask(prompts=["Once"]), caller) as answers:
        async for index, event in answers:  # leaving the block cancels what has not ended
            ...
"""

import asyncio
import copy
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from functools import partial
from typing import Protocol, TypeVar

from jaxllama.answers import Answers, Caller, Choice
from jaxllama.bridge import EngineThread
from jaxllama.confined import Confined
from jaxllama.engine.engine import Engine
from jaxllama.errors import (
    Cancelled,
    EngineStopped,
    InvalidParameter,
    JaxLlamaError,
    NotReady,
    TimedOut,
)
from jaxllama.fair_queue import FairQueue
from jaxllama.formats import Tool
from jaxllama.intake import Intake, Prompt, Ready
from jaxllama.limits import LIMITS, check, check_count
from jaxllama.messages import Ending, Turns
from jaxllama.request import Event, Finished, FinishReason, GenerationRequest, choice_seed

__all__ = ["Answers", "Ask", "Bounds", "Caller", "GenerationService", "Model", "Observer", "State"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

SECONDS_PER_LOOK = 1.0  # between two looks at the engine's pulse
GOODBYE_SECONDS = 2.0  # for telling clients that the server goes away


@dataclass(frozen=True)
class Model:
    """What is served."""

    name: str
    engine: Engine
    intake: Intake

    @property
    def knobs(self) -> frozenset[str]:
        """Every field of a request that says how to generate."""
        return frozenset((*LIMITS, *self.intake.bank.knobs))


@dataclass(frozen=True)
class Ask:
    """What one client wants: `n` answers to each prompt or to a conversation, and knobs."""

    prompts: Sequence[Prompt] = ()
    messages: Turns | None = None
    knobs: Mapping[str, object] = field(default_factory=dict)
    n: int = 1
    tools: Sequence[Tool] = ()
    ending: Ending = Ending.ANSWER


def setting(default: T, help_: str) -> T:
    """A setting with its explanation."""
    return field(default=default, metadata={"help": help_})


@dataclass(frozen=True)
class Bounds:
    """How much the service takes on; the operator's to set."""

    queue_requests: int = setting(512, "answers that may wait; beyond, clients are told to retry")
    queue_tokens: int = setting(1_000_000, "prompt tokens that may wait")
    request_tokens: int = setting(262_144, "prompt and answer tokens of one request, all choices")
    request_seconds: float | None = setting(None, "most seconds a request may take")
    render_seconds: float = setting(2.0, "most seconds a chat template may take")


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

    def as_facts(self) -> dict[str, object]:
        """For the log."""
        first = self.seconds_to_first
        later = self.seconds - first if first is not None else 0.0
        return {
            **asdict(self),
            "seconds": round(self.seconds, 4),
            "seconds_to_first": None if first is None else round(first, 4),
            "tokens_per_second": round(self.generated / later, 1) if later > 0 else None,
        }


class Observer(Protocol):
    """Whoever counts and measures; called on the event loop."""

    def waited(self, seconds: float, is_first: bool, /) -> None:
        """A token came, so long after the request or the token before it."""

    def ended(self, outcome: Outcome, /) -> None:
        """A request is over and all it held is free."""


class State(StrEnum):
    """What the service is doing."""

    LOADING = "loading"
    READY = "ready"
    STALLED = "stalled"  # the engine makes no progress
    DRAINING = "draining"
    FAILED = "failed"


class GenerationService:
    """Everybody who asks one model something."""

    def __init__(
        self,
        open_model: Callable[[], Model],
        bounds: Bounds = Bounds(),
        *,
        observer: Observer | None = None,
    ) -> None:
        """`open_model` is called in a thread by `start`."""
        self.bounds = bounds
        self.queue: FairQueue[Choice] = FairQueue(bounds.queue_requests, bounds.queue_tokens)
        self.failure: BaseException | None = None
        self.failed = asyncio.Event()
        self.is_draining = False
        self.thread: EngineThread | None = None
        self._observer = observer
        self._open_model = open_model
        self._model: Model | None = None
        self._open: dict[str, Answers] = {}  # whose dialect has not left yet
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._in_engine = 0
        self._preparing = 0
        self._opening: asyncio.Future[Model] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    # Its life.

    def start(self) -> None:
        """Begin to load the model."""
        self._tasks.append(asyncio.create_task(self._load(), name="load"))
        self._tasks.append(asyncio.create_task(self._watch(), name="watch"))

    async def drain(self, seconds: float) -> None:
        """Take nothing new; let what is open end within the time, and tell the rest."""
        self.is_draining = True
        if await self._becomes_quiet(seconds):
            return
        for answers in list(self._open.values()):
            answers.fail(NotReady("the server is going away; ask again elsewhere or later"))
        await self._becomes_quiet(GOODBYE_SECONDS)

    async def close(self, seconds: float | None = None) -> bool:
        """End everything; False if the engine's thread did not end within the time."""
        self.is_draining = True
        for task in self._tasks:
            task.cancel()
        for answers in list(self._open.values()):
            answers.fail(NotReady("the server is closed"))
        stopped = self._opening is None or self._opening.done()
        if self.thread is not None:
            stopped &= await self.thread.stop(seconds)
        if self._model is not None:
            if isinstance(self._model.intake.format, Confined):
                await asyncio.to_thread(self._model.intake.format.close)
            if stopped:
                self._model.engine.close()
        return stopped

    @property
    def state(self) -> State:
        """What it is doing."""
        if self.failure is not None or (self.thread is not None and self.thread.failure):
            return State.FAILED
        if self.thread is not None and self.thread.stalled() is not None:
            return State.STALLED
        if self.is_draining:
            return State.DRAINING
        return State.LOADING if self._model is None else State.READY

    @property
    def model(self) -> Model:
        """What is served; NotReady while nothing is."""
        if self._model is None:
            raise NotReady("the model is still loading; try again in a few seconds")
        return self._model

    # What dialects do.

    @asynccontextmanager
    async def open(self, ask: Ask, caller: Caller) -> AsyncIterator[Answers]:
        """Answers to what a client asks, as they come; leaving cancels what has not ended."""
        answers = Answers(caller, self._drop, self._waited)
        seconds = self.bounds.request_seconds
        timer = seconds and asyncio.get_running_loop().call_later(
            seconds, lambda: answers.fail(TimedOut(f"the request took more than {seconds} s"))
        )
        self._open[caller.id] = answers
        caller.was_opened = True
        self._quiet.clear()
        reason = "left"
        try:
            self._admit(answers, await self._prepare(answers, ask))
            yield answers
            reason = "done"
        except JaxLlamaError as error:
            reason = error.code
            raise
        finally:
            if timer:
                timer.cancel()
            answers.reason = answers.error.code if answers.error is not None else reason
            answers.stop()
            del self._open[caller.id]
            if not self._open:
                self._quiet.set()
            self._settle(answers)

    def cancel(self, id_: str, client: str) -> bool:
        """End a request of this client, whatever it does; False if there is none."""
        answers = self._open.get(id_)
        if answers is None or answers.caller.client != client:
            return False
        answers.fail(Cancelled("the request was cancelled by its id"))
        return True

    async def off_loop(self, work: Callable[[Model], T]) -> T:
        """What a function of the model returns; for what takes long but not the engine."""
        self._check_state()
        return await asyncio.to_thread(work, self.model)

    async def ask_engine(self, question: Callable[[Engine], T]) -> T:
        """What a function of the engine returns, called between two steps.

        One that raises QueueFull, as `Engine.peek` does, is called again once a slot is free.
        """
        self._check_state()
        assert self.thread is not None
        return await self.thread.ask(question)

    # From what is asked to the queue.

    def _check_state(self) -> None:
        """Refuse while nothing can be served."""
        match self.state:
            case State.FAILED:
                raise EngineStopped("the engine has stopped; the server has to be started again")
            case State.STALLED:
                raise NotReady("the engine makes no progress at the moment; try again later")
            case State.DRAINING:
                raise NotReady("the server is going away; ask again elsewhere or later")
            case State.LOADING:
                raise NotReady("the model is still loading; try again in a few seconds")

    async def _prepare(self, answers: Answers, ask: Ask) -> list[Ready]:
        """Checked requests; refused before any work if the queue is full."""
        self._check_state()
        count = count_choices(ask)
        self.queue.check(answers.caller.client, self._preparing + count)
        self._preparing += count
        try:
            thread = asyncio.ensure_future(asyncio.to_thread(ready_all, self.model.intake, ask))
            return await answers.unless_over(thread)
        finally:
            self._preparing -= count

    def _admit(self, answers: Answers, ready: list[Ready]) -> None:
        """Into the queue, all or none."""
        choices = [
            Choice(answers, index, request, tail) for index, (request, tail) in enumerate(ready)
        ]
        total, most = sum(choice.cost for choice in choices), self.bounds.request_tokens
        if total > most:
            raise InvalidParameter(
                f"prompts and max_tokens of all {len(choices)} answers come to {total} tokens; "
                f"this server allows {most} for one request (lower max_tokens or n)",
                "max_tokens",
            )
        client = answers.caller.client
        sizes = [len(choice.request.prompt) for choice in choices]
        self.queue.check(client, len(choices), sum(sizes))
        answers.begin(choices)
        for choice, size in zip(choices, sizes, strict=True):
            self.queue.push(client, choice, cost=choice.cost, size=size)
        self._dispatch()

    # Between the queue and the engine.

    def _dispatch(self) -> None:
        """Let the engine have what it can use, and a few so that no slot waits for the loop."""
        if self.thread is None:
            return
        slots = self.thread.engine.config.slots
        while self._in_engine < slots + max(1, slots // 4):
            choice = self.queue.pop()
            if choice is None:
                return
            self._in_engine += 1
            tell = partial(self._told, choice)
            choice.ticket = self.thread.submit(choice.request, choice.tail, tell)

    def _told(self, choice: Choice, event: Event | JaxLlamaError) -> None:
        """The engine has something to say about a choice."""
        choice.answers.tell(choice, event)
        if choice.is_over:
            self._in_engine -= 1
            usage = choice.usage
            spent = usage.prompt + usage.generated if usage else 0
            self.queue.ended(choice.answers.caller.client, choice.cost - spent)
            self._dispatch()
            self._settle(choice.answers)

    def _drop(self, choice: Choice) -> None:
        """A choice is not wanted any more."""
        if choice.ticket is not None and self.thread is not None:
            self.thread.cancel(choice.ticket)
        elif self.queue.remove(choice.answers.caller.client, choice):
            choice.is_over = True

    def _settle(self, answers: Answers) -> None:
        """Once its dialect has left and nothing of it is in the engine, a request is over."""
        if answers.reason is None or not all(choice.is_over for choice in answers.choices):
            return
        outcome = outcome_of(answers)
        logger.info("request", extra={"facts": outcome.as_facts()})
        if self._observer is not None:
            self._observer.ended(outcome)

    def _waited(self, seconds: float, is_first: bool) -> None:
        if self._observer is not None:
            self._observer.waited(seconds, is_first)

    # In the background.

    async def _load(self) -> None:
        """Open the model, and be ready once it has made a token."""
        try:
            self._opening = asyncio.ensure_future(asyncio.to_thread(self._open_model))
            model = await asyncio.shield(self._opening)
            intake = await asyncio.to_thread(confine, model.intake, self.bounds.render_seconds)
            thread = EngineThread(model.engine)
            thread.start()
            self.thread = thread
            await make_one_token(thread)
            self._model = replace(model, intake=intake)
        except Exception as error:
            self.failure = error
            self.failed.set()

    async def _watch(self) -> None:
        """Tell everybody when the engine has died or does not move."""
        while not self.failed.is_set():
            await asyncio.sleep(SECONDS_PER_LOOK)
            if self.thread is None:
                continue
            if self.thread.failure is not None:
                self.failure = self.thread.failure
                self.failed.set()
            stalled = self.thread.stalled()
            if stalled is not None:
                error = EngineStopped(f"the engine has made no step for {stalled:.0f} s")
                for answers in list(self._open.values()):
                    answers.fail(error)

    async def _becomes_quiet(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._quiet.wait(), seconds)
        except TimeoutError:
            return False
        return True


def count_choices(ask: Ask) -> int:
    """How many answers are wanted, within the limits."""
    if bool(ask.prompts) == (ask.messages is not None):
        raise InvalidParameter("expected either prompts or messages", "messages")
    check("n", ask.n)
    check_count("prompts", len(ask.prompts))
    check_count("messages", len(ask.messages or ()))
    check_count("tools", len(ask.tools))
    count = ask.n * max(1, len(ask.prompts))
    check("choices", count)
    return count


def ready_all(intake: Intake, ask: Ask) -> list[Ready]:
    """The checked request of every choice; stream i of a prompt has the seed of its number."""
    if ask.messages is not None:
        firsts = [intake.chat(ask.messages, ask.knobs, tools=ask.tools, ending=ask.ending)]
    else:
        firsts = [intake.completion(prompt, ask.knobs) for prompt in ask.prompts]
    return [
        (replace(request, seed=choice_seed(request.seed, i)), tail.again())
        for request, tail in firsts
        for i in range(ask.n)
    ]


def confine(intake: Intake, seconds: float) -> Intake:
    """The intake, with a chat template - a program that came with the model - locked up."""
    text = intake.tokenizer.text
    if text.template is None:
        return intake
    confined = copy.copy(intake)
    confined.format = Confined(intake.format, text, seconds=seconds)
    confined.format.start()
    return confined


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
    )


async def make_one_token(thread: EngineThread) -> None:
    """Prove that the engine works, before anybody is told so."""
    done: asyncio.Future[Finished | JaxLlamaError] = asyncio.get_running_loop().create_future()

    def tell(event: Event | JaxLlamaError) -> None:
        if isinstance(event, Finished | JaxLlamaError) and not done.done():
            done.set_result(event)

    thread.submit(GenerationRequest(prompt=(0,), max_tokens=1, temperature=0.0), None, tell)
    end = await done
    if isinstance(end, JaxLlamaError):
        raise end
    if end.reason is not FinishReason.LENGTH:
        raise end.error or EngineStopped(f"the first token ended with {end.reason}")
