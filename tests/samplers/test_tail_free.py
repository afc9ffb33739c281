"""Tail-free sampling cuts where the sorted probabilities stop bending."""

import numpy as np
import pytest

from jaxllama.registry import SAMPLERS, load_plugins
from jaxllama.sampling import Sampler
from jaxllama.testing.tryout import Tryout
from tests.samplers.rows import ROUNDS, descending, kept, random_logits

# Differences of 0.1, 0.18, 0.02, 0.05 and 0.02 bend by 0.08, 0.16, 0.03 and 0.03 of 0.3.
SHARES = np.concatenate([np.log([0.4, 0.3, 0.12, 0.1, 0.05, 0.03]), np.full(44, -np.inf)])


def test_tokens_are_kept_up_to_a_share_of_the_curvature(many: Tryout):
    found = kept(many, [SHARES] * 4, [{"tfs_z": z} for z in (0.1, 0.3, 0.85, 0.95)])
    assert found == [[0], [0], [0, 1], [0, 1, 2]]


def test_two_tokens_have_no_curvature_and_stay(four: Tryout):
    assert kept(four, [3.0, 0.0, -np.inf, -np.inf], {"tfs_z": 0.5}) == [[0, 1]]


def tail_free(logits: np.ndarray, line: float) -> list[int]:
    """As llama.cpp walks."""
    order, p = descending(logits)
    bends = np.abs(np.diff(np.diff(p)))
    total = 0.0
    for place, bend in enumerate(bends / bends.sum()):
        total += bend
        if total > line and place >= 1:
            return sorted(order[:place].tolist())
    return sorted(order.tolist())


def test_agrees_with_numpy_on_random_distributions(many: Tryout):
    rng = np.random.default_rng(33)
    for _ in range(ROUNDS):
        logits, lines = random_logits(rng), rng.uniform(0.01, 0.99, 300)
        found = kept(many, logits, [{"tfs_z": float(line)} for line in lines])
        assert found == [tail_free(logits[row], line) for row, line in enumerate(lines)]


@pytest.fixture(scope="module")
def narrow() -> Tryout:
    """Eight candidates of fifty tokens are looked at first."""
    samplers = load_plugins(SAMPLERS, Sampler).loaded
    kinds = {name: samplers[name] for name in ("tail_free", "typical_p", "eta_cutoff", "mirostat")}
    return Tryout(kinds, vocab=50, slots=100, candidates=8)


@pytest.mark.parametrize(
    "knobs",
    [{"tfs_z": 0.8}, {"typical_p": 0.7}, {"eta_cutoff": 0.02}, {"mirostat": 1}, {"mirostat": 2}],
    ids=str,
)
def test_number_of_candidates_changes_no_survivor(many: Tryout, narrow: Tryout, knobs):
    logits = random_logits(np.random.default_rng(34), rows=100)
    knobs = knobs | ({"mirostat_tau": 1.0} if "mirostat" in knobs else {})
    assert kept(narrow, logits, knobs) == kept(many, logits, knobs)
