"""The engine: submit, cancel, step - many requests through one batch of slots.

Driven by a plain loop or by `bridge.py`; synchronous, without threads; knows token ids only. One
`step` admits waiting requests, sends at most one prompt chunk and one decode call to the device,
and reads the previous decode call while the new one runs. So the device itself decides end tokens
and budgets, and the host sees stop strings one call late: it drops the tokens after them. Programs
run in the order in which they were sent, so a slot can be used again as soon as its release was
sent.

This file is the schedule. `batch.py` owns the state on the device, `prompts.py` gets prompts into
the cache, `prompt_store.py` keeps what slots drop, `calls.py` keeps the unread decode calls,
`guides.py` follows constraints, `recovery.py` replays the live requests after a fault, and
`probes.py` reads without drawing.
"""

import itertools
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from functools import partial

from jaxllama.engine.adapters import LoadedAdapters, loaded
from jaxllama.engine.batch import Batch, TellHosts
from jaxllama.engine.blueprints import ADAPTED, SAVE, WHOLE
from jaxllama.engine.cached_blocks import CachedBlocks, Tell
from jaxllama.engine.calls import DecodeCalls
from jaxllama.engine.generation import Generation, Phase
from jaxllama.engine.guides import Guides
from jaxllama.engine.probes import Probes
from jaxllama.engine.programs import SECONDS_PER_WAIT, Programs
from jaxllama.engine.prompt_files import PromptFiles
from jaxllama.engine.prompt_store import LEAST, PromptStore
from jaxllama.engine.prompts import Prompts
from jaxllama.engine.reading import Reading
from jaxllama.engine.recovery import Recovery
from jaxllama.engine.remote_calls import repeat_calls
from jaxllama.engine.slots import Slot, SlotTable, key_of
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

SHARED_CALLS = 5  # how many times shorter decode calls are while several clients use the engine
EARLY = 0.25  # of a decode step: the next call is sent that much before the device needs it
MOST_WAITING_PER_SLOT = 16  # more requests are not asked for while some wait for samplers


class Engine:
    """Runs all live requests of one model on one batch of slots."""

    def __init__(
        self,
        programs: Programs,
        *,
        adapters: LoadedAdapters | None = None,
        prompt_store: PromptStore | None = None,
        prompt_files: PromptFiles | None = None,
        tell_hosts: TellHosts | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.programs = programs
        self.adapters = adapters
        self.config = programs.engine
        self.bank = programs.bank
        self.ledger: Counter[str] = Counter()  # accepted, finished, cancelled, failed
        self.drafts: Counter[str] = Counter()  # drafted, accepted tokens
        self.requests_wait = False  # requests outside wait for a slot; set by the caller
        self.is_shared = False  # several clients use the engine; set by the caller
        self._clock = clock
        self._ids = itertools.count()
        self._live: dict[int, Generation] = {}  # all generations not ended, oldest first
        self._waiting: deque[Generation] = deque()
        self._running: list[Generation | None] = [None] * self.config.slots
        self._events: list[Event] = []
        self._has_logged_wait = False
        self._batch = Batch(programs, adapters, tell_hosts)
        self.prompt_store = PromptStore(0, 1) if prompt_store is None else prompt_store
        self._prompt_files = prompt_files
        if prompt_files is not None:
            prompt_files.read(self.prompt_store)
        self.slots = SlotTable(self.config.slots, self._keep_dropped)
        self.calls = DecodeCalls(self._batch, clock)
        self.recovery = Recovery(self._batch, self._waiting, clear=self._clear, fail=self._fail)
        self._prompts = Prompts(self._batch, self.slots, self.prompt_store)
        self.probes = Probes(self._batch, self.slots, self._prompts, self.recovery)
        self._guides = Guides(self._record, self._end, programs)
        self._keeps_answers = programs.body.steps_match_prompts()  # prompts reuse their columns
        self._cached_blocks: CachedBlocks | None = None

    # The interface for callers.

    def submit(
        self, request: GenerationRequest, tail: TextTail | None = None, *, client: str = ""
    ) -> Generation:
        """Queue a request; return its generation, whose id its events carry.

        `tail` converts the request's tokens to text; with None, events have no text. `client` is
        any name of the sender: clients take turns in prefill, and all requests with "" are of one
        client. Raises QueueFull, or PromptTooLong or InvalidParameter for a request that does not
        fit.
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
        used = self.bank.switched_on(request.knobs, is_constrained=request.constraint is not None)
        is_common = self.programs.lean_serves(request, used)
        generation = Generation(
            next(self._ids), request, tail, self._clock(), client, is_common=is_common
        )
        if not (is_common or self.programs.is_ready(WHOLE) or self._has_logged_wait):
            self._has_logged_wait = True
            logger.info(
                "requests that use %s wait until the decode program with all samplers is there",
                ", ".join(sorted(used - self.bank.common)) or "log-probabilities or guidance",
            )
        if request.adapter is not None:
            loaded(self.adapters).begin(request.adapter)
        self._live[generation.id] = generation
        self._waiting.append(generation)
        self.ledger["accepted"] += 1
        return generation

    def cancel(self, generation: Generation) -> None:
        """End a generation in any phase; do nothing if it has ended already."""
        if generation.phase is not Phase.DONE:
            with self.recovery.guard(blame=False):
                self._end(generation, FinishReason.CANCELLED)

    def repeat_calls(self, next_call: Callable[[], bytes | None]) -> None:
        """Repeat the device calls of host 0's engine on this host, until there are no more.

        Several hosts run the model together; host 0 takes the requests. `next_call` returns the
        next call of host 0 as bytes, or None after the last one.
        """
        repeat_calls(self._batch, next_call)

    def tell_of_blocks(self, tell: Tell) -> None:
        """Call `tell` with events about cached blocks of tokens, now and after later steps.

        A block is a fixed number of tokens in the KV cache. The first events list the blocks cached
        now, and come before this method returns; later ones tell the changes.
        """
        self._cached_blocks = CachedBlocks(self.slots, self.prompt_store, tell)

    def close(self) -> None:
        """Cancel all requests and free the device memory; the engine cannot be used afterwards."""
        for generation in list(self._live.values()):
            self.cancel(generation)
        self.calls.clear()
        if self._prompt_files is not None:
            self._write_prompts(self._prompt_files)
        self._batch.drop()
        self.programs.stop()
        self.programs.delete_weights()
        if self.adapters is not None:
            self.adapters.drop()

    @property
    def idle(self) -> bool:
        """Say whether no request is live, no decode call is unread and no event is pending."""
        return not (self._live or self.calls or self._events)

    @property
    def counts(self) -> dict[str, int]:
        """Count the requests in each phase, and the slots in use.

        The keys are "waiting", "filling" (in prefill), "running" (in decode) and "slots".
        """
        waiting = len(self._waiting) + len(self.recovery.suspects.waiting)
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
        """Count the free slots, minus those that waiting requests will take.

        0 while requests that may have caused a fault run one by one. Waiting requests whose decode
        program is still being compiled are not subtracted, but if very many requests wait the count
        is 0.
        """
        if self.recovery.suspects:
            return 0
        if len(self._waiting) >= MOST_WAITING_PER_SLOT * self.config.slots:
            return 0
        return self.slots.free - sum(len(one.request.prompts) for one in self._admissible)

    @property
    def owes_first_token(self) -> bool:
        """Say whether some request waits, is in prefill, or has not drawn its first token yet."""
        rows = (one for one in self._running if one is not None)
        return bool(self._waiting or self._prompts) or any(not one.emitted for one in rows)

    @property
    def spare_seconds(self) -> float:
        """Return how long the next `step` can wait without leaving the device idle.

        A request that comes in meanwhile gets its first token a decode call earlier, since a step
        sends a call before it reads the previous one. 0 if one client alone uses the engine, where
        sending early costs nobody anything, or if a row has a constraint: its next mask is needed.
        """
        if not self.is_shared or any(one is not None and one.guide for one in self._running):
            return 0.0
        return max(0.0, self.calls.seconds_left - EARLY * self.calls.step_seconds)

    def step(self) -> list[Event]:
        """Admit requests, prefill a chunk, send a decode call and read the previous one.

        Returns the events since the last step, oldest first.
        """
        if self._live:
            self._batch.renew()
        with self.recovery.guard():
            self._admit_waiting()
            self._fill_prompts()
            self._decode()
            self._limit_queued_work()
            self._wait_for_program()
        self.prompt_store.settle()
        if self._cached_blocks is not None:
            self._cached_blocks.look()
        events, self._events = self._events, []
        return events

    # Admission.

    def _admit_waiting(self) -> None:
        """Give free slots to waiting requests, oldest first.

        A request that needs two slots is not overtaken by later ones; a request whose decode
        program is still being compiled is overtaken. A request that may have caused a fault runs
        alone.
        """
        suspects = self.recovery.suspects
        while suspects.alone is None:
            first = suspects.waiting[0] if suspects.waiting else None
            generation = first or next(self._admissible, None)
            if generation is None or self.slots.free < len(generation.request.prompts):
                return
            suspects.alone = first
            (self._waiting if first is None else suspects.waiting).remove(generation)
            generation.phase = Phase.FILLING  # from here on, a fault or an interrupt replays it
            generation.add_guidance_row(next(self._ids))
            for part in generation.parts:
                claim = self.slots.claim(part.id, part.known, key_of(part.request.adapter))
                assert claim is not None
                self._prompts.take(part, claim)
            self._guides.begin(generation)

    @property
    def _admissible(self) -> Iterator[Generation]:
        """Yield the waiting requests whose decode program is compiled, oldest first."""
        is_ready = self.programs.is_ready
        return (one for one in self._waiting if all(map(is_ready, self._needed_by(one))))

    def _needed_by(self, generation: Generation) -> Iterator[str]:
        """Yield the names of the programs that must be compiled before a request is admitted."""
        if not generation.is_common:
            yield WHOLE
        if generation.request.adapter is not None:
            yield ADAPTED

    def _fill_prompts(self) -> None:
        """Prefill one chunk; start to decode the requests whose prompts are all in the cache."""
        for part in self._prompts.advance(is_shared=self.is_shared):
            generation = part.leader or part
            waits = generation.phase is Phase.FILLING
            if waits and all(each.in_cache for each in generation.parts):
                self._start(generation)

    def _start(self, generation: Generation) -> None:
        """Write a request's rows to the device, so that they decode.

        These are its own row and, with guidance, the row of its negative prompt.
        """
        for part in generation.parts:
            leader = -1 if part is generation else generation.slot
            known = tuple(part.known)
            row = row_start(part.request, known, self.config, self.bank, leader=leader)
            self._batch.admit(part.slot, row)
            part.phase = Phase.RUNNING
        self._running[generation.slot] = generation

    # Decoding.

    def _decode(self) -> None:
        """Send the next decode call, read the previous one and append the events of its tokens."""
        if any(each is not None and each.guide is not None for each in self._running):
            self._decode_guided()
            return
        if any(self._running):
            self._send_call()
            unread = 1  # the host reads the call before it while the device runs this one
        else:
            unread = 0
        while len(self.calls) > unread:
            self._emit_all(self.calls.read())

    def _send_call(self) -> None:
        """Send a decode call of all rows, or one of the rows in `_rows_ahead` if there are any."""
        ahead = self._rows_ahead()
        if not ahead:
            self.calls.send(self._steps_to_decode(), self._running)
            return
        owners = [owner if owner in ahead else None for owner in self._running]
        masks = self._guides.masks(owners)
        for owner in self._running:
            if owner is not None and owner not in ahead:
                masks.leave_out(owner)
        self.calls.send(1, owners, masks)

    def _rows_ahead(self) -> list[Generation]:
        """Return the rows that draw their first token in a call without the other rows.

        A call of few rows is short. These are the new rows of other clients than the one that holds
        more than half of all rows.
        """
        if not self.is_shared:
            return []
        rows = [one for one in self._running if one is not None]
        ((largest, count),) = Counter(one.client for one in rows).most_common(1)
        if 2 * count <= len(rows):
            return []
        others = (one for one in rows if one.client != largest and not one.emitted)
        return [one for one in others if not self.calls.steps_sent(one)]

    def _steps_to_decode(self) -> int:
        """Choose the number of decode steps of the next call.

        One while a prompt is in prefill or a row waits for its first token. Otherwise as many as
        fit into a call's time; while requests wait for a slot, the call ends with the first row
        that reaches its budget.
        """
        if self._prompts or self.recovery.suspects.waiting:
            return 1
        rows = [(one, self.calls.steps_sent(one)) for one in self._running if one is not None]
        if any(not sent and not one.emitted for one, sent in rows):
            return 1
        seconds = self.config.sync_ms / 1000 / (SHARED_CALLS if self.is_shared else 1)
        steps = self.calls.steps_in(seconds)
        if self._waiting or self.requests_wait:
            budgets = (one.request.max_tokens - len(one.emitted) - sent for one, sent in rows)
            steps = min(steps, *budgets)
        return min(max(steps, 1), self.config.steps_per_sync)

    def _limit_queued_work(self) -> None:
        """Wait for the device if several clients share the engine and no decode call is unread.

        Normally the host waits for the device when it reads a decode call. Without a decode call,
        prompt chunks would queue on the device without a bound, in front of the next client's
        request.
        """
        if self.is_shared and not self.calls:
            self._batch.wait()

    def _wait_for_program(self) -> None:
        """Wait for a decode program if no request can run before it is compiled.

        Waits at most SECONDS_PER_WAIT.
        """
        if not (self._waiting and self._is_resting):
            return
        for name in self._needed_by(self._waiting[0]):
            if not self.programs.is_ready(name):
                self.programs.wait(name, SECONDS_PER_WAIT)
                return

    @property
    def _is_resting(self) -> bool:
        """Say whether no row runs, no prompt is in prefill and `step` has no event to return.

        No decode call may be unread, either.
        """
        return not (self._events or self.calls or self._prompts or any(self._running))

    def _emit_all(self, reading: Reading, *, guided: bool | None = None) -> None:
        """Append the events of all tokens of a decode call to the list that `step` returns.

        `reading` has the call's tokens. `guided`: True only for rows with a constraint, False only
        for rows without; None for all rows.
        """
        if not guided:
            self._count_drafts(reading)
        for owner, token, logprobs in reading.drawn(guided=guided):
            if token is None:
                self._fail_row(owner)
            else:
                self._accept_token(owner, token, logprobs)

    def _count_drafts(self, reading: Reading) -> None:
        """Add the drafted and accepted tokens of the call in `reading` to the counters.

        These are the counters of each generation and of the engine.
        """
        for owner, drafted, accepted in reading.drafts():
            owner.drafted += drafted
            owner.accepted += accepted
            self.drafts["drafted"] += drafted
            self.drafts["accepted"] += accepted

    def _accept_token(
        self, generation: Generation, token: int, logprobs: TokenLogprobs | None
    ) -> None:
        """Record a drawn token: append its event, and advance the row's constraint if it has one.

        `logprobs` are its log-probabilities, None if not requested. A replayed token, whose event
        was sent before a fault, gets no event. The token before the new one is noted as cached.
        """
        if self._keeps_answers:
            for part in generation.parts:
                self.slots.slots[part.slot].cached.append(part.newest)  # it was fed just now
        self.recovery.suspects.progressed(generation)
        self._record(generation, token, logprobs)
        self._guides.follow(generation, token)

    def _record(
        self, generation: Generation, token: int, logprobs: TokenLogprobs | None = None
    ) -> None:
        """Add one token to the answer, and emit it unless that was done before a fault.

        `logprobs` are its log-probabilities, None if not requested.
        """
        if generation.replayed:
            generation.replayed -= 1
            generation.emitted.append(token)
        else:
            self._emit(generation, token, logprobs)

    def _emit(
        self, generation: Generation, token: int, logprobs: TokenLogprobs | None = None
    ) -> None:
        """Add one token to the answer and append its event to the list that `step` returns.

        `logprobs` are its log-probabilities, None if not requested. Ends the answer at an end
        token, a stop string or the length limit.
        """
        generation.sampled += 1
        if generation.first is None:
            generation.first = self._clock()
        if token in generation.request.stop_ids:
            self._end(generation, FinishReason.END_TOKEN, end_token=token)
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
        """Read all sent calls, send one decode step, and append the events of what was read.

        The next mask of a row with a constraint depends on its last token, so calls do not overlap
        here. Events of these rows are made before the call; those of other rows after it, so that
        the device does not wait for them. A row whose mask is not ready skips the step.
        """
        readings = [self.calls.read() for _ in range(len(self.calls))]
        for each in readings:
            self._emit_all(each, guided=True)
        for owner in filter(None, self._running):
            self._skip_forced(owner)
        masks = self._guides.masks(self._running)
        waiting = self._guides.waiting
        if len(waiting) < len(list(filter(None, self._running))):
            owners = [None if owner in waiting else owner for owner in self._running]
            self.calls.send(1, owners, masks)
            self._note_given()
        elif waiting and not self._prompts:
            self._guides.wait()
        for each in readings:
            self._emit_all(each, guided=False)

    def _note_given(self) -> None:
        """Mark the forced tokens that the last decode call computes as cached.

        A forced token is the only one that the constraint allows. These tokens were emitted without
        being drawn; the call, which was just sent, writes them to the KV cache.
        """
        if not self._keeps_answers:
            return
        for owner in self._guides.given:
            for part in owner.parts:
                cached = self.slots.slots[part.slot].cached
                cached.extend(part.known[len(cached) : -1])

    def _skip_forced(self, generation: Generation) -> None:
        """Emit the forced tokens of a running generation at once, where that is faster.

        A forced token is the only one that the constraint allows. The row then goes back to
        prefill, which computes them.
        """
        if self._guides.skip(generation, rows=self.slots.claimed):
            self._running[generation.slot] = None
            self._release(generation)
            self._prompts.resume(generation)

    # Endings.

    def _fail_row(self, generation: Generation) -> None:
        """Fail a generation whose logits are NaN or infinite; zero its cache and never reuse it."""
        why = (
            "the model produced NaN or infinity for this request; its neighbours are not "
            "affected (float16 overflows: try --dtype bfloat16 or float32)"
        )
        if generation.guide is not None:
            why = f"the request's samplers ban every token that its constraint allows, or {why}"
        self._fail(generation, GenerationFailed(why))
        for part in generation.parts:
            self.slots.release(part.slot, keep=False)
            self._batch.scrub(part.slot)

    def _fail(self, generation: Generation, error: JaxLlamaError) -> None:
        self._end(generation, FinishReason.FAILED, error)

    def _end(
        self,
        generation: Generation,
        reason: FinishReason,
        error: JaxLlamaError | None = None,
        *,
        end_token: int | None = None,
    ) -> None:
        """End a generation: append its Finished event, set its phase to DONE, free its slots.

        No other method ends a generation. `reason` and `error` (None without one) go into the
        event. `end_token` is the end token that was drawn, None if the answer did not end at one.
        """
        phase, generation.phase = generation.phase, Phase.DONE
        del self._live[generation.id]
        generation.ended = self._clock()
        stop, text = finish_text(generation)
        outcome = {FinishReason.CANCELLED: "cancelled", FinishReason.FAILED: "failed"}
        self.ledger[outcome.get(reason, "finished")] += 1
        usage = generation.usage()
        self._events.append(Finished(generation.id, reason, usage, text, stop, error, end_token))
        self.recovery.suspects.forget(generation)
        if generation.request.adapter is not None:
            loaded(self.adapters).end(generation.request.adapter)
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
        """Take a generation that decodes out of the batch and free its slots.

        The tokens cached in the slots can be reused. `reason` is why it ended. A row without a
        constraint that ended at an end token or the length limit was stopped by the device itself;
        other rows are stopped here.
        """
        self._running[generation.slot] = None
        if not any(self._running):
            self.calls.clear()  # no row is left that needs these calls
        for part in generation.parts:
            self.slots.release(part.slot)
        # The device knows when an unguided row has used up its budget or drawn an end token.
        known = reason in (FinishReason.LENGTH, FinishReason.END_TOKEN) and generation.guide is None
        if not known:
            self._release(generation)

    def _release(self, generation: Generation) -> None:
        """Stop a generation's rows on the device: its own, and that of a negative prompt."""
        self._batch.release([part.slot for part in generation.parts])

    def _keep_dropped(self, slot: Slot, kept: int) -> None:
        """Copy a slot's cached tokens to the prompt store before it keeps only the first `kept`.

        Does nothing if the slot would drop fewer than LEAST tokens, or if the program that copies
        them is still being compiled.
        """
        # While the program is being compiled, a request would wait for it.
        if len(slot.cached) - kept >= LEAST and self.programs.is_ready(SAVE):
            self._keep(slot)

    def _keep(self, slot: Slot) -> None:
        if self.prompt_store.is_on:
            read = partial(self._batch.save, slot.index)
            self.prompt_store.save(slot.cached.ids, slot.adapter, read)

    def _write_prompts(self, files: PromptFiles) -> None:
        """Write the cached prefixes to disk: those in the prompt store and those in the slots."""
        with self.recovery.guard(blame=False):
            for slot in self.slots.slots:
                if len(slot.cached) >= LEAST:
                    self._keep(slot)
        self.prompt_store.finish()
        files.write(self.prompt_store)

    def _clear(self) -> list[Generation]:
        """Free all slots and forget cached tokens and unread calls.

        Returns the generations that held slots.
        """
        held = [one for one in self._live.values() if one.phase is not Phase.WAITING]
        self._running = [None] * self.config.slots
        self.calls.clear()
        self.slots.clear()
        self._prompts.clear()
        self.prompt_store.forget_unsettled()
        return held


def finish_text(generation: Generation) -> tuple[str | None, str]:
    """Return the stop string that ended the answer (or None), and the text still buffered.

    If the conversion of tokens to text fails, logs that and returns (None, "").
    """
    if generation.tail is None:
        return None, ""
    try:
        return generation.tail.stopped, generation.tail.flush()
    except Exception:
        logger.exception("flushing the text of generation %s failed", generation.id)
        return None, ""
