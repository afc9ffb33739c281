"""Typical-p keeps what is about as surprising as the entropy says."""

import numpy as np
import pytest

from jaxllama.testing.tryout import Tryout
from tests.samplers.rows import ROUNDS, kept, log_softmax, random_logits

# In bits 1, 2, 3 and 3; the entropy is 1.75, so their distances are 0.75, 0.25, 1.25 and 1.25.
SHARES = np.log([0.5, 0.25, 0.125, 0.125])


def test_tokens_nearest_to_the_entropy_are_kept_up_to_the_line(four: Tryout):
    found = kept(four, [SHARES] * 4, [{"typical_p": p} for p in (0.2, 0.3, 0.8, 0.9)])
    assert found == [[1], [0, 1], [0, 1, 2], [0, 1, 2, 3]]


@pytest.mark.origin("ExLlama: typical sampling that drops the crossing token")
def test_strict_drops_the_token_that_crosses_the_line(four: Tryout):
    knobs = [{"typical_p": p, "typical_p_strict": True} for p in (0.2, 0.3, 0.8, 0.9)]
    assert kept(four, [SHARES] * 4, knobs) == [[1], [1], [0, 1], [0, 1, 2]]


def test_looks_at_what_top_k_left(four: Tryout):
    # Two thirds and one third: 0.58 and 1.58 bits, the entropy is 0.92.
    assert kept(four, SHARES, {"top_k": 2, "typical_p": 0.5}) == [[0]]


def typical(logits: np.ndarray, line: float, *, strict: bool) -> list[int]:
    surprise = -log_softmax(logits)
    p = np.exp(-surprise)
    order = np.argsort(np.abs(surprise - (p * surprise).sum()), kind="stable")
    total, found = 0.0, []
    for token in order.tolist():
        if strict and found and total + p[token] > line:
            break
        found.append(token)
        total += p[token]
        if total >= line:
            break
    return sorted(found)


def test_agrees_with_numpy_on_random_distributions(many: Tryout):
    rng = np.random.default_rng(31)
    for _ in range(ROUNDS):
        logits, lines, strict = random_logits(rng), rng.random(300), rng.random(300) < 0.5
        knobs = [
            {"typical_p": float(line), "typical_p_strict": bool(drop)}
            for line, drop in zip(lines, strict, strict=True)
        ]
        found = kept(many, logits, knobs)
        for row, line in enumerate(lines):
            assert found[row] == typical(logits[row], line, strict=strict[row])
