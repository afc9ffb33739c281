"""Faults: injected exceptions and NaN, and who may notice them."""

import dataclasses
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllama.engine.engine import Engine
from jaxllama.engine.generation import Phase
from jaxllama.engine.probes import finish
from jaxllama.errors import GenerationFailed
from jaxllama.request import FinishReason
from tests.support import (
    CHAIN,
    ENGINE,
    FEW,
    MODEL,
    Told,
    closed,
    drive,
    new_engine,
    programs,
    request,
    run,
)


def test_fault_while_cancelling_changes_no_other_answer():
    """Every client that disconnects runs the `release` program."""
    requests = some_requests()
    expected = run(new_engine(), requests)
    engine = faulty_engine(lambda name, *_: name == "release")
    told: dict[int, Told] = {}
    generations = [engine.submit(one) for one in requests]
    for fault in range(3):  # more than a guilty request is allowed
        left = engine.submit(request([7, 7, fault], 100))
        while left.phase is not Phase.RUNNING:
            drive(engine, told, 1)
        engine.cancel(left)
        assert engine.recovery.faults == fault + 1
    drive(engine, told)
    assert [told[one.id].tokens for one in generations] == [one.tokens for one in expected]
    assert engine.ledger["cancelled"] == 3
    assert closed(engine)


def test_fault_while_probing_blames_no_running_request():
    requests = some_requests()
    expected = run(new_engine(), requests)
    engine = faulty_engine(lambda name, *_: name == "peek")
    told: dict[int, Told] = {}
    generations = [engine.submit(one) for one in requests[:2]]
    for _ in range(3):
        drive(engine, told, 2)
        with pytest.raises(RuntimeError, match="injected fault"):
            finish(engine.probes.peek([1, 2, 3], 1))
    drive(engine, told)
    assert [told[one.id].tokens for one in generations] == [one.tokens for one in expected[:2]]


def test_interrupt_while_cancelling_loses_nothing():
    def interrupts(name, *_):
        if name == "release":
            raise KeyboardInterrupt
        return False

    expected = run(new_engine(), some_requests()[:2])
    engine = faulty_engine(interrupts)
    told: dict[int, Told] = {}
    generations = [engine.submit(one) for one in some_requests()[:2]]
    left = engine.submit(request([7, 7], 100))
    drive(engine, told, 6)
    with pytest.raises(KeyboardInterrupt):
        engine.cancel(left)
    drive(engine, told)
    assert [told[one.id].tokens for one in generations] == [one.tokens for one in expected]
    assert closed(engine)


class OneStateAtATime:
    """Programs that raise once after a program succeeded, and note what lives when `empty` runs."""

    def __init__(self, programs, fails_after):
        self._programs, self._fails_after = programs, fails_after
        self.made, self.alive = [], []

    def __getattr__(self, name):
        found = getattr(self._programs, name)
        if name not in ("empty", "prefill", "decode", "admit", "copy", "release"):
            return found

        def call(*args):
            if name == "empty":
                self.alive.append(sum(held(leaf) for leaf in self.made))
            result = found(*args)
            state = result[0] if name == "decode" else result
            self.made.extend(weakref.ref(leaf) for leaf in state)
            if name == self._fails_after:
                self._fails_after = None
                raise RuntimeError("injected fault")
            return result

        return call


def held(reference) -> bool:
    """Whether an array still occupies memory."""
    array = reference()
    return array is not None and not array.is_deleted()


@pytest.mark.parametrize("name", ["prefill", "decode", "admit", "copy", "release"])
def test_old_state_is_freed_before_a_new_one_is_made(name):
    """Two caches at a time may not fit into memory."""
    watched = OneStateAtATime(programs(), name)
    engine = Engine(watched)
    told: dict[int, Told] = {}
    long = request([7], 60)  # still running when it is cancelled
    generations = [engine.submit(one) for one in [long, *some_requests(), request(range(80), 6)]]
    drive(engine, told, 8)
    engine.cancel(generations[0])
    drive(engine, told)
    assert engine.recovery.faults == 1
    assert watched.alive == [0, 0]  # at the start, and after the fault
    assert closed(engine)


class OutOfMemory:
    """Programs whose next decode call fails, and then `empty` so many times."""

    def __init__(self, programs, times):
        self._programs, self.times, self._failed = programs, times, False

    def __getattr__(self, name):
        if name == "decode" and not self._failed:
            self._failed = True
            return self._raise
        if name == "empty" and self._failed and self.times:
            self.times -= 1
            return self._raise
        return getattr(self._programs, name)

    def _raise(self, *_args):
        raise MemoryError("injected: no room")


def test_failed_recovery_is_raised_and_tried_again():
    expected = run(new_engine(), some_requests())
    engine = Engine(OutOfMemory(programs(), times=2))
    told: dict[int, Told] = {}
    generations = [engine.submit(one) for one in some_requests()]
    for _ in range(2):
        with pytest.raises(MemoryError, match="no room"):
            drive(engine, told)
    drive(engine, told)
    assert [told[one.id].tokens for one in generations] == [one.tokens for one in expected]
    assert closed(engine)


class Faulty:
    """Programs that raise when told to; everything else passes through."""

    def __init__(self, programs, fails):
        self._programs, self._fails, self.calls = programs, fails, 0

    def __getattr__(self, name):
        found = getattr(self._programs, name)
        if name not in ("prefill", "decode", "admit", "copy", "release", "peek"):
            return found

        def call(state, *args):
            self.calls += 1
            if self._fails(name, self.calls, args):
                for leaf in jax.tree.leaves(state):
                    leaf.delete()  # a failed program has eaten its donated state
                raise RuntimeError("injected fault")
            return found(state, *args)

        return call


def faulty_engine(fails) -> Engine:
    return Engine(Faulty(programs(), fails))


def some_requests():
    return [
        request([1, 2, 3], 12),
        request(range(40), 12, temperature=1.0, seed=5),
        request(range(30, 60), 12, temperature=0.9, seed=6, knobs={"top_p": 0.9}),
        request([9], 12),
        request(range(80), 6, temperature=1.0, seed=1),
    ]


@pytest.mark.parametrize("nth", range(1, 24, 2))
def test_one_fault_at_any_call_changes_no_text(nth):
    expected = run(new_engine(), some_requests())
    engine = faulty_engine(lambda _name, calls, _args: calls == nth)
    answers = run(engine, some_requests())
    assert [one.tokens for one in answers] == [one.tokens for one in expected]
    assert closed(engine)
    assert engine.recovery.faults == 1


def test_request_that_makes_the_engine_fail_again_fails_alone():
    poison = [66, 66, 66]

    def fails(name, _calls, args):
        return name == "admit" and list(args[1].tokens[:3]) == poison

    engine = faulty_engine(fails)
    good = some_requests()
    expected = run(new_engine(), good)
    answers = run(engine, [*good[:2], request(poison, 5), *good[2:]])
    bad = answers.pop(2)
    assert bad.finished.reason is FinishReason.FAILED
    assert isinstance(bad.finished.error, GenerationFailed)
    assert "injected fault" in str(bad.finished.error)
    assert [one.tokens for one in answers] == [one.tokens for one in expected]
    assert engine.ledger["failed"] == 1
    assert closed(engine)


def test_two_poisonous_requests_fail_and_the_rest_finish():
    def fails(name, _calls, args):
        return name == "admit" and args[1].tokens[0] == 66

    engine = faulty_engine(fails)
    good = some_requests()
    answers = run(engine, [request([66, 1], 5), *good, request([66, 2], 5)])
    assert [one.finished.reason is FinishReason.FAILED for one in answers] == [
        True, *[False] * len(good), True,
    ]  # fmt: skip
    assert closed(engine)


def test_engine_that_always_fails_fails_every_request_once():
    engine = faulty_engine(lambda name, *_: name == "decode")
    answers = run(engine, some_requests())
    assert all(one.finished.reason is FinishReason.FAILED for one in answers)
    assert closed(engine)


def test_failing_tail_fails_its_request_only():
    class BadTail:
        stopped = None

        def push(self, _token):
            raise ValueError("no such piece")

        def flush(self):
            return ""

    engine = new_engine()
    told: dict[int, Told] = {}
    bad = engine.submit(request([1, 2], 5), BadTail())
    good = engine.submit(request([3, 4], 5))
    drive(engine, told)
    assert told[bad.id].finished.reason is FinishReason.FAILED
    assert told[good.id].tokens == run(new_engine(), [request([3, 4], 5)])[0].tokens
    assert closed(engine)


def test_interrupt_in_the_middle_of_a_step_loses_nothing():
    """Ctrl-C is raised to whoever steps; stepping on goes on with the same text."""

    def interrupts(_name, calls, _args):
        if calls == 9:
            raise KeyboardInterrupt
        return False

    expected = run(new_engine(), some_requests())
    engine = faulty_engine(interrupts)
    told: dict[int, Told] = {}
    generations = [engine.submit(one) for one in some_requests()]
    with pytest.raises(KeyboardInterrupt):
        drive(engine, told)
    drive(engine, told)
    assert [told[one.id].tokens for one in generations] == [one.tokens for one in expected]
    assert engine.recovery.faults == 0
    assert closed(engine)


def poison(engine: Engine, slot: int) -> None:
    """Write NaN into one slot's keys and values."""
    state = engine.programs.tree_of(engine._batch._state)

    def spoiled(part):
        return part if part.dtype == jnp.int8 else part.at[slot, :, :4].set(jnp.nan)

    state = dataclasses.replace(state, cache=jax.tree.map(spoiled, state.cache))
    engine._batch._state = tuple(jax.tree.leaves(state))


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_nan_row_fails_alone_and_its_slot_is_clean_for_the_next(dtype):
    size = dataclasses.replace(ENGINE, cache_dtype=dtype)
    samplers = CHAIN if dtype == "int8" else FEW  # as other tests compile them
    engine = new_engine(MODEL, size, samplers=samplers)
    told: dict[int, Told] = {}
    requests = [request(range(i, i + 30), 20) for i in range(4)]
    expected = run(new_engine(MODEL, size, samplers=samplers), requests)
    generations = [engine.submit(one) for one in requests]
    drive(engine, told, 6)
    victim = generations[2]
    poison(engine, victim.slot)
    drive(engine, told)
    assert told[victim.id].finished.reason is FinishReason.FAILED
    assert "NaN" in str(told[victim.id].finished.error)
    for generation, right in zip(generations, expected, strict=True):
        if generation is not victim:
            assert told[generation.id].tokens == right.tokens
    assert len(engine.slots.slots[victim.slot].cached) == 0
    again = run(engine, requests)
    assert [one.tokens for one in again] == [one.tokens for one in expected]
    assert closed(engine)


def test_poison_really_is_noticed_without_the_check():
    """The NaN test can fail: without scrubbing, the slot would stay poisoned."""
    engine = Engine(Unscrubbed(programs()))
    told: dict[int, Told] = {}
    generation = engine.submit(request(range(30), 20))
    drive(engine, told, 4)
    poison(engine, generation.slot)
    drive(engine, told)
    answers = run(engine, [request(range(50 + i, 80 + i), 3) for i in range(ENGINE.slots)])
    assert any(one.finished.reason is FinishReason.FAILED for one in answers)


class Unscrubbed:
    """Programs whose scrub does nothing."""

    def __init__(self, programs):
        self._programs = programs

    def __getattr__(self, name):
        return (lambda state, _slot: state) if name == "scrub" else getattr(self._programs, name)


def test_model_with_nan_weights_fails_every_request_and_stays_up():
    params = jax.tree.map(lambda x: x, programs().params)
    params["final_norm"] = {"weight": params["final_norm"]["weight"] * jnp.nan}
    engine = Engine(WithParams(programs(), params))
    answers = run(engine, [request([i], 5) for i in range(6)])
    assert all(one.finished.reason is FinishReason.FAILED for one in answers)
    assert closed(engine)


class WithParams:
    """The same programs over other weights."""

    def __init__(self, programs, params):
        self._programs, self._weights = programs, tuple(jax.tree.leaves(params))

    def __getattr__(self, name):
        if name == "prefill":
            return lambda *args: self._programs.compiled(name)(self._weights, *args)
        if name == "decode":
            return lambda state, steps, *_: self._programs.compiled(name)(
                self._weights, state, steps, self._programs._every_token
            )
        return getattr(self._programs, name)


def test_host_arrays_are_never_reused_between_calls():
    """Asynchronous dispatch may read them late: every call must get arrays of its own."""
    engine = new_engine(MODEL)
    seen: list[np.ndarray] = []
    original = engine.programs.prefill

    def prefill(state, slot, ids, *more):
        assert all(ids is not old for old in seen)
        seen.append(ids)
        return original(state, slot, ids, *more)

    engine.programs.prefill = prefill
    try:
        run(engine, [request(range(190), 2), request(range(100, 190), 2)])
    finally:
        del engine.programs.prefill
    assert len(seen) > 5
