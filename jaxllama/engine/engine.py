"""The engine: submit, cancel, step - many requests through one batch of slots.

Driven by a plain loop or by `bridge.py`; synchronous, thread-free, speaks token ids only. One
`step` admits waiting requests, sends at most one prompt chunk and one decode call to the device,
and while that runs reads the call before. So end tokens and budgets are decided on the device at
once, stop strings are seen one call late: what was drawn beyond them is dropped, because every
call is kept with the generations its rows belonged to when it was sent. Programs run in the order
they were sent, so a slot can be used again right after its release was.

When a program fails, the state is lost (it was donated): the engine frees what is left of it, makes
a new one and replays the live requests, prompt and emitted tokens. See `prompts.py` for how a
prompt gets into the cache, `recovery.py` for who is to blame.
"""

import itertools
import logging
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager

import jax
import numpy as np

from jaxllama.engine.branches import Way, shared_beginning
from jaxllama.engine.generation import Generation, Phase
from jaxllama.engine.guides import Guides
from jaxllama.engine.looks import Look, Looks, See, Seen
from jaxllama.engine.programs import Programs
from jaxllama.engine.prompts import Prompts
from jaxllama.engine.reading import Reading, Sent
from jaxllama.engine.recovery import Recovery
from jaxllama.engine.slots import SlotTable
from jaxllama.engine.state import row_start
from jaxllama.errors import GenerationFailed, JaxLlamaError, QueueFull
from jaxllama.request import (
    Event,
    Finished,
    FinishReason,
    GenerationRequest,
    TextTail,
    Token,
    TokenLogprobs,
)

logger = logging.getLogger(__name__)

NO_ID = -1  # no token: shares a prefix with nothing
SECONDS_PER_SYNC = 0.05  # decode calls are kept about this short, so that streams stay smooth
SECONDS_PER_SHARED_SYNC = (
    0.01  # likewise while several clients use the engine: a new one waits for a call
)

ByAndBy = Generator[int, None, Seen]  # yields how many tokens each of its calls has computed


class Engine:
    """All live requests of one model."""

    def __init__(
        self, programs: Programs, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.programs = programs
        self.config = programs.engine
        self.bank = programs.bank
        self.ledger: Counter[str] = Counter()  # accepted, finished, cancelled, failed
        self.recovery = Recovery()
        self.slots = SlotTable(self.config.slots)
        self._prompts = Prompts(programs, self.slots)
        self._looks = Looks(programs, self.slots, self._prompts)
        self._guides = Guides(self._tell, self._end, programs)
        self._clock = clock
        self._ids = itertools.count()
        self._live: dict[int, Generation] = {}  # all that have not ended, oldest first
        self._waiting: deque[Generation] = deque()
        self._running: list[Generation | None] = [None] * self.config.slots
        self._sent: deque[Sent] = deque()
        self._events: list[Event] = []
        self.step_seconds = 0.0  # of one decode step, as last measured
        self._last_read = 0.0
        self.requests_wait = False  # outside the engine, for a slot; set by its caller
        self.is_shared = False  # several clients use the engine; set by its caller
        self._state = programs.empty()
        self._state_lost = False  # freed after a fault, and no new one made yet

    # What callers do.

    def submit(
        self, request: GenerationRequest, tail: TextTail | None = None, *, client: str = ""
    ) -> Generation:
        """Queue a request; its events carry the returned generation's id."""
        if len(self._waiting) >= self.config.queue_limit:
            raise QueueFull(
                f"{len(self._waiting)} requests wait already; the limit is "
                f"{self.config.queue_limit}; try again later"
            )
        self.config.check_slots(len(request.prompts))
        self.config.check_stop_ids(len(request.stop_ids))
        for prompt in request.prompts:
            self.config.check_length(len(prompt), request.max_tokens)
        generation = Generation(next(self._ids), request, tail, self._clock(), client)
        self._live[generation.id] = generation
        self._waiting.append(generation)
        self.ledger["accepted"] += 1
        return generation

    def cancel(self, generation: Generation) -> None:
        """End a generation in any phase; one that is over already is left alone."""
        if generation.phase is not Phase.DONE:
            with self._recovering(blame=False):
                self._end(generation, FinishReason.CANCELLED)

    def close(self) -> None:
        """End everything and let go of the device memory; the engine is of no use afterwards."""
        for generation in list(self._live.values()):
            self.cancel(generation)
        self._sent.clear()
        self._drop_state()
        self.programs.delete_weights()

    @property
    def idle(self) -> bool:
        """Nothing waits, runs or is still to be read."""
        return not (self._live or self._sent or self._events)

    @property
    def counts(self) -> dict[str, int]:
        """Generations per phase, and slots held."""
        waiting = len(self._waiting) + len(self.recovery.suspects)
        running = sum(generation is not None for generation in self._running)
        return {
            "waiting": waiting,
            "filling": len(self._prompts),
            "running": running,
            "slots": self.slots.claimed,
        }

    @property
    def holders(self) -> list[Generation | None]:
        """The generation that holds each slot; may be read from another thread."""
        found: list[Generation | None] = [None] * self.config.slots
        for generation in list(self._live.values()):
            for part in generation.parts:
                if part.slot >= 0 and not part.is_over:
                    found[part.slot] = part
        return found

    @property
    def room(self) -> int:
        """Free slots that no request waits for here; none while suspects of a fault run alone."""
        if self.recovery.alone is not None or self.recovery.suspects:
            return 0
        return self.slots.free - sum(len(one.request.prompts) for one in self._waiting)

    @property
    def owes_first_token(self) -> bool:
        """Whether a request waits, its prompt is on its way, or its row has no token yet."""
        rows = (one for one in self._running if one is not None)
        return bool(self._waiting or self._prompts) or any(not one.emitted for one in rows)

    def step(self) -> list[Event]:
        """Move everything forward once; returns what happened since the last call."""
        if self._live:
            self._renew_state()
        with self._recovering():
            self._admit_waiting()
            self._fill()
            if any(each is not None and each.guide is not None for each in self._running):
                self._decode_guided()
            else:
                sent = self._decode()
                # Read the call before while the new one runs; with none new, read all there is.
                while len(self._sent) > (1 if sent else 0):
                    self._tell_all(self._read(self._sent.popleft()))
            if self.is_shared and not self._sent:
                # Nothing else waits for the device: chunks would queue up there, unbounded, and a
                # request of another client behind them.
                jax.block_until_ready(self._state)
        events, self._events = self._events, []
        return events

    # Admission.

    def _admit_waiting(self) -> None:
        """Give waiting requests the free slots, oldest first; a suspect runs alone.

        One that needs two waits until both are free, and nobody passes it by.
        """
        while self.recovery.alone is None:
            queue = self.recovery.suspects or self._waiting
            if not queue:
                return
            if self.slots.free < len(queue[0].request.prompts):
                return
            if queue is self.recovery.suspects:
                self.recovery.alone = queue[0]
            generation = queue.popleft()
            generation.cast_shadow(next(self._ids))
            for part in generation.parts:
                claim = self.slots.claim(part.id, part.known)
                assert claim is not None
                self._state = self._prompts.take(self._state, part, claim)
            self._guides.begin(generation)

    def _fill(self) -> None:
        """Move one prompt on; who has all its prompts in the cache decodes."""
        self._state, ready = self._prompts.advance(self._state)
        for part in ready:
            generation = part.leader or part
            waits = generation.phase is Phase.FILLING
            if waits and all(each.in_cache for each in generation.parts):
                self._start(generation)

    def _start(self, generation: Generation) -> None:
        """Let the rows of one request decode."""
        for part in generation.parts:
            leader = -1 if part is generation else generation.slot
            known = tuple(part.known)
            row = row_start(part.request, known, self.config, self.bank, leader=leader)
            self._state = self.programs.admit(self._state, np.int32(part.slot), row)
            part.phase = Phase.RUNNING
        self._running[generation.slot] = generation

    # Decoding.

    def _decode(
        self,
        steps: int = 0,
        allowed: np.ndarray | None = None,
        *,
        resting: Sequence[Generation] = (),
    ) -> bool:
        """Send one decode call for all running rows but the `resting`; False if there is none."""
        if not any(self._running):
            return False
        steps = steps or self._steps()
        self._state, output = self.programs.decode(self._state, np.int32(steps), allowed)
        owners = [None if owner in resting else owner for owner in self._running]
        self._sent.append(Sent(output, steps, owners))
        return True

    def _steps(self) -> int:
        """Decode steps of the next call.

        One while a prompt is on its way or a row waits for its first token. Otherwise as many as
        fit into a call's time; while requests wait for a slot, the call ends with the first row
        that reaches its budget.
        """
        if self._prompts or self.recovery.suspects:
            return 1
        rows = [(one, self._steps_sent(one)) for one in self._running if one is not None]
        if any(not sent and not one.emitted for one, sent in rows):
            return 1
        seconds = SECONDS_PER_SHARED_SYNC if self.is_shared else SECONDS_PER_SYNC
        steps = round(seconds / self.step_seconds) if self.step_seconds else 1
        if self._waiting or self.requests_wait:
            lefts = (one.request.max_tokens - len(one.emitted) - sent for one, sent in rows)
            steps = min(steps, *lefts)
        return min(max(steps, 1), self.config.steps_per_sync)

    def _steps_sent(self, generation: Generation) -> int:
        """Steps of calls that are on their way and decode this generation's row."""
        return sum(sent.steps for sent in self._sent if sent.owners[generation.slot] is generation)

    def _read(self, sent: Sent) -> Reading:
        """Wait for a decode call."""
        reading = Reading(sent)
        self._measure(reading.steps_taken)
        return reading

    def _tell_all(self, reading: Reading, *, guided: bool | None = None) -> None:
        """Tell what the rows of a decode call drew, or only those with or without a guide."""
        for owner, token, logprobs in reading.drawn(guided=guided):
            if token is None:
                self._fail_row(owner)
            else:
                self._drew(owner, token, logprobs)

    def _measure(self, taken: int) -> None:
        """Note how long one decode step takes."""
        now = self._clock()
        if taken and self._last_read:
            self.step_seconds = (now - self._last_read) / taken
        self._last_read = now if self._sent else 0.0

    def _drew(self, generation: Generation, token: int, logprobs: TokenLogprobs | None) -> None:
        """One token of one generation has arrived."""
        for part in generation.parts:
            self.slots.slots[part.slot].cached.append(part.newest)  # it was fed just now
        self.recovery.progressed(generation)
        if generation.replayed:  # told before the fault already
            generation.replayed -= 1
            generation.emitted.append(token)
        else:
            self._tell(generation, token, logprobs)
        if generation.guide is not None:
            self._follow(generation, token)

    def _tell(
        self, generation: Generation, token: int, logprobs: TokenLogprobs | None = None
    ) -> None:
        """The answer has one more token, or this one ends it."""
        generation.sampled += 1
        if generation.first is None:
            generation.first = self._clock()
        if token in generation.request.stop_ids:
            self._end(generation, FinishReason.END_TOKEN)
            return
        generation.emitted.append(token)
        try:
            text = generation.tail.push(token) if generation.tail else ""
            stopped = generation.tail is not None and generation.tail.stopped is not None
        except Exception as error:
            self._fail(generation, GenerationFailed(f"decoding token {token} failed: {error}"))
            return
        self._events.append(Token(generation.id, token, text, logprobs))
        if stopped:
            self._end(generation, FinishReason.STOP_STRING)
        elif len(generation.emitted) >= generation.request.max_tokens:
            self._end(generation, FinishReason.LENGTH)

    # Constraints.

    def _decode_guided(self) -> None:
        """One step for all rows; those with a guide first, so that the others' news delay nobody.

        A guided row's next mask depends on its last token, so calls do not overlap here; all that
        the device waits for is the quick guides. A row whose mask takes long sits steps out.
        """
        told = [self._read(self._sent.popleft()) for _ in range(len(self._sent))]
        for each in told:
            self._tell_all(each, guided=True)
        masks = self._guides.masks(self._running)
        waiting = self._guides.waiting
        if len(waiting) < len(list(filter(None, self._running))):
            self._decode(1, masks, resting=waiting)
        elif waiting and not self._prompts:
            self._guides.wait()
        for each in told:
            self._tell_all(each, guided=False)

    def _follow(self, generation: Generation, token: int) -> None:
        """A guided answer has one more token; what it forces goes the way of a prompt."""
        if self._guides.follow(generation, token, rows=self.slots.claimed):
            self._running[generation.slot] = None
            self._release(generation)
            self._prompts.resume(generation)

    # Endings.

    def _fail_row(self, generation: Generation) -> None:
        """The model's numbers for this row are not numbers: nobody may use its cache again."""
        why = (
            "the model produced NaN or infinity for this request; its neighbours are not "
            "affected (float16 overflows: try --dtype bfloat16 or float32)"
        )
        if generation.guide is not None:
            why = f"the request's samplers ban every token that its constraint allows, or {why}"
        self._fail(generation, GenerationFailed(why))
        for part in generation.parts:
            self.slots.release(part.slot, keep=False)
            self._state = self.programs.scrub(self._state, np.int32(part.slot))

    def _fail(self, generation: Generation, error: JaxLlamaError) -> None:
        self._end(generation, FinishReason.FAILED, error)

    def _end(
        self, generation: Generation, reason: FinishReason, error: JaxLlamaError | None = None
    ) -> None:
        """The one place where a generation becomes DONE and its slot free."""
        phase, generation.phase = generation.phase, Phase.DONE
        del self._live[generation.id]
        generation.ended = self._clock()
        stop, text = finish_text(generation)
        outcome = {FinishReason.CANCELLED: "cancelled", FinishReason.FAILED: "failed"}
        self.ledger[outcome.get(reason, "finished")] += 1
        usage = generation.usage()
        self._events.append(Finished(generation.id, reason, usage, text, stop, error))
        self.recovery.forget(generation)
        match phase:  # last, because a device call may fail: by now the end is told
            case Phase.WAITING:
                if generation in self._waiting:
                    self._waiting.remove(generation)
            case Phase.FILLING:
                for part in generation.parts:
                    self._prompts.drop(part)
                    self.slots.release(part.slot)
            case Phase.RUNNING:
                self._stop_row(generation, reason)

    def _stop_row(self, generation: Generation, reason: FinishReason) -> None:
        """Take a row out of the batch; what it has in the cache stays for the next one."""
        self._running[generation.slot] = None
        if not any(self._running):
            self._sent.clear()  # nobody is left to be told
        for part in generation.parts:
            self.slots.release(part.slot)
        # The device knows when an unguided row has used up its budget or drawn an end token.
        known = reason in (FinishReason.LENGTH, FinishReason.END_TOKEN) and generation.guide is None
        if not known:
            self._release(generation)

    def _release(self, generation: Generation) -> None:
        """Make its rows on the device inert."""
        mask = np.zeros(self.config.slots, np.bool_)
        mask[[part.slot for part in generation.parts]] = True
        self._state = self.programs.release(self._state, mask)

    # Looking without drawing, in a free slot; the caller steps until there is one. Each look comes
    # twice: at once, and as a generator that calls one program at a time, between which others
    # may step, and returns the same.

    def peek(self, ids: Sequence[int], start: int) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities of ids[start:], each given all before, and the logits behind them."""
        return finish(self.peek_by_and_by(ids, start))

    def peek_by_and_by(
        self, ids: Sequence[int], start: int, see: See | None = None
    ) -> ByAndBy[tuple[np.ndarray, np.ndarray]]:
        """Likewise; `see` is shown all logits before ids[start:] and behind, as they come."""
        self.config.check_length(len(ids), 0)

        def peek(slot: int) -> Look[tuple[np.ndarray, np.ndarray]]:
            return self._looks.peek(self._state, slot, ids, start, see)

        return self._look(ids[:start], peek)

    def weigh(self, ways: Sequence[Way]) -> list[np.ndarray]:
        """Log-probabilities of many ways to go on, each token given all before it.

        A way is token ids and the place, at least 1, from which on they are weighed. What several
        ways begin with is computed once: this is for many short ones behind one long beginning.
        """
        return finish(self.weigh_by_and_by(ways))

    def weigh_by_and_by(self, ways: Sequence[Way]) -> ByAndBy[list[np.ndarray]]:
        """Likewise."""
        for ids, _ in ways:
            self.config.check_length(len(ids), 0)
        shared = shared_beginning(ways)
        known = ways[0][0][:shared]
        return self._look(known, lambda slot: self._looks.weigh(self._state, slot, ways, shared))

    def embed(self, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """What the model makes of `ids`, behind its final norm: the mean, and of the last one."""
        return finish(self.embed_by_and_by(ids))

    def embed_by_and_by(self, ids: Sequence[int]) -> ByAndBy[tuple[np.ndarray, np.ndarray]]:
        """Likewise."""
        self.config.check_length(len(ids), 0)
        return self._look((), lambda slot: self._looks.embed(self._state, slot, ids))

    def _look(self, known: Sequence[int], begin: Callable[[int], Look[Seen]]) -> ByAndBy[Seen]:
        """What is seen in a free slot, best one that has `known` cached; may be closed early.

        Yields after each call of a program how many tokens that call computed.
        """
        claim, table = self.slots.claim(-1, (*known, NO_ID)), self.slots
        if claim is None:
            raise QueueFull("all slots are busy; step the engine until one is free")
        try:
            look, before = begin(claim.slot), self._looks.computed
            self._state = next(look)
            while True:
                yield self._looks.computed - before
                if self.slots is not table:
                    raise GenerationFailed("the engine had to start over; ask again")
                before = self._looks.computed
                self._state = look.send(self._state)
        except StopIteration as end:
            return end.value
        except GenerationFailed:
            raise
        except Exception as error:
            self._recover(error, blame=False)
            raise
        finally:
            if table.slots[claim.slot].owner == -1:
                table.release(claim.slot)

    # Faults.

    @contextmanager
    def _recovering(self, *, blame: bool = True) -> Iterator[None]:
        """Run programs; after a fault or an interrupt the live requests are replayed."""
        try:
            yield
        except Exception as error:
            logger.exception("a program failed; replaying live requests")
            self._recover(error, blame=blame)
        except BaseException as error:  # Ctrl-C may have come between a donation and its result
            self._waiting.extendleft(reversed(self._restart(error)))
            self._renew_state()
            raise

    def _recover(self, error: Exception, *, blame: bool) -> None:
        """Queue the live requests again, fail the guilty one, and make a new state.

        Without `blame` none is guilty: the fault belongs to a cancelled request or to a look.
        Raises what `Programs.empty` raises; the next step then tries again to make a state.
        """
        live = self._restart(error)
        again, guilty = self.recovery.judge(live) if blame else (self.recovery.excuse(live), None)
        self._waiting.extendleft(reversed(again))
        if guilty is not None:
            failure = GenerationFailed(f"this request made the engine fail repeatedly: {error}")
            failure.__cause__ = error
            self._fail(guilty, failure)
        self._renew_state()

    def _restart(self, error: BaseException) -> list[Generation]:
        """Free the old state and clear all slots; returns the live requests, rewound."""
        self._drop_state()
        traceback.clear_frames(error.__traceback__)  # a failed call may hold arrays of its own
        live = [one for one in self._live.values() if one.phase is not Phase.WAITING]
        self._running = [None] * self.config.slots
        self._sent.clear()
        self._last_read = 0.0
        self.slots = SlotTable(self.config.slots)
        self._prompts = Prompts(self.programs, self.slots)
        self._looks = Looks(self.programs, self.slots, self._prompts)
        for generation in live:
            self._rewind(generation)
        return live

    def _drop_state(self) -> None:
        """Free the device memory of the state; what a failed program consumed is free already."""
        if not self._state_lost:
            self.programs.delete(self._state)
        self._state_lost = True

    def _renew_state(self) -> None:
        """Make a new state if there is none."""
        if self._state_lost:
            self._state = self.programs.empty()
            self._state_lost = False

    def _rewind(self, generation: Generation) -> None:
        """Back to the queue; rows whose samplers remember draw again what they drew before."""
        generation.phase, generation.slot = Phase.WAITING, -1
        generation.source = generation.follows = generation.shadow = None
        if self.bank.remembers(generation.request.knobs):
            generation.replayed += len(generation.emitted)
            generation.emitted.clear()
            generation.guide = None


def finish(look: ByAndBy[Seen]) -> Seen:
    """What a look returns, at once."""
    while True:
        try:
            next(look)
        except StopIteration as end:
            return end.value


def finish_text(generation: Generation) -> tuple[str | None, str]:
    """The stop string that was met, if any, and the text that was still held back."""
    if generation.tail is None:
        return None, ""
    try:
        return generation.tail.stopped, generation.tail.flush()
    except Exception:
        logger.exception("flushing the text of generation %s failed", generation.id)
        return None, ""
