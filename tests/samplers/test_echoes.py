"""DRY and no-repeat-ngram: sequences that would go on as they did before."""

import numpy as np
import pytest

from jaxllama.testing.tryout import Tryout
from tests.samplers.rows import ROUNDS, kept, log_softmax, random_logits, shares

LOGITS = np.array([2.0, -1.0, 1.0, 0.5])
NO_BREAKERS = {"dry_breakers": [3]}  # in the place of the usual ones; 3 is in no row


def changed(tryout: Tryout, tokens: list[int], **knobs: object) -> dict[int, float]:
    """By how much each token's logit moved (against token 3, which no row holds)."""
    found = shares(tryout, LOGITS, knobs | NO_BREAKERS, tokens=tokens, length=len(tokens))[0]
    moved = found - found[3] - (LOGITS - LOGITS[3])
    return {token: round(float(by), 3) for token, by in enumerate(moved) if abs(by) > 1e-3}


@pytest.mark.parametrize(
    ("tokens", "length", "expected"),
    [
        ([0, 1, 2, 0, 1], 2, {2: -1.0}),  # "0 1" again: 2 would follow
        ([0, 1, 2, 0, 1], 1, {2: -2.0}),
        ([0, 1, 2, 0, 1], 3, {}),
        ([1, 0, 1, 2, 1, 0, 1], 1, {0: -1.0, 2: -4.0}),  # "1 0 1" again, and "1"
        ([0, 1, 2], 1, {}),
    ],
)
def test_dry_grows_with_the_length_of_the_repetition(four: Tryout, tokens, length, expected):
    knobs = {"dry_multiplier": 1.0, "dry_base": 2.0, "dry_allowed_length": length}
    assert changed(four, tokens, **knobs) == expected


def test_dry_counts_the_longest_of_several_repetitions(four: Tryout):
    # 2 followed both "1" and "0 1"; 0 followed "1" alone.
    tokens = [0, 1, 2, 1, 2, 1, 0, 0, 1]
    found = changed(four, tokens, dry_multiplier=1.0, dry_base=2.0, dry_allowed_length=1)
    assert found == {0: -1.0, 2: -2.0}


def test_dry_range_forgets_older_tokens(four: Tryout):
    knobs = {"dry_multiplier": 1.0, "dry_base": 2.0, "dry_allowed_length": 1}
    assert changed(four, [0, 1, 2, 0, 1], **knobs, dry_range=4) == {2: -1.0}
    assert changed(four, [0, 1, 2, 0, 1], **knobs, dry_range=3) == {}


def test_no_ngram_is_completed_twice(four: Tryout):
    tokens, length = [0, 1, 2, 3, 0, 1], 6
    sizes = [{"no_repeat_ngram_size": n} for n in (1, 2, 3, 4)]
    found = kept(four, [LOGITS] * 4, sizes, tokens=tokens, length=length)
    # Size 1 would ban all four tokens, and so bans none.
    assert found == [[0, 1, 2, 3], [0, 1, 3], [0, 1, 3], [0, 1, 2, 3]]


def longest_echoes(tokens: list[int], limit: int) -> dict[int, int]:
    """For every token that followed an echo of the end: the longest such echo."""
    found: dict[int, int] = {}
    for last in range(len(tokens) - 1):
        n = 0
        while n < limit and n <= last and tokens[last - n] == tokens[len(tokens) - 1 - n]:
            n += 1
        found[tokens[last + 1]] = max(found.get(tokens[last + 1], 0), n)
    return found


def test_dry_agrees_with_a_naive_search(many: Tryout):
    rng = np.random.default_rng(14)
    for _ in range(ROUNDS):
        logits = random_logits(rng)
        tokens, lengths = rng.integers(0, 3, (300, 16)), rng.integers(1, 17, 300)
        ranges = rng.integers(0, 17, 300)
        allowed, bases = rng.integers(1, 5, 300), rng.uniform(1, 3, 300)
        knobs = [
            {
                "dry_multiplier": 0.8,
                "dry_base": float(bases[row]),
                "dry_allowed_length": int(allowed[row]),
                "dry_range": int(ranges[row]),
                **NO_BREAKERS,
            }
            for row in range(300)
        ]
        found = shares(many, logits, knobs, tokens=tokens.tolist(), length=lengths)
        for row in range(300):
            seen = tokens[row, : lengths[row]].tolist()
            seen = seen[-ranges[row] :] if ranges[row] else seen
            expected = logits[row].astype(np.float64)
            for token, n in longest_echoes(seen, 99).items():
                if n >= allowed[row]:
                    expected[token] -= 0.8 * bases[row] ** (n - allowed[row])
            np.testing.assert_allclose(found[row], log_softmax(expected), rtol=1e-4, atol=1e-4)


def test_ngrams_agree_with_a_naive_search(many: Tryout):
    rng = np.random.default_rng(15)
    for _ in range(ROUNDS):
        logits = random_logits(rng)
        tokens, lengths = rng.integers(0, 4, (300, 16)), rng.integers(1, 17, 300)
        sizes = rng.integers(1, 6, 300)
        knobs = [{"no_repeat_ngram_size": int(n)} for n in sizes]
        found = kept(many, logits, knobs, tokens=tokens.tolist(), length=lengths)
        for row, n in enumerate(sizes):
            seen = tokens[row, : lengths[row]].tolist()
            known = {tuple(seen[i : i + n]) for i in range(len(seen) - n + 1)}
            end = seen[len(seen) - n + 1 :] if len(seen) >= n - 1 else None
            free = [t for t in range(50) if end is None or (*end, t) not in known]
            assert found[row] == free
