"""The seed contract: what a request gets depends on its prompt, seed and knobs alone."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from jaxllama.config import EngineConfig
from jaxllama.engine.blueprints import LEAN, PACKED, WHOLE
from jaxllama.engine.engine import Engine
from jaxllama.engine.programs import Programs
from jaxllama.kernels import body_named
from jaxllama.kernels.cpu import library
from jaxllama.request import Contrast
from tests.support import (
    BODIES,
    CHAIN,
    ENGINE,
    KERNELS,
    MODEL,
    OTHER,
    Told,
    closed,
    new_engine,
    programs,
    random_schedule,
    request,
    run,
)

SCHEDULES = 500
CONTRASTED = 0.2  # of the requests have a guidance row


def random_request(rng: np.random.Generator, stems: list[list[int]]):
    """Often a prompt that shares a beginning with others; greedy, sampled, filtered, contrasted."""
    stem = stems[rng.integers(len(stems))]
    prompt = [*stem[: rng.integers(1, len(stem))], *rng.integers(0, 256, rng.integers(1, 6))]
    contrast = Contrast(tuple(rng.integers(0, 256, 9).tolist()), 2.0)
    knobs = [{}, {"top_k": 5}, {"top_p": 0.8}, {"repetition_penalty": 1.3}, {"min_p": 0.1}]
    return request(
        prompt,
        int(rng.integers(1, 10)),
        temperature=float(rng.choice([0.0, 0.8, 1.5])),
        seed=int(rng.integers(2**40)),
        knobs=knobs[rng.integers(len(knobs))],
        contrast=contrast if rng.random() < CONTRASTED else None,
    )


def same(one: Told, other: Told, engine: EngineConfig) -> bool:
    """Equal tokens and log-probabilities: bit for bit with kernels, to 1e-5 without."""
    tolerance = 0.0 if engine.kernels == "cpu" else 1e-5
    close = np.allclose(one.logprobs, other.logprobs, rtol=0, atol=tolerance)
    return one.tokens == other.tokens and close


class Changing:
    """Programs that are there or not, and of which the lean decode program runs or not, by lot."""

    def __init__(self, programs: Programs, rng: np.random.Generator) -> None:
        self._programs, self._rng = programs, rng
        self.ran: Counter[str] = Counter()

    def __getattr__(self, name: str):
        return getattr(self._programs, name)

    def is_ready(self, _name: str) -> bool:
        return self._rng.random() < 0.5

    def wait(self, name: str, seconds: float) -> None:
        pass

    def decode(self, state, steps, allowed=None, lean=False, adapter=None, forced=None):
        assert adapter is None and forced is None
        name = LEAN if lean and self._rng.random() < 0.5 else WHOLE
        self.ran[name] += 1
        allowed = self._programs._every_token if allowed is None else allowed
        return self._programs.compiled(name)(self._programs._weights, state, steps, allowed)

    def is_made(self, name: str) -> bool:
        return self.is_ready(name)

    def prefill_packed(self, *given):
        self.ran[PACKED] += 1
        return self._programs.prefill_packed(*given)


@pytest.mark.parametrize("body", BODIES)
def test_500_random_schedules_change_nothing(body):
    """Joins, leaves, cancels, prefix hits and chunk boundaries against solo runs.

    In the schedules, calls change between the lean and the whole decode program, and with kernels
    that can pack prompts, between prompts alone and several in one call.
    """
    rng = np.random.default_rng(1)
    stems = [rng.integers(0, 256, n).tolist() for n in (40, 70, 12)]
    pool = [random_request(rng, stems) for _ in range(40)]
    solo = [run(new_engine(MODEL, body), [one])[0] for one in pool]
    packs = body_named(body.kernels).span_rows is not None
    changing = Changing(programs(MODEL, dataclasses.replace(body, pack_prompts=packs)), rng)
    engine = Engine(changing)
    for _ in range(SCHEDULES):
        for index, told, is_cancelled in random_schedule(engine, pool, rng):
            if is_cancelled:
                assert told.tokens == solo[index].tokens[: len(told.tokens)]
            else:
                assert same(told, solo[index], body), f"request {index} came out differently"
    assert closed(engine)
    assert min(changing.ran[LEAN], changing.ran[WHOLE]) > SCHEDULES
    assert not packs or changing.ran[PACKED] > SCHEDULES // 10


@pytest.mark.parametrize("body", BODIES)
def test_engine_settings_change_no_text(body):
    """Slots, steps per call and the size of chunks; all at once, as each costs its own programs."""
    rng = np.random.default_rng(2)
    pool = [random_request(rng, [rng.integers(0, 256, 60).tolist()]) for _ in range(12)]
    first = run(new_engine(MODEL, body), pool)
    second = run(new_engine(MODEL, dataclasses.replace(body, **OTHER)), pool)
    assert all(same(one, other, body) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("body", BODIES)
def test_int8_cache_keeps_the_contract(body):
    """Crowds, shared beginnings and copies: scales travel with their numbers."""
    rng = np.random.default_rng(4)
    small = dataclasses.replace(body, cache_dtype="int8")
    pool = [random_request(rng, [rng.integers(0, 256, 60).tolist()]) for _ in range(12)]
    solo = [run(new_engine(MODEL, small, samplers=CHAIN), [one])[0] for one in pool]
    crowd = run(new_engine(MODEL, small, samplers=CHAIN), pool)
    assert all(same(one, other, small) for one, other in zip(solo, crowd, strict=True))
    wide = run(new_engine(MODEL, body), pool)
    gaps = [abs(a.logprobs[0] - b.logprobs[0]) for a, b in zip(solo, wide, strict=True)]
    assert 0 < np.median(gaps) < 0.03


@pytest.mark.skipif(not library.available(), reason=library.why_not())
def test_number_of_threads_changes_no_bit():
    rng = np.random.default_rng(3)
    pool = [random_request(rng, [rng.integers(0, 256, 60).tolist()]) for _ in range(12)]
    before, answers = library.threads(), []
    try:
        for threads in (1, 2, 3):
            library.set_threads(threads)
            answers.append(run(new_engine(MODEL, KERNELS), pool))
    finally:
        library.set_threads(before)
    for other in answers[1:]:
        assert all(same(*pair, KERNELS) for pair in zip(answers[0], other, strict=True))


@pytest.mark.skipif(not library.available(), reason=library.why_not())
def test_kernels_say_what_plain_jax_says():
    """Dense float32 weights: both bodies mean the same, to rounding."""
    requests = [request(range(i, i + 20 + 9 * i), 8) for i in range(5)]
    plain, fast = (run(new_engine(MODEL, body), requests) for body in (ENGINE, KERNELS))
    for one, other in zip(plain, fast, strict=True):
        assert one.tokens == other.tokens
        assert np.allclose(one.logprobs, other.logprobs, atol=1e-3)


def test_another_seed_gives_another_text():
    """The contract's test can fail: the seed does matter."""
    one, other = (
        run(new_engine(), [request([1, 2], 12, temperature=1.5, seed=s)])[0] for s in (1, 2)
    )
    assert one.tokens != other.tokens
