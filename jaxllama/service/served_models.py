"""The models of a server: which of them are loaded, which load, and which have to go.

Made by the code that composes the server; a request leases its model here for as long as it is
answered. `ServedModels` owns the state of every model: nothing else starts or closes a
`GenerationService`. Models load one after the other, within a budget of memory; the idle model that
was used least recently makes room. Runs on one event loop; must not know HTTP or files of models.
"""

import asyncio
import logging
import time
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from jaxllama.config import EngineConfig
from jaxllama.errors import (
    ConfigError,
    InvalidParameter,
    JaxLlamaError,
    ModelFailed,
    ModelInUse,
    NotReady,
    UnknownModel,
)
from jaxllama.service import GenerationService, State
from jaxllama.service.answers import Observer
from jaxllama.startup import Progress

logger = logging.getLogger(__name__)

LATEST = ":latest"  # the tag that Ollama's clients add to every name
UNLOAD_SECONDS = 60.0  # for the engine's thread to end
TRIES, SECONDS_BETWEEN_TRIES = 5, 0.1  # to give back the memory of an unloaded model
BUSY_SECONDS = 5.0  # after which a request may try again for a model that has no room


class ModelState(StrEnum):
    """State of one model."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    LOADED = "loaded"
    UNLOADING = "unloading"
    FAILED = "failed"  # the next request tries to load it again


@dataclass(frozen=True)
class ModelNeeds:
    """The memory and the context that a model needs, estimated before it is loaded."""

    memory: int  # bytes: weights, cache, and room for prompts
    context: int  # tokens of prompt and answer together


@dataclass(frozen=True)
class ModelPlan:
    """The settings with which one model is served: its names, its loading and its unloading."""

    name: str
    make_service: Callable[[], GenerationService]  # one that is not started
    measure: Callable[[Progress], ModelNeeds] | None = None  # in a thread; None: not measured
    aliases: frozenset[str] = frozenset()
    adapters: tuple[str, ...] = ()  # names of the adapters that are loaded with it
    keep_alive: float | None = None  # seconds that it stays loaded while idle; None: for ever
    is_preloaded: bool = False


@dataclass(frozen=True)
class ModelRules:
    """The settings that hold for all models of a server."""

    memory: int  # bytes that all loaded models may take together
    load_seconds: float  # most that a request waits for its model
    default: str | None = None  # for requests that name no model; None: the first one
    give_back: Callable[[], None] = field(default=lambda: None)  # frees memory after an unload


class ServedModel:
    """One model of a server: its plan, its state, and how many requests use it."""

    def __init__(
        self, plan: ModelPlan, service: GenerationService, *, is_single: bool = False
    ) -> None:
        self.plan = plan
        self.is_single = is_single  # the only model of its server
        self.service = service  # another one each time the model is loaded
        self.state = ModelState.UNLOADED
        self.reason = ""  # why it failed
        self.needs: ModelNeeds | None = None  # None: not measured yet
        self.users = 0  # requests that use the model or wait for it
        self.keep_alive = plan.keep_alive
        self.made = self.used = time.time()  # `used`: when the last request ended
        self.loads = 0
        self.change: asyncio.Task[JaxLlamaError | None] | None = None  # loads or unloads it
        self.expiry: asyncio.TimerHandle | None = None
        self.guard: asyncio.Task[None] | None = None  # waits for a failure of the loaded model

    @property
    def name(self) -> str:
        """The model's name in lists and metrics."""
        return self.plan.name

    @property
    def memory(self) -> int:
        """Bytes that the model takes while it is loaded, as estimated; 0: not known yet."""
        return 0 if self.needs is None else self.needs.memory

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the LoRA adapters: the loaded ones, or those that will be loaded with it."""
        return self.service.model.adapters if self.is_loaded else self.plan.adapters

    @property
    def is_loaded(self) -> bool:
        """Say whether the model is loaded, so that requests can be answered at once."""
        return self.state is ModelState.LOADED

    @property
    def is_present(self) -> bool:
        """Say whether `service.model` may be read: the model is loaded, or the server's only one.

        While the only model of a server loads, reading `service.model` raises NotReady.
        """
        return self.is_loaded or self.is_single

    @property
    def is_idle(self) -> bool:
        """Say whether the model is loaded and no request uses it or waits for it."""
        return self.is_loaded and not self.users

    @property
    def expires(self) -> float | None:
        """The time at which the model is unloaded if no request comes; None: it stays loaded.

        In seconds since 1970.
        """
        if self.keep_alive is None:
            return None
        return (time.time() if self.users else self.used) + self.keep_alive

    def answers_to(self, name: str) -> bool:
        """Say whether `name` is a name of the model or of one of its adapters."""
        return name == self.name or name in self.plan.aliases or name in self.adapters


class ServedModels:
    """All models of a server; the only owner of their states.

    A server of a single model loads it at the start and never unloads it: requests are refused
    while it loads, and if it fails, the server ends.
    """

    def __init__(
        self, plans: Sequence[ModelPlan], rules: ModelRules, *, is_single: bool = False
    ) -> None:
        """Serve the models of `plans`; `start` loads those that are to be preloaded.

        `rules` are the settings that hold for all models. `is_single`: there is one plan, and its
        model is never unloaded. Raises ConfigError if two models share a name, or the default model
        is none of them.
        """
        self.rules = rules
        self.is_single = is_single
        self.is_draining = False
        self.failure: BaseException | None = None
        self.failed = asyncio.Event()  # set if the server has to end: a single model has failed
        self.ready = asyncio.Event()  # set once all preloaded models are loaded, or have failed
        self._observe: Callable[[str], Observer] | None = None
        check_names(plans)
        self.all = tuple(
            ServedModel(each, each.make_service(), is_single=is_single) for each in plans
        )
        self.default = self.all[0]
        if rules.default is not None:
            self.default = self.find(rules.default)
        self._lost = 0  # bytes of models whose thread did not end
        self._loading = asyncio.Lock()  # models load one after the other
        self._leaving: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    def single(cls, service: GenerationService) -> "ServedModels":
        """Make the object for a server of one model, which `service` loads and names."""
        plan = ModelPlan("model", lambda: service, is_preloaded=True)
        return cls([plan], ModelRules(memory=0, load_seconds=0.0), is_single=True)

    # Start and stop.

    def start(self) -> None:
        """Start loading the models that are to be preloaded, one after the other."""
        self._tasks.append(asyncio.create_task(self._preload(), name="preload"))

    async def drain(self, seconds: float) -> None:
        """Refuse new requests, wait for open ones to end, and fail the rest after `seconds`."""
        self.is_draining = True
        if not self._leaving.done():
            self._leaving.set_result(None)
        for each in self.all:
            each.service.is_draining = True
        await asyncio.gather(*(each.service.drain(seconds) for each in self.all))

    async def close(self, seconds: float | None = None) -> bool:
        """Close all models; return False if the threads of one did not end in `seconds`.

        `seconds` None: no limit.
        """
        self.is_draining = True
        if not self._leaving.done():
            self._leaving.set_result(None)
        for each in self.all:
            self._forget_expiry(each)
        guards = [each.guard for each in self.all if each.guard is not None]
        for task in (*self._tasks, *guards):
            task.cancel()
        changes = [(each.change, each.state) for each in self.all if each.change is not None]
        unloading = {change for change, state in changes if state is ModelState.UNLOADING}
        if unloading:
            await asyncio.wait(unloading, timeout=seconds)
        ended = await asyncio.gather(*(each.service.close(seconds) for each in self.all))
        for change, _ in changes:
            change.cancel()
        return all(ended) and not self._lost and all(each.done() for each in unloading)

    @property
    def state(self) -> State:
        """The state of the server: of its single model, or of all loaded models together."""
        if self.is_single:
            return self.default.service.state
        if self.is_draining:
            return State.DRAINING
        if any(each.is_loaded and each.service.state is State.STALLED for each in self.all):
            return State.STALLED
        return State.READY if self.ready.is_set() else State.LOADING

    @property
    def slots(self) -> int:
        """The largest number of slots of a loaded model; the default number if none is loaded."""
        services = [each.service for each in self.all]
        loaded = [each.model for each in services if each.state is State.READY]
        return max((each.engine.config.slots for each in loaded), default=EngineConfig.slots)

    def observe(self, make: Callable[[str], Observer]) -> None:
        """Give each model an observer of its requests: what `make` returns for the model's name."""
        self._observe = make
        for each in self.all:
            each.service.observer = make(each.name)

    # Finding models.

    @property
    def names(self) -> tuple[str, ...]:
        """All names by which requests can name a model or one of its adapters."""
        return tuple(
            name
            for each in self.all
            for name in (each.name, *sorted(each.plan.aliases), *each.adapters)
        )

    def find(self, name: str | None) -> ServedModel:
        """Return the model that a request names; None stands for the default model.

        Raises UnknownModel, which lists the names. A server of a single model returns that model
        for every name; the HTTP API checks the name once the model is loaded.
        """
        if name is None or self.is_single:
            return self.default
        for given in (name, name.removesuffix(LATEST)):
            for each in self.all:
                if each.answers_to(given):
                    return each
        raise UnknownModel(
            f"model {name[:100]!r} does not exist here; this server serves "
            f"{', '.join(map(repr, self.names))}",
            name[:100],
        )

    def loaded(self, name: str | None) -> ServedModel:
        """Return the model that a request names; raise NotReady if it is not loaded.

        `name` None: the default model. A server of a single model returns that model, loaded or
        not. Raises UnknownModel if no model has the name.
        """
        found = self.find(name)
        if not self.is_single and not found.is_loaded:
            raise NotReady(
                f"model {found.name!r} is {found.state}; a request for an answer loads it"
            )
        return found

    def cancel(self, id_: str, client: str) -> bool:
        """Cancel a request by its id; False if this client has no open request with that id.

        `client` is the client's name for the fair queue, made from its API key or its address.
        """
        return any(each.service.cancel(id_, client) for each in self.all)

    # Using models.

    @asynccontextmanager
    async def lease(self, name: str | None) -> AsyncIterator[ServedModel]:
        """Keep the model that a request names loaded during a `with` block; load it if needed.

        Yields the model; `name` None: the default one. If the request is cancelled, the load
        continues for other requests that wait for it. Raises UnknownModel, ModelFailed if the model
        cannot be loaded, and NotReady if there is no memory for it now or the load takes too long.
        """
        model = self.find(name)
        if self.is_single:
            yield model
            return
        model.users += 1
        self._forget_expiry(model)
        try:
            await self._until_loaded(model)
            yield model
        finally:
            model.users -= 1
            model.used = time.time()
            self._expect_end(model)

    async def load(self, name: str, *, waits: bool = True) -> ServedModel:
        """Load a model and return it; with `waits` False return at once, while it loads.

        Raises UnknownModel. A call that waits raises ModelFailed if the model cannot be loaded, and
        NotReady if there is no memory for it now or the load takes too long.
        """
        self._need_several()
        if waits:
            async with self.lease(name) as model:
                return model
        model = self.find(name)
        if model.change is None and not model.is_loaded:
            self._begin(model, ModelState.LOADING, self._load(model))
        return model

    async def unload(self, name: str) -> ServedModel:
        """Unload a model; raise ModelInUse if it is being loaded or a request uses it."""
        self._need_several()
        model = self.find(name)
        if model.state is ModelState.LOADING or (model.is_loaded and model.users):
            why = "loads" if not model.is_loaded else f"is used by {model.users} request(s)"
            raise ModelInUse(f"model {model.name!r} {why}; try again when it is idle")
        if model.is_loaded:
            await asyncio.wait({self._begin_unload(model, "on request")})
        elif model.change is not None:
            await asyncio.wait({model.change})
        return model

    def _need_several(self) -> None:
        if self.is_single:
            raise InvalidParameter(
                "this server has one model, which stays loaded; start it with --models-file to "
                "load and unload models",
                "model",
            )

    # Loading.

    async def _preload(self) -> None:
        for each in self.all:
            if each.plan.is_preloaded:
                change = each.change or self._begin(each, ModelState.LOADING, self._load(each))
                await asyncio.wait({change})
        self.ready.set()

    async def _until_loaded(self, model: ServedModel) -> None:
        """Wait until a model is loaded, starting the load if needed; raise the load's error."""
        clock = asyncio.get_running_loop().time
        end = clock() + self.rules.load_seconds
        while not model.is_loaded:
            if self.is_draining:
                raise NotReady("the server is going away; ask again elsewhere or later")
            change = model.change or self._begin(model, ModelState.LOADING, self._load(model))
            waits: set[asyncio.Future[Any]] = {change, self._leaving}
            await asyncio.wait(
                waits,
                timeout=max(0.0, end - clock()),
                return_when=asyncio.FIRST_COMPLETED,
            )
            error = change.result() if change.done() else None
            if error is not None:
                raise error
            if not change.done() and clock() >= end:
                raise NotReady(
                    f"model {model.name!r} did not load within {self.rules.load_seconds:g} s; it "
                    f"goes on loading: try again later"
                )

    def _begin(
        self,
        model: ServedModel,
        state: ModelState,
        work: Coroutine[Any, Any, JaxLlamaError | None],
    ) -> asyncio.Task[JaxLlamaError | None]:
        """Set the model's state; start and return the task `work`, which loads or unloads it.

        No other such task of the model may be running. The task's result is the error of a load
        that failed, else None.
        """
        model.state = state

        def forget(task: asyncio.Task[JaxLlamaError | None]) -> None:
            if model.change is task:
                model.change = None

        model.change = asyncio.create_task(work, name=f"{state} {model.name}")
        model.change.add_done_callback(forget)
        return model.change

    async def _load(self, model: ServedModel) -> JaxLlamaError | None:
        """Load a model when its turn comes; return the error for waiting requests if that fails."""
        async with self._loading:
            try:
                await self._make_room(model)
                await self._open(model)
            except NotReady as error:
                model.state = ModelState.UNLOADED
                logger.warning("%s", error)
                return error
            except Exception as error:
                return self._note_failure(model, error)
        self._expect_end(model)
        return None

    def _note_failure(self, model: ServedModel, error: BaseException) -> JaxLlamaError:
        """Record why a model could not be loaded; return the error for requests that name it."""
        model.state, model.reason = ModelState.FAILED, str(error) or type(error).__name__
        model.needs = None  # the file may be another one at the next try
        if self.is_single:
            self.failure = error
            self.failed.set()
        else:
            logger.error("model %s could not be loaded: %s", model.name, model.reason)
        return ModelFailed(f"model {model.name!r} could not be loaded: {model.reason}")

    async def _make_room(self, model: ServedModel) -> None:
        """Unload idle models, the least recently used first, until `model` fits into the memory.

        Raises ConfigError if it would not fit alone, NotReady if requests use the other models.
        """
        if model.plan.measure is None:
            return
        if model.needs is None:
            report = model.service.startup.report
            model.needs = await asyncio.to_thread(model.plan.measure, report)
        if model.memory > self.rules.memory:
            raise ConfigError(
                f"it needs about {bytes_text(model.memory)}, and all models together may have "
                f"{bytes_text(self.rules.memory)} (lower slots or context, or raise memory)"
            )
        while model.memory > self.rules.memory - self._held_beside(model):
            leaving = next((each for each in self.all if each.state is ModelState.UNLOADING), None)
            if leaving is not None and leaving.change is not None:
                await asyncio.wait({leaving.change})
                continue
            idle = [each for each in self.all if each.is_idle]
            if not idle:
                raise self._no_room(model)
            oldest = min(idle, key=lambda each: each.used)
            await asyncio.wait({self._begin_unload(oldest, f"to make room for {model.name}")})

    def _held_beside(self, model: ServedModel) -> int:
        """Return the bytes that all models other than this one take."""
        held = (ModelState.LOADED, ModelState.UNLOADING)
        others = (each for each in self.all if each is not model and each.state in held)
        return self._lost + sum(each.memory for each in others)

    def _no_room(self, model: ServedModel) -> NotReady:
        users = ", ".join(repr(each.name) for each in self.all if each.is_loaded)
        free = max(0, self.rules.memory - self._held_beside(model))
        error = NotReady(
            f"model {model.name!r} needs about {bytes_text(model.memory)}, and "
            f"{bytes_text(free)} of {bytes_text(self.rules.memory)} are free: requests use "
            f"{users}, which cannot be unloaded now; try again later"
        )
        error.retry_after = BUSY_SECONDS
        return error

    async def _open(self, model: ServedModel) -> None:
        """Start the model's service and wait until it is ready for requests; raise its failure."""
        service, began = model.service, time.monotonic()
        if not self.is_single:
            size = f", about {bytes_text(model.memory)}" if model.memory else ""
            logger.info("loading model %s%s, %d requests wait", model.name, size, model.users)
        service.start()
        await first_of(service.ready, service.failed)
        if service.failure is not None:
            failure = service.failure
            if not self.is_single:
                await self._close(model)
            raise failure
        model.state, model.reason = ModelState.LOADED, ""
        model.keep_alive, model.used = model.plan.keep_alive, time.time()
        model.loads += 1
        model.guard = asyncio.create_task(self._guard(model, service), name=f"guard {model.name}")
        if not self.is_single:
            logger.info("model %s loaded in %.1f s", model.name, time.monotonic() - began)

    async def _guard(self, model: ServedModel, service: GenerationService) -> None:
        """Wait until the engine of a loaded model fails, then unload the model.

        The next request for it loads it again.
        """
        await service.failed.wait()
        model.guard = None
        failure = service.failure or JaxLlamaError("its engine has stopped")
        if self.is_single:
            self._note_failure(model, failure)
        else:
            self._begin(model, ModelState.UNLOADING, self._give_up(model, failure))

    async def _give_up(self, model: ServedModel, failure: BaseException) -> None:
        await self._close(model)
        self._note_failure(model, failure)

    # Unloading.

    def _expect_end(self, model: ServedModel) -> None:
        """If a model is idle, schedule its unloading after `keep_alive` idle seconds."""
        self._forget_expiry(model)
        if model.is_idle and model.keep_alive is not None and not self.is_draining:
            loop = asyncio.get_running_loop()
            model.expiry = loop.call_later(model.keep_alive, self._expire, model)

    def _forget_expiry(self, model: ServedModel) -> None:
        if model.expiry is not None:
            model.expiry.cancel()
            model.expiry = None

    def _expire(self, model: ServedModel) -> None:
        if model.is_idle and not self.is_draining:
            self._begin_unload(model, f"idle for {model.keep_alive:g} s")

    def _begin_unload(self, model: ServedModel, why: str) -> asyncio.Task[JaxLlamaError | None]:
        logger.info("unloading model %s: %s", model.name, why)
        return self._begin(model, ModelState.UNLOADING, self._unload(model))

    async def _unload(self, model: ServedModel) -> None:
        await self._close(model)
        model.state = ModelState.UNLOADED

    async def _close(self, model: ServedModel) -> None:
        """Unload a model: close its service and give its memory back.

        A new service takes its place, which loads the model again at its next request.
        """
        self._forget_expiry(model)
        if model.guard is not None:
            model.guard.cancel()
            model.guard = None
        service, model.service = model.service, self._new_service(model.plan)
        engine = None if service.thread is None else weakref.ref(service.thread.engine)
        has_ended = await service.close(UNLOAD_SECONDS)
        del service
        if not has_ended:
            self._lost += model.memory
            logger.error("the threads of model %s do not end: its memory stays used", model.name)
        for _ in range(TRIES):  # threads may still hold what they have just used
            await asyncio.to_thread(self.rules.give_back)
            if engine is None or engine() is None:
                break
            await asyncio.sleep(SECONDS_BETWEEN_TRIES)

    def _new_service(self, plan: ModelPlan) -> GenerationService:
        service = plan.make_service()
        if self._observe is not None:
            service.observer = self._observe(plan.name)
        return service


def check_names(plans: Sequence[ModelPlan]) -> None:
    """Raise ConfigError if two of the models, aliases and adapters have the same name."""
    taken: dict[str, str] = {}
    for plan in plans:
        for name in (plan.name, *plan.aliases, *plan.adapters):
            if name in taken:
                raise ConfigError(
                    f"{name!r} is the name of something of {taken[name]!r} and of {plan.name!r}; "
                    f"requests could not tell them apart"
                )
            taken[name] = plan.name


async def first_of(*events: asyncio.Event) -> None:
    """Wait until at least one of the events is set."""
    waits = [asyncio.ensure_future(each.wait()) for each in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waits:
            each.cancel()


def bytes_text(size: int) -> str:
    """Return a number of bytes as text, in MB or GB."""
    return f"{size / 1e9:,.2f} GB" if size >= 10**9 else f"{size / 1e6:,.1f} MB"
