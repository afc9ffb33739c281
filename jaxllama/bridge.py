"""The one crossing between the engine's thread and an event loop.

Used by the server. The engine lives on a thread of its own; the loop sends it submissions and
cancellations through an inbox and gets each generation's events back through a mailbox, a whole
step's worth at a time. Knows neither text nor HTTP. The only file that imports both `threading`
and `asyncio`.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from jaxllama.engine.engine import Engine
from jaxllama.engine.generation import Generation
from jaxllama.errors import EngineStopped
from jaxllama.request import Event, Finished, GenerationRequest, TextTail

logger = logging.getLogger(__name__)

Mailbox = asyncio.Queue[Event | BaseException]


class EngineThread:
    """Runs an engine until `stop`; safe to use from one event loop."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.failure: BaseException | None = None
        self.steps = 0  # health: moves as long as work is done
        self.last_progress = time.monotonic()
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._mailboxes: dict[int, Mailbox] = {}  # the loop's, by generation
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin; call from within the event loop that will use it."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """Let the thread end after its current step; what is live gets EngineStopped."""
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join)

    @asynccontextmanager
    async def open(
        self, request: GenerationRequest, tail: TextTail | None = None
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """The events of one generation; leaving the context cancels what has not ended."""
        mailbox: Mailbox = asyncio.Queue()
        generation = await self._submit(request, tail, mailbox)
        try:
            yield self._events(mailbox)
        finally:
            self._mailboxes.pop(generation.id, None)
            self._inbox.put(lambda: self.engine.cancel(generation))

    async def _submit(
        self, request: GenerationRequest, tail: TextTail | None, mailbox: Mailbox
    ) -> Generation:
        """Hand a request over; its refusal is raised here."""
        if self.failure is not None:
            raise EngineStopped("the engine has stopped") from self.failure
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Generation] = loop.create_future()

        def settle(generation: Generation | None, error: BaseException | None) -> None:
            if answer.done():  # whoever asked has gone away
                if generation is not None:
                    self._inbox.put(lambda: self.engine.cancel(generation))
            elif generation is not None:
                self._mailboxes[generation.id] = mailbox
                answer.set_result(generation)
            elif error is not None:
                answer.set_exception(error)

        def submit() -> None:
            try:
                generation = self.engine.submit(request, tail)
            except Exception as error:  # a refusal belongs to the one who asked
                loop.call_soon_threadsafe(settle, None, error)
            else:
                loop.call_soon_threadsafe(settle, generation, None)

        self._inbox.put(submit)
        return await answer

    async def _events(self, mailbox: Mailbox) -> AsyncIterator[Event]:
        while True:
            event = await mailbox.get()
            if isinstance(event, BaseException):
                raise EngineStopped("the engine has stopped") from event
            yield event
            if isinstance(event, Finished):
                return

    def _run(self) -> None:
        """The thread: take what has come in, step, hand events over."""
        try:
            while self._take_in():
                events = self.engine.step()
                self.steps += 1
                self.last_progress = time.monotonic()
                if events:
                    self._call(self._deliver, events)
        except BaseException as error:
            logger.exception("the engine has stopped")
            self.failure = error
        if self.failure is None:
            self.failure = EngineStopped("the engine was stopped")
        self._call(self._wake_all, self.failure)

    def _take_in(self) -> bool:
        """Do what the inbox asks; wait there while the engine has nothing to do."""
        while True:
            try:
                job = self._inbox.get(block=self.engine.idle)
            except queue.Empty:
                return True
            if job is None:
                return False
            job()

    def _call(self, function: Callable[..., None], argument: Any) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(function, argument)

    def _deliver(self, events: list[Event]) -> None:
        """On the loop: each event to its mailbox; nobody may be listening any more."""
        for event in events:
            mailbox = self._mailboxes.get(event.id)
            if mailbox is not None:
                mailbox.put_nowait(event)

    def _wake_all(self, failure: BaseException) -> None:
        """On the loop: every open stream learns that there will be no more."""
        for mailbox in self._mailboxes.values():
            mailbox.put_nowait(failure)
