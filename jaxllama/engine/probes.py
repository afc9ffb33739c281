"""Probes: read what the model computes for given tokens, without drawing any.

Each probe is a generator that runs one program at a time, in a free slot, so that the engine can
step in between; `finish` runs one whole. The tokens it computes are noted as cached in the slot, so
the next probe of the same prefix starts after it.
"""

from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

import numpy as np

from jaxllama.config import EngineConfig
from jaxllama.engine.adapters import loaded
from jaxllama.engine.batch import Batch
from jaxllama.engine.blueprints import SUFFIX
from jaxllama.engine.branches import (
    PAIRS,
    RUN,
    TARGET_ROWS,
    Continuation,
    TokenRun,
    build_tree,
    cut_runs,
    group_runs,
    shared_prefix,
)
from jaxllama.engine.programs import SECONDS_PER_WAIT
from jaxllama.engine.prompts import Prompts
from jaxllama.engine.recovery import Recovery
from jaxllama.engine.slots import Claim, SlotTable, key_of
from jaxllama.engine.steps import Runs
from jaxllama.errors import GenerationFailed, QueueFull
from jaxllama.request import AdapterUse

NO_ID = -1  # no token: shares a prefix with nothing
NO_OWNER = -1  # owner of the slots that probes hold: no generation has this id

Result = TypeVar("Result")
InSteps = Generator[int, None, Result]  # yields how many tokens each of its calls has computed
OnLogits = Callable[[np.ndarray], object]  # gets logits [R V] of consecutive tokens


class Probes:
    """Probes compute log-probabilities or hidden states of known tokens, without drawing any.

    Each method raises QueueFull if no slot is free.
    """

    def __init__(
        self, batch: Batch, slots: SlotTable, prompts: Prompts, recovery: Recovery
    ) -> None:
        self._batch = batch
        self._table = slots
        self._prompts = prompts
        self._recovery = recovery

    def peek(
        self,
        ids: Sequence[int],
        start: int,
        on_logits: OnLogits | None = None,
        *,
        adapter: AdapterUse | None = None,
    ) -> InSteps[tuple[np.ndarray, np.ndarray]]:
        """Compute the log-probabilities of ids[start:], and the logits after the last token.

        A generator: yields how many tokens each device call computed, and returns both arrays.
        `start` is at least 1. `on_logits` gets the logits after each token of ids[start - 1:], as
        several arrays [tokens, vocab]. `adapter` is a low-rank adapter, None for the model alone.
        """
        self._config.check_length(len(ids), 0)

        def begin(slot: int) -> InSteps[tuple[np.ndarray, np.ndarray]]:
            return self._peek(slot, ids, start, on_logits, adapter)

        return self._run("peek", ids[:start], begin, adapter)

    def score(
        self, continuations: Sequence[Continuation], *, adapter: AdapterUse | None = None
    ) -> InSteps[list[np.ndarray]]:
        """Compute the log-probabilities of the last tokens of each continuation.

        A continuation is (token ids, index of the first token whose log-probability is requested);
        the index is at least 1. A generator: yields how many tokens each device call computed, and
        returns one array per continuation. A prefix that several continuations share is computed
        once: this method is for many short continuations of one long prefix. `adapter` None: the
        model alone.
        """
        for ids, _ in continuations:
            self._config.check_length(len(ids), 0)
        shared = shared_prefix(continuations)
        known = continuations[0][0][:shared]

        def begin(slot: int) -> InSteps[list[np.ndarray]]:
            return self._score(slot, continuations, shared, adapter)

        return self._run("score", known, begin, adapter)

    def embed(self, ids: Sequence[int]) -> InSteps[tuple[np.ndarray, np.ndarray]]:
        """Compute the mean and the last one of the hidden states of `ids` after the last norm.

        A generator: yields how many tokens each device call computed, and returns both arrays.
        """
        self._config.check_length(len(ids), 0)
        return self._run("embed", (), lambda slot: self._embed(slot, ids))

    @property
    def _config(self) -> EngineConfig:
        return self._batch.programs.engine

    # The slot of a probe.

    def _run(
        self,
        program: str,
        known: Sequence[int],
        begin: Callable[[int], InSteps[Result]],
        adapter: AdapterUse | None = None,
    ) -> InSteps[Result]:
        """Run a probe in a slot; its adapter, if not None, stays loaded until the probe ends.

        A probe is a generator that computes log-probabilities or hidden states of known tokens;
        `begin(slot)` returns it. `program` is the name of the device program that the probe calls.
        `known` are the first tokens of the probe, to find a slot that has them cached.
        """
        if adapter is None:
            return (yield from self._in_slot(program, known, begin, None))
        with loaded(self._batch.adapters).held(adapter):
            return (yield from self._in_slot(program + SUFFIX, known, begin, adapter))

    def _in_slot(
        self,
        program: str,
        known: Sequence[int],
        begin: Callable[[int], InSteps[Result]],
        adapter: AdapterUse | None,
    ) -> InSteps[Result]:
        """Run a probe in a free slot, if possible one that has the tokens `known` cached.

        A probe is a generator that computes log-probabilities or hidden states of known tokens;
        `begin(slot)` returns it. While the device program `program` is being compiled, the probe
        waits in its slot. The slot is freed at the end, also if this generator is closed early.
        Raises QueueFull if no slot is free, GenerationFailed if the engine restarts in between.
        """
        claim = self._table.claim(NO_OWNER, (*known, NO_ID), key_of(adapter))
        if claim is None:
            raise QueueFull("all slots are busy; step the engine until one is free")
        restarts = self._batch.restarts
        try:
            probe = self._once_compiled(program, claim, known, begin)
            while True:
                yield next(probe)
                if self._batch.restarts != restarts:
                    raise GenerationFailed(
                        "the engine restarted after a fault; send the request again"
                    )
        except StopIteration as end:
            result: Result = end.value
            return result
        except GenerationFailed:
            raise
        except Exception as error:
            self._recovery.recover(error, blame=False)
            raise
        finally:
            if self._batch.restarts == restarts:
                self._table.release(claim.slot)

    def _once_compiled(
        self,
        program: str,
        claim: Claim,
        known: Sequence[int],
        begin: Callable[[int], InSteps[Result]],
    ) -> InSteps[Result]:
        """Wait until `program` is compiled, bring a cached prefix into the slot, run the probe.

        A probe is a generator that computes log-probabilities or hidden states of known tokens;
        `begin(slot)` returns it. `claim` names its slot. A prefix of `known`, the first tokens of
        the probe, may be cached elsewhere. Yields 0 while it waits.
        """
        programs = self._batch.programs
        while not programs.is_ready(program):
            rests = all(slot.owner in (None, NO_OWNER) for slot in self._table.slots)
            programs.wait(program, SECONDS_PER_WAIT if rests else 0.0)
            yield 0
        adapter = self._table.slots[claim.slot].adapter
        stored = self._prompts.find_stored(claim, known, adapter)
        if stored is None:
            self._copy_prefix(claim, known)
        else:
            while not self._prompts.restore(claim.slot, stored, known):
                yield 0
        return (yield from begin(claim.slot))

    def _copy_prefix(self, claim: Claim, known: Sequence[int]) -> None:
        """Copy the cached prefix of `known` from slot `claim.source` to slot `claim.slot`.

        Copies nothing if `claim.source` is None, if the source slot has cached no more of `known`
        than the other slot, or while the copy program is being compiled.
        """
        if claim.source is None or not self._batch.programs.is_ready("copy"):
            return
        source, own = (self._table.slots[each].cached for each in (claim.source, claim.slot))
        there = min(own.shared_with(source), len(source), len(known))
        if there > len(own):
            self._prompts.copy(claim.source, claim.slot, known[:there])

    # The programs of a probe.

    def _peek(
        self,
        slot: int,
        ids: Sequence[int],
        start: int,
        on_logits: OnLogits | None,
        adapter: AdapterUse | None,
    ) -> InSteps[tuple[np.ndarray, np.ndarray]]:
        """Prefill up to the token before `start`, then run the program `peek` on the rest.

        The program takes a fixed number of tokens at a time. Yields how many tokens each device
        call computed. Returns the log-probabilities of ids[start:] and the logits after the last
        token. `on_logits`, if not None, is called with the logits of each call of `peek`.
        """
        yield from self._fill(slot, ids, start - 1, adapter)
        cached = self._table.slots[slot].cached
        tile, found = self._batch.programs.tile, []
        for at in range(start - 1, len(ids), tile):
            rows = min(tile, len(ids) - at)
            following = ids[at + 1 : at + 1 + rows]
            pairs = np.zeros((2, tile), np.int32)
            pairs[0, :rows] = ids[at : at + rows]
            pairs[1, : len(following)] = following
            seen = self._batch.peek(slot, pairs, at, rows - 1, adapter)
            cached.cut(at)
            cached.extend(ids[at : at + rows])
            yield rows
            found.append(np.asarray(seen.logprob)[: len(following)])  # waits: logits are large
            if on_logits is not None:
                on_logits(np.asarray(seen.logits)[:rows])
        return np.concatenate(found), np.asarray(seen.logits)[rows - 1]

    def _score(
        self,
        slot: int,
        continuations: Sequence[Continuation],
        shared: int,
        adapter: AdapterUse | None,
    ) -> InSteps[list[np.ndarray]]:
        """Prefill the first `shared` tokens, which all continuations have, then compute the rest.

        A continuation is (token ids, index of the first token whose log-probability is requested).
        Yields how many tokens each device call computed. Returns the requested log-probabilities,
        one array per continuation.
        """
        yield from self._fill(slot, continuations[0][0], shared, adapter)
        found = [np.zeros(len(ids) - start, np.float32) for ids, start in continuations]
        sent = []
        runs = cut_runs(build_tree(continuations, shared), shared)
        for call in group_runs(runs, self._batch.programs.runs):
            sent.append((call, self._batch.score(slot, self._arguments(call), adapter)))
            yield sum(len(run.tokens) for run in call)
        for call, logprobs in sent:
            all_keys = [keys for run in call for _, _, keys in run.targets]
            for keys, logprob in zip(all_keys, np.asarray(logprobs).tolist(), strict=False):
                for index, place in keys:
                    found[index][place] = logprob
        return found

    def _embed(self, slot: int, ids: Sequence[int]) -> InSteps[tuple[np.ndarray, np.ndarray]]:
        """Run `ids` through the model; return the mean and the last one of the final hidden states.

        Each device call computes a fixed number of tokens. Yields how many tokens each call
        computed.
        """
        tile, found = self._batch.programs.tile, []
        for at in range(0, len(ids), tile):
            rows = min(tile, len(ids) - at)
            padded = np.zeros(tile, np.int32)
            padded[:rows] = ids[at : at + rows]
            found.append(self._batch.embed(slot, padded, at, rows - 1))
            self._table.slots[slot].cached.extend(ids[at : at + rows])
            yield rows
        total = np.sum([np.asarray(seen.total) for seen in found], axis=0)
        return total / len(ids), np.asarray(found[-1].last)

    def _fill(
        self, slot: int, ids: Sequence[int], end: int, adapter: AdapterUse | None
    ) -> InSteps[None]:
        """Prefill the tokens of ids[:end] that the slot has not cached yet.

        Yields how many tokens each device call computed. `adapter` None: the model alone.
        """
        cached = self._table.slots[slot].cached
        while len(cached) < end:
            yield self._prompts.send(slot, ids, len(cached), end, adapter)

    def _arguments(self, call: Sequence[TokenRun]) -> Runs:
        """Convert the token runs of one call of the program `score` to padded arrays.

        A run is a few consecutive tokens that the program computes and writes to the cache, with
        targets: for some of these tokens, possible next tokens. The program returns the
        log-probability of each target. Runs that are missing have no tokens; they lie after the
        last run, because some kernels write padding to the cache.
        """
        count = self._batch.programs.runs
        ids, places = np.zeros((count, RUN), np.int32), np.zeros((2, count), np.int32)
        pairs = np.zeros((2, PAIRS), np.int32)
        rows: dict[int, int] = {}  # row with targets: its index among these rows
        filled = 0
        for index, run in enumerate(call):
            ids[index, : len(run.tokens)] = run.tokens
            places[:, index] = run.start, len(run.tokens)
            for row, token, _ in run.targets:
                pairs[:, filled] = rows.setdefault(index * RUN + row, len(rows)), token
                filled += 1
        places[0, len(call) :] = call[-1].start + len(call[-1].tokens)
        padded = np.zeros(TARGET_ROWS, np.int32)
        padded[: len(rows)] = list(rows)
        return Runs(ids.reshape(-1), places, padded, pairs)  # type: ignore[arg-type]


def finish(probe: InSteps[Result]) -> Result:
    """Run the generator of a probe to its end and return its result.

    A probe computes log-probabilities or hidden states of known tokens.
    """
    while True:
        try:
            next(probe)
        except StopIteration as end:
            return end.value
