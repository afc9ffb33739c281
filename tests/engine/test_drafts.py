"""Speculation: drafts change how fast tokens come, and no token."""

import dataclasses
import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
import pytest

from jaxllama.config import EngineConfig
from jaxllama.engine.drafts import (
    HIGHEST,
    HOPEFUL,
    SHORTEST,
    find_drafts,
    least_chance,
    pay_together,
    updated_trust,
    worth_checking,
)
from jaxllama.errors import ConfigError
from jaxllama.kernels.cpu import library
from jaxllama.request import Contrast, GenerationRequest
from tests.support import (
    ENGINE,
    KERNELS,
    MODEL,
    Told,
    closed,
    new_engine,
    programs,
    random_schedule,
    request,
    run,
)

MOST = 3
DRAFTING = dataclasses.replace(KERNELS, draft_tokens=MOST, row_cost=0.05)
SCHEDULES = 60
# Knobs of every sampler of `FEW` that acts without a constraint, those with a memory included.
KNOBS = [
    {},
    {"top_k": 3},
    {"top_p": 0.8, "min_p": 0.05},
    {"repetition_penalty": 1.2},
    {"mirostat": 2, "mirostat_tau": 2.0},
    {"min_tokens": 9, "logit_bias": {7: 2.0}},
]
needs_kernels = pytest.mark.skipif(not library.available(), reason=library.why_not())


def drafts_of(tokens: Sequence[int], most: int = 4) -> tuple[list[int], int]:
    row = np.zeros((1, 32), np.int32)
    row[0, : len(tokens)] = tokens
    found, match = find_drafts(jnp.asarray(row), jnp.array([len(tokens)]), most)
    return np.asarray(found)[0].tolist(), int(match[0])


@pytest.mark.parametrize(
    ("tokens", "found", "match"),
    [
        ([5, 6, 7, 8, 9, 1, 5, 6], [7, 8, 9, 1], 2),
        ([5, 6, 1, 9, 5, 6, 2, 9, 5, 6], [2, 9, 5, 6], 3),  # the longest match first
        ([5, 6, 1, 8, 5, 6, 2, 9, 5, 6], [2, 9, 5, 6], 2),  # then the latest
        ([3, 4, 3, 4, 3], [4, 3, 4, 3], 3),  # a match beside the end repeats
        ([4, 4, 4], [4, 4, 4, 4], 2),
    ],
)
def test_a_draft_continues_the_latest_longest_match(tokens, found, match):
    assert drafts_of(tokens) == (found, match)


@pytest.mark.parametrize("tokens", [[], [1], [1, 2], [1, 2, 3, 4], [1, 2, 1], [0, 0]])
def test_without_a_match_nothing_is_drafted(tokens):
    assert drafts_of(tokens)[1] < SHORTEST


def test_the_zeros_after_a_row_are_no_match():
    """The unused places of a row hold zeros; a token 0 is no sign of them."""
    assert drafts_of([1, 0, 0])[1] == 0


def worth(trust: float, match: int, least: float) -> int:
    found = worth_checking(jnp.array([trust]), jnp.array([match]), jnp.float32(least), 4)
    return int(found[0])


def test_rows_draft_as_much_as_their_trust_is_worth():
    assert [worth(trust, 2, 0.5) for trust in (0.3, 0.6, 0.75, 0.9, 1.0)] == [0, 1, 2, 4, 4]
    assert worth(0.1, 2, 0.5) == 0 < worth(0.1, 8, 0.5)  # a long match is trusted again
    assert worth(1.0, 1, 0.5) == worth(0.99, 8, 1.01) == 0
    assert worth(1.0, 2, 1.01) == 4  # not adapted


def test_drafts_have_to_be_worth_the_costs_that_they_share():
    def pay(chance: float, drafting: int, rows: int) -> bool:
        count = jnp.where(jnp.arange(16) < drafting, 2, 0)
        every = jnp.full((16, MOST), chance)
        return bool(pay_together(every, count, jnp.float32(rows), 0.12))

    assert pay(0.9, 1, 1) and not pay(0.2, 1, 1)
    assert pay(0.9, 8, 8) and not pay(0.9, 1, 8)  # for one row of eight it costs all too much
    assert not pay(0.9, 16, 16)


def test_trust_follows_the_accepted_tokens():
    def after(trust: float, count: int, accepted: int) -> float:
        return float(updated_trust(*(jnp.array([each]) for each in (trust, count, accepted)))[0])

    assert after(HOPEFUL, 0, 0) == pytest.approx(HOPEFUL)
    assert after(HOPEFUL, 4, 0) == pytest.approx(12 * HOPEFUL / 13)  # one token was checked
    assert after(HOPEFUL, 4, 4) > after(HOPEFUL, 4, 2) > after(HOPEFUL, 4, 0)
    assert after(1.0, 4, 0) == 1.0  # not adapted
    trust = HOPEFUL
    for _ in range(200):
        trust = after(trust, 4, 4)
    assert trust == pytest.approx(HIGHEST)


def test_a_draft_has_to_be_likelier_the_more_rows_there_are_and_the_more_they_cost():
    def least(cost: float, rows: int) -> float:
        return float(least_chance(cost, jnp.float32(rows)))

    assert least(0.1, 1) == pytest.approx(1.1 * 1.3 * 0.1)
    assert least(0.1, 1) < least(0.1, 16) < 1 < least(0.25, 16)


def random_request(rng: np.random.Generator, draft: int | None) -> GenerationRequest:
    """Return a request with a prompt that repeats itself, so that there is something to draft."""
    few = rng.integers(0, 6, rng.integers(3, 9)).tolist()
    prompt = [*(few * 9)[: rng.integers(12, 60)], *rng.integers(0, 256, 2), *few[:3]]
    contrast = Contrast(tuple(rng.integers(0, 256, 9).tolist()), 1.5)
    return request(
        prompt,
        int(rng.integers(1, 24)),
        temperature=float(rng.choice([0.0, 0.3, 0.8])),
        temperature_last=bool(rng.random() < 0.3),
        seed=int(rng.integers(2**40)),
        knobs=KNOBS[rng.integers(len(KNOBS))],
        stop_ids=tuple(rng.integers(0, 256, 12).tolist()) if rng.random() < 0.3 else (),
        top_logprobs=3,
        contrast=contrast if rng.random() < 0.2 else None,
        draft=draft,
    )


@functools.cache
def pool() -> list[GenerationRequest]:
    rng = np.random.default_rng(1)
    return [random_request(rng, [None, 0, 1, MOST][index % 4]) for index in range(48)]


@functools.cache
def without_drafts() -> list[Told]:
    return [run(new_engine(MODEL, KERNELS), [one])[0] for one in pool()]


def same(one: Told, other: Told) -> bool:
    return one.tokens == other.tokens and one.logprobs == other.logprobs


@needs_kernels
def test_drafts_change_no_token_and_no_log_probability():
    """Each request alone: bit for bit what an engine without speculation gives."""
    engine = new_engine(MODEL, DRAFTING)
    for one, expected in zip(pool(), without_drafts(), strict=True):
        told = run(engine, [one])[0]
        assert same(told, expected)
        usage = told.finished.usage
        assert usage.generated == expected.finished.usage.generated
        assert 0 <= usage.accepted <= usage.drafted
        assert usage.drafted == 0 or one.draft != 0
    assert engine.drafts["accepted"] > 50, "the test must accept drafts"
    assert engine.drafts["drafted"] > engine.drafts["accepted"] + 50, "and refuse some"
    assert closed(engine)


@needs_kernels
def test_random_schedules_with_drafts_change_nothing():
    """Joins, leaves, cancels, prefix hits and replays in company of rows that draft or do not."""
    rng = np.random.default_rng(2)
    engine = new_engine(MODEL, DRAFTING)
    for _ in range(SCHEDULES):
        for index, told, is_cancelled in random_schedule(engine, pool(), rng):
            solo = without_drafts()[index]
            if is_cancelled:
                assert told.tokens == solo.tokens[: len(told.tokens)]
            else:
                assert same(told, solo), f"request {index} came out differently"
    assert engine.drafts["accepted"] > SCHEDULES
    assert closed(engine)


@needs_kernels
def test_a_request_says_how_much_is_drafted():
    engine = new_engine(MODEL, DRAFTING)
    prompt = [1, 2, 3, 4, 5, 6] * 5

    def drafted(draft: int | None, **more: object) -> int:
        told = run(engine, [request(prompt, **{"max_tokens": 12, "draft": draft, **more})])[0]
        return told.finished.usage.drafted

    assert drafted(0) == 0
    assert 0 < drafted(1) <= 12
    assert drafted(None) > 0
    assert drafted(MOST, max_tokens=1) == 0  # no room for a second token


@pytest.mark.parametrize("most", [-1, 17])
def test_a_number_of_drafts_out_of_bounds_is_refused(most):
    with pytest.raises(ConfigError, match=f"draft_tokens is {most}; it must be 0 to 16"):
        EngineConfig(draft_tokens=most)


def test_a_body_whose_bits_depend_on_the_number_of_rows_drafts_nothing():
    with pytest.raises(ConfigError, match="draft_tokens is 2; expected 0 with kernels 'xla'"):
        programs(MODEL, dataclasses.replace(ENGINE, draft_tokens=2))
