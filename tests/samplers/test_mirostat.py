"""Mirostat keeps the surprise of an answer near its target."""

import numpy as np
import pytest

from jaxllama.testing.tryout import Tryout
from tests.samplers.rows import ROUNDS, descending, kept, random_logits

SHARES = np.log([0.5, 0.25, 0.125, 0.125])  # 1, 2, 3 and 3 bits


def test_second_version_drops_what_surprises_by_more_than_twice_the_target(four: Tryout):
    knobs = [{"mirostat": 2, "mirostat_tau": tau} for tau in (0.4, 0.55, 1.1, 1.6)]
    assert kept(four, [SHARES] * 4, knobs) == [[0], [0], [0, 1], [0, 1, 2, 3]]


def test_limit_falls_where_a_token_surprises_and_rises_where_it_does_not(four: Tryout):
    knobs = {"mirostat": 2, "mirostat_tau": 1.6, "mirostat_eta": 0.5}
    filled, choice = four.step(four.fill(knobs), [SHARES] * 8, seed=SEEDS)
    surprise = -choice.sampled / np.log(2)
    expected = 3.2 - 0.5 * (surprise - 1.6)
    assert np.allclose(filled["mirostat"].limit, expected, atol=1e-5)
    assert len(set(choice.token.tolist())) > 1


SEEDS = np.stack([np.zeros(8), np.arange(8)], axis=-1).astype(np.uint32).tolist()


def zipf(logits: np.ndarray, limit: float) -> int:
    """As the paper and llama.cpp have it."""
    _, p = descending(logits)
    steps = np.log(np.arange(2, 51) / np.arange(1, 50))
    slope = (steps * np.log(p[:-1] / p[1:])).sum() / (steps**2).sum()
    epsilon = slope - 1
    return int((epsilon * 2**limit / (1 - 50.0**-epsilon)) ** (1 / slope))


def test_first_version_keeps_as_many_as_zipfs_law_says(many: Tryout):
    rng = np.random.default_rng(35)
    for _ in range(ROUNDS):
        logits, taus = random_logits(rng), rng.uniform(0.2, 3, 300)
        found = kept(many, logits, [{"mirostat": 1, "mirostat_tau": float(tau)} for tau in taus])
        wanted = np.array([zipf(logits[row], 2 * tau) for row, tau in enumerate(taus)])
        counts = np.array([len(each) for each in found])
        # Rounding may put a count on the other side of a whole number, by one and seldom.
        assert (np.abs(counts - np.clip(wanted, 1, 50)) <= 1).all()
        assert (counts == np.clip(wanted, 1, 50)).mean() > 0.99


def test_second_version_agrees_with_numpy_on_random_distributions(many: Tryout):
    rng = np.random.default_rng(36)
    for _ in range(ROUNDS):
        logits, taus = random_logits(rng), rng.uniform(0.2, 3, 300)
        found = kept(many, logits, [{"mirostat": 2, "mirostat_tau": float(tau)} for tau in taus])
        for row, tau in enumerate(taus):
            order, p = descending(logits[row])
            expected = order[: max(1, int((-np.log2(p) <= 2 * tau).sum()))]
            assert found[row] == sorted(expected.tolist())


@pytest.mark.parametrize("version", [1, 2])
def test_surprise_settles_near_the_target(many: Tryout, version: int):
    rng = np.random.default_rng(37)
    filled = many.fill({"mirostat": version, "mirostat_tau": 2.0, "mirostat_eta": 0.2})
    surprises = []
    for step in range(60):
        logits = (rng.normal(size=(300, 50)) * 1.5).astype(np.float32)
        seeds = np.stack([np.full(300, step), np.arange(300)], axis=-1).astype(np.uint32)
        filled, choice = many.step(filled, logits, seed=seeds.tolist())
        surprises.append(-choice.sampled.mean() / np.log(2))
    assert abs(np.mean(surprises[30:]) - 2.0) < 0.1
