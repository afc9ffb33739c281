"""The engine: submit, cancel, step - many requests through one batch of slots.

Driven by a plain loop or by `bridge.py`; synchronous, without threads; knows token ids only. One
`step` admits waiting requests, sends at most one prompt chunk and one decode call to the device,
and reads the previous decode call while the new one runs. So the device itself decides end tokens
and budgets, and the host sees stop strings one call late: it drops the tokens after them. Each call
is kept with the generations that owned its rows when it was sent. Programs run in the order in
which they were sent, so a slot can be used again as soon as its release was sent.

When a program fails, the state is lost (it was donated): the engine frees the rest of it, makes a
new state and replays the live requests, prompts and emitted tokens. See `prompts.py` for how a
prompt gets into the cache, `recovery.py` for which request is blamed for a fault.
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

from jaxllama.engine.branches import Continuation, shared_prefix
from jaxllama.engine.generation import Generation, Phase
from jaxllama.engine.guides import Guides
from jaxllama.engine.probes import OnLogits, Probes, ProbeSteps, Result
from jaxllama.engine.programs import Programs
from jaxllama.engine.prompts import Prompts
from jaxllama.engine.reading import Reading, Sent
from jaxllama.engine.recovery import Recovery
from jaxllama.engine.slots import Claim, SlotTable
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
# Decode calls are this short while several clients use the engine: a new request waits for a call.
SECONDS_PER_SHARED_SYNC = 0.01

InSteps = Generator[int, None, Result]  # yields how many tokens each of its calls has computed


class Engine:
    """Runs all live requests of one model on one batch of slots."""

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
        self._probes = Probes(programs, self.slots, self._prompts)
        self._guides = Guides(self._emit, self._end, programs)
        self._clock = clock
        self._ids = itertools.count()
        self._live: dict[int, Generation] = {}  # all generations not ended, oldest first
        self._waiting: deque[Generation] = deque()
        self._running: list[Generation | None] = [None] * self.config.slots
        self._sent: deque[Sent] = deque()
        self._events: list[Event] = []
        self.step_seconds = 0.0  # duration of one decode step, as last measured
        self._last_read = 0.0
        self.requests_wait = False  # requests outside wait for a slot; set by the caller
        self.is_shared = False  # several clients use the engine; set by the caller
        self._state = programs.empty()
        self._state_lost = False  # freed after a fault, and no new state made yet

    # The interface for callers.

    def submit(
        self, request: GenerationRequest, tail: TextTail | None = None, *, client: str = ""
    ) -> Generation:
        """Queue a request; its events carry the returned generation's id.

        Raises QueueFull, or PromptTooLong or InvalidParameter for a request that does not fit.
        """
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
        """End a generation in any phase; do nothing if it has ended already."""
        if generation.phase is not Phase.DONE:
            with self._recovering(blame=False):
                self._end(generation, FinishReason.CANCELLED)

    def close(self) -> None:
        """Cancel all requests and free the device memory; the engine cannot be used afterwards."""
        for generation in list(self._live.values()):
            self.cancel(generation)
        self._sent.clear()
        self._drop_state()
        self.programs.delete_weights()

    @property
    def idle(self) -> bool:
        """Say whether no request is live, no decode call is unread and no event is pending."""
        return not (self._live or self._sent or self._events)

    @property
    def counts(self) -> dict[str, int]:
        """Count the generations of each phase, and the claimed slots."""
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
        """List the generation in each slot (None: free); may be read from another thread."""
        found: list[Generation | None] = [None] * self.config.slots
        for generation in list(self._live.values()):
            for part in generation.parts:
                if part.slot >= 0 and not part.is_over:
                    found[part.slot] = part
        return found

    @property
    def room(self) -> int:
        """Count the free slots left for new requests, minus those that waiting requests will take.

        0 while requests suspected of a fault run alone.
        """
        if self.recovery.alone is not None or self.recovery.suspects:
            return 0
        return self.slots.free - sum(len(one.request.prompts) for one in self._waiting)

    @property
    def owes_first_token(self) -> bool:
        """Say whether some request waits, is in prefill, or has no token yet."""
        rows = (one for one in self._running if one is not None)
        return bool(self._waiting or self._prompts) or any(not one.emitted for one in rows)

    def step(self) -> list[Event]:
        """Admit requests, fill prompts, decode and emit; return the events since the last step."""
        if self._live:
            self._renew_state()
        with self._recovering():
            self._admit_waiting()
            self._fill_prompts()
            if self._has_guided_rows:
                self._decode_guided()
            else:
                self._emit_until(unread=int(self._decode()))
            self._limit_queued_work()
        events, self._events = self._events, []
        return events

    @property
    def _has_guided_rows(self) -> bool:
        """Say whether a running request has a constraint."""
        return any(each is not None and each.guide is not None for each in self._running)

    # Admission.

    def _admit_waiting(self) -> None:
        """Give free slots to waiting requests, oldest first; a suspect of a fault runs alone.

        A request that needs two slots is not overtaken by later ones.
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
            generation.add_guidance_row(next(self._ids))
            for part in generation.parts:
                claim = self.slots.claim(part.id, part.known)
                assert claim is not None
                self._state = self._prompts.take(self._state, part, claim)
            self._guides.begin(generation)

    def _fill_prompts(self) -> None:
        """Prefill one chunk; start decoding each request whose prompts are all in the cache."""
        self._state, ready = self._prompts.advance(self._state)
        for part in ready:
            generation = part.leader or part
            waits = generation.phase is Phase.FILLING
            if waits and all(each.in_cache for each in generation.parts):
                self._start(generation)

    def _start(self, generation: Generation) -> None:
        """Write the rows of one request into the device state, so that they decode."""
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
        """Send one decode call for all running rows; return False if no row runs.

        Rows whose generation is `resting` have no allowed token: the call ignores their output.
        """
        if not any(self._running):
            return False
        steps = steps or self._steps_to_decode()
        self._state, output = self.programs.decode(self._state, np.int32(steps), allowed)
        owners = [None if owner in resting else owner for owner in self._running]
        self._sent.append(Sent(output, steps, owners))
        return True

    def _steps_to_decode(self) -> int:
        """Choose the number of decode steps of the next call.

        One while a prompt is in prefill or a row waits for its first token. Otherwise as many as
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
            budgets = (one.request.max_tokens - len(one.emitted) - sent for one, sent in rows)
            steps = min(steps, *budgets)
        return min(max(steps, 1), self.config.steps_per_sync)

    def _steps_sent(self, generation: Generation) -> int:
        """Count the decode steps of unread calls that include this generation's row."""
        return sum(sent.steps for sent in self._sent if sent.owners[generation.slot] is generation)

    def _read(self, sent: Sent) -> Reading:
        """Wait for a decode call and measure the duration of its steps."""
        reading = Reading(sent)
        self._measure(reading.steps_taken)
        return reading

    def _emit_until(self, *, unread: int) -> None:
        """Read and emit the sent decode calls, oldest first, until `unread` of them are left.

        With one left, the host reads the previous call while the device runs the new one.
        """
        while len(self._sent) > unread:
            self._emit_all(self._read(self._sent.popleft()))

    def _limit_queued_work(self) -> None:
        """Wait for the device if clients share the engine and no decode call is unread.

        Without a decode call nothing else waits for the device: prompt chunks would queue up there
        without a bound, and a request of another client after them.
        """
        if self.is_shared and not self._sent:
            jax.block_until_ready(self._state)

    def _emit_all(self, reading: Reading, *, guided: bool | None = None) -> None:
        """Emit the tokens of a decode call; `guided` selects only rows with or without a guide."""
        for owner, token, logprobs in reading.drawn(guided=guided):
            if token is None:
                self._fail_row(owner)
            else:
                self._accept_token(owner, token, logprobs)

    def _measure(self, taken: int) -> None:
        """Update `step_seconds` after a call of `taken` steps."""
        now = self._clock()
        if taken and self._last_read:
            self.step_seconds = (now - self._last_read) / taken
        self._last_read = now if self._sent else 0.0

    def _accept_token(
        self, generation: Generation, token: int, logprobs: TokenLogprobs | None
    ) -> None:
        """Note that the previous token is cached; emit the new one unless a replay repeats it."""
        for part in generation.parts:
            self.slots.slots[part.slot].cached.append(part.newest)  # it was fed just now
        self.recovery.progressed(generation)
        if generation.replayed:  # emitted before the fault already
            generation.replayed -= 1
            generation.emitted.append(token)
        else:
            self._emit(generation, token, logprobs)
        if generation.guide is not None:
            self._follow_constraint(generation, token)

    def _emit(
        self, generation: Generation, token: int, logprobs: TokenLogprobs | None = None
    ) -> None:
        """Add one token to the answer and emit its event, or end the answer with it."""
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
        """Read all sent calls, decode one step for all rows, and emit the tokens that were read.

        The next mask of a guided row depends on its last token, so calls do not overlap here.
        Tokens of guided rows are emitted before the call; tokens of other rows after it, so
        that the device does not wait for them. A row whose mask takes long skips steps.
        """
        readings = [self._read(self._sent.popleft()) for _ in range(len(self._sent))]
        for each in readings:
            self._emit_all(each, guided=True)
        masks = self._guides.masks(self._running)
        waiting = self._guides.waiting
        if len(waiting) < len(list(filter(None, self._running))):
            self._decode(1, masks, resting=waiting)
        elif waiting and not self._prompts:
            self._guides.wait()
        for each in readings:
            self._emit_all(each, guided=False)

    def _follow_constraint(self, generation: Generation, token: int) -> None:
        """Advance the guide by one token; forced tokens, if any, are prefilled like a prompt."""
        if self._guides.follow(generation, token, rows=self.slots.claimed):
            self._running[generation.slot] = None
            self._release(generation)
            self._prompts.resume(generation)

    # Endings.

    def _fail_row(self, generation: Generation) -> None:
        """Fail a row whose logits are NaN or infinite, and zero its cache: it cannot be reused."""
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
        """End a generation: emit Finished, set its phase to DONE, free its slots.

        The only place that does so.
        """
        phase, generation.phase = generation.phase, Phase.DONE
        del self._live[generation.id]
        generation.ended = self._clock()
        stop, text = finish_text(generation)
        outcome = {FinishReason.CANCELLED: "cancelled", FinishReason.FAILED: "failed"}
        self.ledger[outcome.get(reason, "finished")] += 1
        usage = generation.usage()
        self._events.append(Finished(generation.id, reason, usage, text, stop, error))
        self.recovery.forget(generation)
        match phase:  # last, because a device call may fail: by now the event exists
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
        """Take a row out of the batch and free its slot; the cached prefix can be reused."""
        self._running[generation.slot] = None
        if not any(self._running):
            self._sent.clear()  # no row is left that needs these calls
        for part in generation.parts:
            self.slots.release(part.slot)
        # The device knows when an unguided row has used up its budget or drawn an end token.
        known = reason in (FinishReason.LENGTH, FinishReason.END_TOKEN) and generation.guide is None
        if not known:
            self._release(generation)

    def _release(self, generation: Generation) -> None:
        """Make the rows of a generation on the device inert."""
        mask = np.zeros(self.config.slots, np.bool_)
        mask[[part.slot for part in generation.parts]] = True
        self._state = self.programs.release(self._state, mask)

    # Probes read without drawing, in a free slot; the caller steps until one is free. Each probe
    # has two forms: a method that runs it whole, and a generator `..._in_steps` that runs one
    # program at a time, so that the engine can step in between; both return the same.

    def peek(self, ids: Sequence[int], start: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the log-probabilities of ids[start:] and the logits after the last token."""
        return finish(self.peek_in_steps(ids, start))

    def peek_in_steps(
        self, ids: Sequence[int], start: int, on_logits: OnLogits | None = None
    ) -> InSteps[tuple[np.ndarray, np.ndarray]]:
        """Run `peek` in steps; `on_logits` gets all logits from the token before `start` on."""
        self.config.check_length(len(ids), 0)

        def peek(slot: int) -> ProbeSteps[tuple[np.ndarray, np.ndarray]]:
            return self._probes.peek(self._state, slot, ids, start, on_logits)

        return self._probe(ids[:start], peek)

    def weigh(self, continuations: Sequence[Continuation]) -> list[np.ndarray]:
        """Return the log-probabilities of the weighed tokens of many continuations.

        A continuation is token ids and the index, at least 1, of the first token to weigh. A prefix
        that several continuations share is computed once: this method is for many short
        continuations of one long prefix.
        """
        return finish(self.weigh_in_steps(continuations))

    def weigh_in_steps(self, continuations: Sequence[Continuation]) -> InSteps[list[np.ndarray]]:
        """Run `weigh` in steps."""
        for ids, _ in continuations:
            self.config.check_length(len(ids), 0)
        shared = shared_prefix(continuations)
        known = continuations[0][0][:shared]
        return self._probe(
            known, lambda slot: self._probes.weigh(self._state, slot, continuations, shared)
        )

    def embed(self, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return the final hidden states of `ids` after the last norm: their mean, and the last."""
        return finish(self.embed_in_steps(ids))

    def embed_in_steps(self, ids: Sequence[int]) -> InSteps[tuple[np.ndarray, np.ndarray]]:
        """Run `embed` in steps."""
        self.config.check_length(len(ids), 0)
        return self._probe((), lambda slot: self._probes.embed(self._state, slot, ids))

    def _probe(
        self, known: Sequence[int], begin: Callable[[int], ProbeSteps[Result]]
    ) -> InSteps[Result]:
        """Run a probe in a free slot, one that has most of `known` cached; may be closed early.

        Yields after each call of a program how many tokens that call computed; returns the result
        of the probe. Raises QueueFull if no slot is free, GenerationFailed if the engine restarts.
        """
        claim, table = self.slots.claim(-1, (*known, NO_ID)), self.slots
        if claim is None:
            raise QueueFull("all slots are busy; step the engine until one is free")
        try:
            self._copy_for_probe(claim, known)
            probe, before = begin(claim.slot), self._probes.computed
            self._state = next(probe)
            while True:
                yield self._probes.computed - before
                if self.slots is not table:
                    raise GenerationFailed(
                        "the engine restarted after a fault; send the request again"
                    )
                before = self._probes.computed
                self._state = probe.send(self._state)
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

    def _copy_for_probe(self, claim: Claim, known: Sequence[int]) -> None:
        """Copy the prefix that another slot has cached already into the slot of a probe."""
        if claim.source is None:
            return
        source, own = (self.slots.slots[each].cached for each in (claim.source, claim.slot))
        there = min(own.shared_with(source), len(source), len(known))
        if there > len(own):
            prefix = known[:there]
            self._state = self._prompts.copy(self._state, claim.source, claim.slot, prefix)

    # Faults.

    @contextmanager
    def _recovering(self, *, blame: bool = True) -> Iterator[None]:
        """Run programs in this context; replay the live requests after a fault or an interrupt."""
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

        Without `blame` no request is failed: a cancelled request or a probe caused the fault.
        Raises the error of `Programs.empty`; the next step then tries again to make a state.
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
        """Free the old state, clear all slots, rewind the live requests and return them."""
        self._drop_state()
        traceback.clear_frames(error.__traceback__)  # a failed call may hold arrays of its own
        live = [one for one in self._live.values() if one.phase is not Phase.WAITING]
        self._running = [None] * self.config.slots
        self._sent.clear()
        self._last_read = 0.0
        self.slots = SlotTable(self.config.slots)
        self._prompts = Prompts(self.programs, self.slots)
        self._probes = Probes(self.programs, self.slots, self._prompts)
        for generation in live:
            self._rewind(generation)
        return live

    def _drop_state(self) -> None:
        """Free the device memory of the state, except arrays that a failed program consumed."""
        if not self._state_lost:
            self.programs.delete(self._state)
        self._state_lost = True

    def _renew_state(self) -> None:
        """Make a new state if there is none."""
        if self._state_lost:
            self._state = self.programs.empty()
            self._state_lost = False

    def _rewind(self, generation: Generation) -> None:
        """Reset a generation to WAITING; if its samplers keep state, its tokens are drawn again."""
        generation.phase, generation.slot = Phase.WAITING, -1
        generation.source = generation.follows = generation.guidance = None
        if self.bank.remembers(generation.request.knobs):
            generation.replayed += len(generation.emitted)
            generation.emitted.clear()
            generation.guide = None


def finish(probe: InSteps[Result]) -> Result:
    """Run a probe to its end and return its result."""
    while True:
        try:
            next(probe)
        except StopIteration as end:
            return end.value


def finish_text(generation: Generation) -> tuple[str | None, str]:
    """Return the stop string that ended the answer, if any, and flush the text still buffered."""
    if generation.tail is None:
        return None, ""
    try:
        return generation.tail.stopped, generation.tail.flush()
    except Exception:
        logger.exception("flushing the text of generation %s failed", generation.id)
        return None, ""
