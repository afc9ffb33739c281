"""Continuations of one prefix: the plan, and that it gives the same as separate probes."""

import dataclasses

import numpy as np
import pytest

from jaxllama.engine.branches import (
    PAIRS,
    RUN,
    TARGET_ROWS,
    build_tree,
    cut_runs,
    group_runs,
    shared_prefix,
)
from jaxllama.engine.engine import Engine
from jaxllama.engine.probes import finish
from tests.support import BODIES, ENGINE, MODEL, closed, new_engine, programs, request, run

STEM = list(range(40))
MANY_RUNS = dataclasses.replace(ENGINE, slots=4 * RUN)  # four runs in a call of the plain kernels


def random_continuations(rng: np.random.Generator, count: int) -> list[tuple[list[int], int]]:
    """Ways of random lengths that share some of their beginnings, asked for from random places."""
    continuations = []
    for _ in range(count):
        tail = rng.integers(0, 3, rng.integers(1, 30)).tolist()
        ids = [*STEM, *tail]
        continuations.append((ids, int(rng.integers(len(STEM), len(ids)))))
    return continuations


def test_every_scored_token_is_asked_for_once_and_behind_all_before_it():
    rng = np.random.default_rng(0)
    for _ in range(30):
        continuations = random_continuations(rng, int(rng.integers(1, 12)))
        shared = shared_prefix(continuations)
        cached: list[int] = STEM[:shared] if shared <= len(STEM) else continuations[0][0][:shared]
        found = set()
        for piece in cut_runs(build_tree(continuations, shared), shared):
            cached = [*cached[: piece.start], *piece.tokens]
            for row, token, keys in piece.targets:
                for index, place in keys:
                    ids, start = continuations[index]
                    assert (index, place) not in found
                    found.add((index, place))
                    assert ids[: start + place] == cached[: piece.start + row + 1]
                    assert ids[start + place] == token
        assert found == {
            (i, at) for i, (ids, s) in enumerate(continuations) for at in range(len(ids) - s)
        }


def test_no_call_is_asked_for_more_than_it_takes():
    rng = np.random.default_rng(1)
    fan = [([*STEM, 7, token], len(STEM) + 1) for token in range(2 * PAIRS + 3)]
    for continuations in (random_continuations(rng, 40), fan):
        shared = shared_prefix(continuations)
        for call in group_runs(cut_runs(build_tree(continuations, shared), shared), 4):
            assert 0 < len(call) <= 4
            assert all(len(piece.tokens) <= RUN for piece in call)
            assert sum(len({row for row, _, _ in piece.targets}) for piece in call) <= TARGET_ROWS
            assert sum(len(piece.targets) for piece in call) <= PAIRS


@pytest.mark.parametrize("engine", [*BODIES, MANY_RUNS])
def test_ways_scored_together_are_worth_what_each_is_alone(engine):
    continuations = random_continuations(np.random.default_rng(2), 24)
    together = finish(new_engine(MODEL, engine).probes.score(continuations))
    for (ids, start), found in zip(continuations, together, strict=True):
        alone, _ = finish(new_engine(MODEL, engine).probes.peek(ids, start))
        assert np.allclose(found, alone, rtol=0, atol=1e-5)


def test_what_all_ways_share_is_computed_once():
    engine = Engine(Counted(programs()))
    continuations = [([*range(150), 200 + i, 3], 150) for i in range(8)]
    finish(engine.probes.score(continuations))
    before = dict(engine.programs.calls)
    finish(engine.probes.score(continuations))
    assert engine.programs.calls["prefill"] == before["prefill"] > 0
    assert before["score"] <= 16


class Counted:
    """Programs that count calls."""

    def __init__(self, programs):
        self._programs, self.calls = programs, {"prefill": 0, "score": 0}

    def __getattr__(self, name):
        if name in self.calls:
            self.calls[name] += 1
        return getattr(self._programs, name)


def test_scoring_leaves_other_answers_alone():
    engine = new_engine()
    alone = run(new_engine(), [request(STEM, 12)])[0]
    generation = engine.submit(request(STEM, 12))
    told = []
    while not engine.idle:
        told += engine.step()
        if engine.counts["running"]:
            finish(engine.probes.score([([*STEM, 5, 6], len(STEM)), ([*STEM, 7], len(STEM))]))
    assert [event.token for event in told if hasattr(event, "token")] == alone.tokens
    assert generation.is_over
    assert closed(engine)


@pytest.mark.parametrize("engine", [*BODIES, MANY_RUNS])
def test_scoring_leaves_the_cached_prefix_as_it_was(engine):
    used = new_engine(MODEL, engine)
    continuations = [([*STEM, 5, 6], len(STEM))]  # fewer runs than a call takes
    (first,), (again,) = (finish(used.probes.score(continuations)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    (expected,) = run(new_engine(MODEL, engine), [request(STEM, 12)])
    (found,) = run(used, [request(STEM, 12)])
    assert found.finished.usage.reused == len(STEM) - 1
    assert found.tokens == expected.tokens
    np.testing.assert_array_equal(found.logprobs, expected.logprobs)


def test_a_way_without_a_common_beginning_is_scored_too():
    engine = new_engine()
    continuations = [([1, 2, 3], 1), ([9, 8, 7, 6], 2)]
    found = finish(engine.probes.score(continuations))
    for (ids, start), values in zip(continuations, found, strict=True):
        assert np.allclose(
            values, finish(new_engine().probes.peek(ids, start))[0], rtol=0, atol=1e-5
        )
