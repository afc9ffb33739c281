"""Constraints: rows that may not draw every token, beside rows that may."""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest

from jaxllama.engine.engine import Engine
from jaxllama.errors import ConstraintTooCostly, GenerationFailed
from jaxllama.request import Contrast, FinishReason
from tests.support import (
    BODIES,
    ENGINE,
    MODEL,
    SEVEN,
    Told,
    closed,
    drive,
    new_engine,
    programs,
    request,
    run,
)

WORDS = -(-MODEL.vocab_size // 32)


class March:
    """A constraint of token ids: at each place a set of tokens may come; then it is over."""

    def __init__(self, places: Sequence[Sequence[int]], forces: bool = True) -> None:
        self.places, self.forces = places, forces

    def start(self) -> "Marching":
        return Marching(self)


class Marching:
    def __init__(self, march: March) -> None:
        self.march, self.place = march, 0

    @property
    def done(self) -> bool:
        return self.place == len(self.march.places)

    def allowed(self, wait: float = 0.0) -> bytes | None:  # noqa: ARG002
        row = np.zeros(WORDS, np.uint32)
        for token in self.march.places[self.place]:
            row[token // 32] |= np.uint32(1 << token % 32)
        return row.tobytes()

    def forced(self) -> Sequence[int]:
        if not self.march.forces:
            return ()
        run = []
        for place in self.march.places[self.place :]:
            if len(place) > 1:
                break
            run.append(place[0])
        return run

    def advance(self, token: int) -> None:
        if token not in self.march.places[self.place]:
            raise ValueError(f"token {token} is not allowed at {self.place}")
        self.place += 1


ODD = range(1, MODEL.vocab_size, 2)
FREE_THEN_FORCED = [ODD] * 3 + [[7]] * 12 + [ODD] * 4


def constrained(places, forces=True, **more):
    settings = {"temperature": 1.5, "top_logprobs": None, "max_tokens": 30, "seed": 3, **more}
    return request(range(20), constraint=March(places, forces), **settings)


def free_requests():
    return [
        request(range(40), 24, temperature=1.0, seed=5),
        request(range(30, 60), 24, temperature=0.9, seed=6, knobs={"top_p": 0.9}),
        request([9], 24),
    ]


@pytest.mark.parametrize("engine", BODIES)
def test_an_answer_keeps_to_its_constraint_and_ends_with_it(engine):
    told = run(new_engine(MODEL, engine), [constrained(FREE_THEN_FORCED)])[0]
    assert told.finished.reason is FinishReason.END_TOKEN
    assert len(told.tokens) == len(FREE_THEN_FORCED) == told.finished.usage.generated
    assert all(token in place for token, place in zip(told.tokens, FREE_THEN_FORCED, strict=True))


@pytest.mark.parametrize("engine", BODIES)
def test_forced_tokens_change_no_text_by_being_skipped(engine):
    """Taken at once, one step each, or found by a mask of one token: the same answer."""
    ways = [
        constrained(FREE_THEN_FORCED),
        constrained(FREE_THEN_FORCED, top_logprobs=2),
        constrained(FREE_THEN_FORCED, forces=False),
    ]
    alone = [run(new_engine(MODEL, engine), [way])[0].tokens for way in ways]
    together = [told.tokens for told in run(new_engine(MODEL, engine), ways)]
    assert alone == together == [alone[0]] * 3


def test_forced_tokens_cost_fewer_steps():
    decodes = []
    for forces in (True, False):
        engine = Engine(Counted(programs()))
        run(engine, [constrained(FREE_THEN_FORCED, forces)])
        decodes.append(engine.programs.decodes)
    assert decodes[0] <= 3 + 4 + 1
    assert decodes[1] >= len(FREE_THEN_FORCED)


class Counted:
    """Programs that count decode calls."""

    def __init__(self, programs):
        self._programs, self.decodes = programs, 0

    def __getattr__(self, name):
        if name == "decode":
            self.decodes += 1
        return getattr(self._programs, name)


@pytest.mark.parametrize("engine", BODIES)
def test_free_rows_are_not_changed_by_constrained_ones(engine):
    alone = run(new_engine(MODEL, engine), free_requests())
    company = [constrained(FREE_THEN_FORCED, seed=seed) for seed in range(2)]
    mixed = run(new_engine(MODEL, engine), [company[0], *free_requests(), company[1]])
    assert [one.tokens for one in mixed[1:4]] == [one.tokens for one in alone]
    exact = engine.kernels == "cpu"
    for one, other in zip(mixed[1:4], alone, strict=True):
        assert np.allclose(one.logprobs, other.logprobs, rtol=0, atol=0 if exact else 1e-5)
    assert mixed[0].tokens == run(new_engine(MODEL, engine), company[:1])[0].tokens


class Slow(Marching):
    """Whose masks are still being computed the first times that they are asked for."""

    def __init__(self, march):
        super().__init__(march)
        self.asked = 0

    def advance(self, token):
        super().advance(token)
        self.asked = 0

    def allowed(self, wait=0.0):
        self.march.waits.append(wait)
        self.asked += 1
        return None if self.asked <= self.march.late() else super().allowed()


class Slowly(March):
    def __init__(self, places, late, forces=True):
        super().__init__(places, forces)
        self.late, self.waits = late, []

    def start(self):
        return Slow(self)


SETTINGS = [
    {},
    {"knobs": {"mirostat": 2, "mirostat_tau": 3.0}},
    {"contrast": Contrast((5, 6, 7), 1.5)},
]


@pytest.mark.parametrize("engine", BODIES)
@pytest.mark.parametrize("more", SETTINGS, ids=["plain", "remembering", "contrast"])
def test_a_row_that_waits_for_its_mask_changes_no_text(engine, more):
    """Neither its own nor that of the rows that go on meanwhile."""
    prompt = constrained(FREE_THEN_FORCED, **more)
    alone = run(new_engine(MODEL, engine), [prompt])[0].tokens
    free = run(new_engine(MODEL, engine), free_requests()[:2])
    late = Slowly(FREE_THEN_FORCED, itertools.cycle([2, 0, 3]).__next__)
    made = new_engine(MODEL, engine)
    told = run(made, [dataclasses.replace(prompt, constraint=late), *free_requests()[:2]])
    assert told[0].tokens == alone
    assert [one.tokens for one in told[1:]] == [one.tokens for one in free]
    assert late.waits
    assert closed(made)


def test_other_rows_end_while_one_waits_for_its_mask():
    engine, told = new_engine(), {}
    never = Slowly([ODD] * 4, lambda: math.inf)
    waiting = engine.submit(request([3, 4], 30, constraint=never))
    others = [engine.submit(one) for one in free_requests()]
    while not all(one.is_over for one in others):
        drive(engine, told, 1)
    assert [len(told[one.id].tokens) for one in others] == [24] * 3
    assert not waiting.is_over
    assert never.waits.count(0.0) == len(never.waits)  # the engine waited for nothing
    drive(engine, told, 1)
    assert never.waits[-1] > 0  # with nobody else to serve it does not spin
    never.late = lambda: 0
    drive(engine, told)
    assert told[waiting.id].finished.reason is FinishReason.END_TOKEN
    assert closed(engine)


def test_a_row_that_waits_for_its_mask_can_be_cancelled():
    engine, told = new_engine(), {}
    never = Slowly([ODD] * 4, lambda: math.inf)
    waiting = engine.submit(request([3, 4], 30, constraint=never))
    drive(engine, told, 6)
    engine.cancel(waiting)
    drive(engine, told)
    assert closed(engine)


def test_a_mask_that_fails_while_it_is_waited_for_fails_its_request_alone():
    """The thread that computes it finds that it costs too much."""

    class Failed(Marching):
        def allowed(self, wait: float = 0.0) -> bytes | None:
            if wait:
                raise ConstraintTooCostly("too many possibilities")
            return None

    class Fails(March):
        def start(self):
            return Failed(self)

    engine = new_engine()
    bad = dataclasses.replace(constrained([]), constraint=Fails([ODD] * 4))
    told = run(engine, [bad, bad])
    for each in told:
        assert each.finished.reason is FinishReason.FAILED
        assert isinstance(each.finished.error, ConstraintTooCostly)
    assert not engine.recovery.faults
    assert closed(engine)


def test_a_constraint_that_costs_too_much_is_the_clients_mistake():
    class Costly(Marching):
        def advance(self, token):
            del token
            raise ConstraintTooCostly("too many possibilities")

    class Costing(March):
        def start(self):
            return Costly(self)

    bad = dataclasses.replace(constrained([]), constraint=Costing([ODD] * 4))
    told = run(new_engine(), [bad])[0]
    assert told.finished.reason is FinishReason.FAILED
    assert isinstance(told.finished.error, ConstraintTooCostly)
    assert told.finished.error.status == 400


def test_logprobs_as_sampled_are_among_the_allowed():
    told = run(new_engine(), [constrained([ODD] * 5, top_logprobs=4)])[0]
    assert len(told.logprobs) == 5


def test_forced_beginning_belongs_to_the_prompt():
    engine = Engine(Counted(programs()))
    told = run(engine, [constrained([[5], [6], [8]])])[0]
    assert told.tokens == [5, 6, 8]
    assert told.finished.reason is FinishReason.END_TOKEN
    assert engine.programs.decodes == 0
    assert closed(engine)


def test_a_constraint_that_allows_nothing_at_all_ends_at_once():
    told = run(new_engine(), [constrained([])])[0]
    assert told.tokens == []
    assert told.finished.reason is FinishReason.END_TOKEN


def test_budget_within_forced_tokens_ends_with_length():
    told = run(new_engine(), [constrained(FREE_THEN_FORCED, max_tokens=6)])[0]
    assert told.finished.reason is FinishReason.LENGTH
    assert told.tokens[3:] == [7, 7, 7]


def test_stop_id_within_the_constraint_ends_the_answer():
    told = run(new_engine(), [constrained([ODD, [7], [9]], stop_ids=(7,))])[0]
    assert told.finished.reason is FinishReason.END_TOKEN
    assert len(told.tokens) == 1


class Broken(Marching):
    """Fails where it is told to."""

    def __init__(self, march, at, where):
        super().__init__(march)
        self.at, self.where = at, where

    def allowed(self, wait=0.0):  # noqa: ARG002
        if self.place == self.at and self.where == "mask":
            raise RuntimeError("no mask")
        return (
            bytes(WORDS * 4)
            if self.place == self.at and self.where == "empty"
            else super().allowed()
        )

    def advance(self, token):
        if self.place == self.at and self.where == "advance":
            raise RuntimeError("no way on")
        super().advance(token)


class Breaking(March):
    def __init__(self, places, at, where):
        super().__init__(places)
        self.at, self.where = at, where

    def start(self):
        if self.where == "start":
            raise RuntimeError("no start")
        return Broken(self, self.at, self.where)


@pytest.mark.parametrize("where", ["start", "mask", "empty", "advance"])
def test_a_constraint_that_fails_fails_its_request_alone(where):
    alone = run(new_engine(), free_requests())
    bad = dataclasses.replace(constrained([]), constraint=Breaking([ODD] * 9, 4, where))
    engine = new_engine()
    answers = run(engine, [bad, *free_requests()])
    assert answers[0].finished.reason is FinishReason.FAILED
    assert isinstance(answers[0].finished.error, GenerationFailed)
    assert "constraint" in str(answers[0].finished.error)
    assert [one.tokens for one in answers[1:]] == [one.tokens for one in alone]
    assert engine.recovery.faults == 0
    assert closed(engine)


def test_samplers_that_ban_all_that_is_allowed_fail_the_request_clearly():
    only_the_end = constrained([[9, 9], ODD], stop_ids=(9,), knobs={"min_tokens": 3})
    told = run(new_engine(), [only_the_end])[0]
    assert told.finished.reason is FinishReason.FAILED
    assert "samplers ban every token" in str(told.finished.error)


@pytest.mark.parametrize("top_logprobs", [None, 1])
@pytest.mark.parametrize("nth", range(2, 34, 3))
def test_a_fault_changes_no_constrained_answer(nth, top_logprobs):
    requests = [constrained(FREE_THEN_FORCED, top_logprobs=top_logprobs), *free_requests()[:2]]
    expected = run(new_engine(), requests)
    engine = Engine(Failing(programs(), nth))
    answers = run(engine, requests)
    assert [one.tokens for one in answers] == [one.tokens for one in expected]
    assert closed(engine)


class Failing:
    """Programs of which one call raises."""

    def __init__(self, programs, nth):
        self._programs, self._nth, self.calls = programs, nth, 0

    def __getattr__(self, name):
        found = getattr(self._programs, name)
        if name not in ("prefill", "decode", "admit", "copy", "release"):
            return found

        def call(state, *args):
            self.calls += 1
            if self.calls == self._nth:
                raise RuntimeError("injected fault")
            return found(state, *args)

        return call


def test_a_cancelled_constrained_answer_frees_its_slot():
    for steps in range(8):
        engine = new_engine()
        told: dict[int, Told] = {}
        generation = engine.submit(constrained(FREE_THEN_FORCED))
        drive(engine, told, steps)
        engine.cancel(generation)
        drive(engine, told)
        assert closed(engine)


def test_an_answer_follows_its_constraint_in_any_schedule():
    rng = np.random.default_rng(0)
    for engine in (ENGINE, SEVEN):
        expected = run(new_engine(MODEL, engine), [constrained(FREE_THEN_FORCED)])[0].tokens
        for _ in range(4):
            mates = [request(range(1, int(rng.integers(2, 60))), 9) for _ in range(6)]
            mates.insert(int(rng.integers(6)), constrained(FREE_THEN_FORCED))
            place = next(i for i, one in enumerate(mates) if one.constraint is not None)
            assert run(new_engine(MODEL, engine), mates)[place].tokens == expected
