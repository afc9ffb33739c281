"""Temperature noise multiplies every logit by a number of its own."""

import numpy as np
import pytest

from jaxllama.testing.tryout import Tryout
from tests.samplers.rows import log_softmax, shares

SEEDS = np.stack([np.zeros(300), np.arange(300)], axis=-1).astype(np.uint32).tolist()


def factors(many: Tryout, noise: float, length: int, **fields: object) -> np.ndarray:
    """The factor of tokens 1 to 49 in 300 rows; token 0 has logit 0, which no factor moves."""
    logits = np.ones((300, 50))
    logits[:, 0] = 0.0
    found = shares(many, logits, {"temperature_noise": noise}, length=length, seed=SEEDS, **fields)
    return (found - found[:, :1])[:, 1:]


@pytest.mark.origin("LLaMbA: temperature by noise")
@pytest.mark.parametrize(
    ("noise", "low", "high"), [(0.5, 1.0, 1.1), (1.0, 1.0, 1.2), (2.0, 0.5, 1.4)]
)
def test_factors_are_uniform_between_their_bounds(many: Tryout, noise, low, high):
    found = np.concatenate([factors(many, noise, length).ravel() for length in (1, 2, 3)])
    assert low - 1e-5 <= found.min() and found.max() < high + 1e-5
    counts, _ = np.histogram(found, bins=20, range=(low, high))
    expected = found.size / 20
    assert ((counts - expected) ** 2 / expected).sum() < 43.8  # chi-square, 19 degrees, 0.1 %


def test_tokens_steps_and_seeds_have_factors_of_their_own(many: Tryout):
    one, other = (factors(many, 2.0, length) for length in (4, 5))
    pairs = [(one, other), (one[:, 1:], one[:, :-1]), (one[1:], one[:-1])]
    for a, b in pairs:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.03


def test_end_tokens_never_gain(many: Tryout):
    found = factors(many, 1.0, 6, stop_ids=[7, 9])
    assert np.allclose(found[:, [6, 8]], 1.0, atol=1e-5)
    assert (found[:, [5, 7]] > 1.01).any()


def test_temperature_zero_takes_the_largest_product(many: Tryout):
    logits = np.ones((300, 50))
    choice = many.choose(logits, {"temperature_noise": 1.0}, length=7, seed=SEEDS, temperature=0.0)
    assert choice.token.tolist() == factors_of_all(many).argmax(-1).tolist()


def factors_of_all(many: Tryout) -> np.ndarray:
    knobs = {"temperature_noise": 1.0}
    return shares(many, np.ones((300, 50)), knobs, length=7, seed=SEEDS)


def test_logits_are_multiplied_not_moved(four: Tryout):
    logits = np.array([[-4.0, -2.0, 2.0, 4.0]])
    found = shares(four, logits, {"temperature_noise": 0.5})
    factor = np.exp(0)  # at least 1: negative logits fall, positive ones rise
    plain = log_softmax(logits) * factor
    assert found[0, 3] - found[0, 0] > plain[0, 3] - plain[0, 0]
