"""Recovery: what the engine does when a program fails - new state, and a replay of live requests.

Used by the engine and its probes. A failed program has consumed the state, so the rest of it is
freed, a new state is made, and the live requests start again with their prompts and the tokens that
they have emitted. `suspects.py` decides which request is blamed. Knows no schedule: the engine
passes the functions that clear it and that fail a request.
"""

import logging
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jaxllama.engine.batch import Batch
from jaxllama.engine.generation import Generation
from jaxllama.engine.suspects import Suspects
from jaxllama.errors import GenerationFailed, JaxLlamaError

logger = logging.getLogger(__name__)

Clear = Callable[[], list[Generation]]  # empties all slots; returns the generations they held
Fail = Callable[[Generation, JaxLlamaError], None]


class Recovery:
    """Restarts an engine after a fault: makes a new state and replays the live requests."""

    def __init__(
        self, batch: Batch, waiting: deque[Generation], *, clear: Clear, fail: Fail
    ) -> None:
        """Take the engine's batch, its queue of waiting requests, and two of its functions.

        `clear` empties all slots and returns the requests (generations) that held them; `fail` ends
        a request with an error.
        """
        self._batch, self._waiting = batch, waiting
        self._clear, self._fail = clear, fail
        self.suspects = Suspects()
        self.faults = 0

    @contextmanager
    def guard(self, *, blame: bool = True) -> Iterator[None]:
        """Run device programs in a `with` block; after a fault, replay the live requests.

        A fault is an exception that a program raises; it is logged and not raised again. An
        interrupt (Ctrl-C) is raised again after the requests are queued. With `blame`, a request
        that caused faults repeatedly is failed.
        """
        try:
            yield
        except Exception as error:
            logger.exception("a program failed; replaying live requests")
            self.recover(error, blame=blame)
        except BaseException as error:  # Ctrl-C may have come between a donation and its result
            self._requeue(self._restart(error))
            self._batch.renew()
            raise

    def recover(self, error: Exception, *, blame: bool) -> None:
        """Queue the live requests again after the fault `error`, and make a new device state.

        With `blame`, also fails the request that is to blame, if there is one. Use False if a
        cancelled request or a probe (work that generates no tokens) caused the fault: then no
        request is failed. If the new state cannot be made, raises the error; the next step of the
        engine tries again.
        """
        self.faults += 1
        live = self._restart(error)
        again, guilty = self.suspects.judge(live) if blame else (self.suspects.excuse(live), None)
        self._requeue(again)
        if guilty is not None:
            failure = GenerationFailed(f"this request made the engine fail repeatedly: {error}")
            failure.__cause__ = error
            self._fail(guilty, failure)
        self._batch.renew()

    def _restart(self, error: BaseException) -> list[Generation]:
        """Free the device state, free all slots, and set the requests in them back to waiting.

        Returns these requests. Also frees device arrays that the traceback of `error` refers to.
        """
        self._batch.drop()
        traceback.clear_frames(error.__traceback__)  # a failed call may hold arrays of its own
        live = self._clear()
        programs = self._batch.programs
        for generation in live:
            keeps_state = programs.bank.remembers(generation.request.knobs)
            # Emitted tokens may be computed as a prompt only where steps compute the same bits.
            redraw = keeps_state or not programs.body.steps_match_prompts()
            generation.rewind(redraw=redraw)
        return live

    def _requeue(self, generations: list[Generation]) -> None:
        """Put generations at the front of the queue, in their order."""
        self._waiting.extendleft(reversed(generations))
