"""The seed contract: what a request gets depends on its prompt, seed and knobs alone."""

import dataclasses

import numpy as np
import pytest

from tests.support import ENGINE, MODEL, Told, closed, drive, new_engine, request, run

SCHEDULES = 500
TOLERANCE = 1e-5  # of log-probabilities; the plain path is bit-equal where XLA is


def random_request(rng: np.random.Generator, stems: list[list[int]]):
    """Often a prompt that shares a beginning with others; greedy, sampled and filtered."""
    stem = stems[rng.integers(len(stems))]
    prompt = [*stem[: rng.integers(1, len(stem))], *rng.integers(0, 256, rng.integers(1, 6))]
    knobs = [{}, {"top_k": 5}, {"top_p": 0.8}, {"repetition_penalty": 1.3}, {"min_p": 0.1}]
    return request(
        prompt,
        int(rng.integers(1, 10)),
        temperature=float(rng.choice([0.0, 0.8, 1.5])),
        seed=int(rng.integers(2**40)),
        knobs=knobs[rng.integers(len(knobs))],
    )


def same(one: Told, other: Told) -> bool:
    """Equal tokens, equal log-probabilities within the tolerance."""
    return one.tokens == other.tokens and np.allclose(one.logprobs, other.logprobs, atol=TOLERANCE)


def test_500_random_schedules_change_nothing():
    """Joins, leaves, cancels, prefix hits and chunk boundaries against solo runs."""
    rng = np.random.default_rng(1)
    stems = [rng.integers(0, 256, n).tolist() for n in (40, 70, 12)]
    pool = [random_request(rng, stems) for _ in range(40)]
    solo = [run(new_engine(), [one])[0] for one in pool]
    engine = new_engine()
    for _ in range(SCHEDULES):
        told: dict[int, Told] = {}
        expected: dict[int, int] = {}
        cancelled = set()
        for index in rng.choice(len(pool), rng.integers(1, 7), replace=False):
            generation = engine.submit(pool[index])
            expected[generation.id] = int(index)
            drive(engine, told, int(rng.integers(0, 4)))
            if rng.random() < 0.15:
                engine.cancel(generation)
                cancelled.add(generation.id)
        drive(engine, told)
        for id_, index in expected.items():
            if id_ in cancelled:
                count = len(told[id_].tokens)
                assert told[id_].tokens == solo[index].tokens[:count]
            else:
                assert same(told[id_], solo[index]), f"request {index} came out differently"
    assert closed(engine)


@pytest.mark.parametrize("change", [{"prefill_chunk": 8}, {"steps_per_sync": 1}, {"slots": 7}])
def test_engine_settings_change_no_text(change):
    rng = np.random.default_rng(2)
    pool = [random_request(rng, [rng.integers(0, 256, 60).tolist()]) for _ in range(12)]
    first = run(new_engine(), pool)
    second = run(new_engine(MODEL, dataclasses.replace(ENGINE, **change)), pool)
    assert all(same(one, other) for one, other in zip(first, second, strict=True))


def test_another_seed_gives_another_text():
    """The contract's test can fail: the seed does matter."""
    one, other = (
        run(new_engine(), [request([1, 2], 12, temperature=1.5, seed=s)])[0] for s in (1, 2)
    )
    assert one.tokens != other.tokens
