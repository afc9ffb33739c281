"""The choosing kernels against NumPy, and at their edges."""

import jax
import numpy as np
import pytest

from jaxllama.kernels import choice

BELOW_ONE = np.float32(1 - 2**-24)


def inverse_cdf(logits: np.ndarray, heat: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """The first id whose cumulative share exceeds the chance, in float64."""
    weights = np.exp((logits - logits.max(-1, keepdims=True)).astype(np.float64) / heat[:, None])
    reached = np.cumsum(weights, -1) / weights.sum(-1, keepdims=True)
    return (reached > chance[:, None]).argmax(-1)


def draw(logits: np.ndarray, heat: object, chance: object) -> tuple[np.ndarray, np.ndarray]:
    rows = len(logits)
    logits = logits.astype(np.float32)
    heat, chance = (np.broadcast_to(np.float32(x), rows) for x in (heat, chance))
    return jax.device_get(jax.jit(choice.draw)(logits, logits.max(-1), heat, chance))


@pytest.mark.parametrize("vocab", [1, 7, 256, 257, 1000, 4096])
def test_draw_agrees_with_the_inverse_distribution(vocab: int):
    rng = np.random.default_rng(vocab)
    logits = (rng.normal(size=(500, vocab)) * 3).astype(np.float32)
    logits[rng.random(logits.shape) < 0.2] = -np.inf
    logits[np.arange(500), rng.integers(0, vocab, 500)] = 1.0
    heat, chance = rng.uniform(0.3, 3, 500), rng.random(500).astype(np.float32)
    token, log_total = draw(logits, heat, chance)
    assert np.isfinite(logits[np.arange(500), token]).all()
    # Rounding may move a border between two tokens, but hardly ever past the chance.
    assert (token == inverse_cdf(logits, heat, chance)).mean() > 0.99
    scaled = (logits - logits.max(-1, keepdims=True)) / heat[:, None]
    np.testing.assert_allclose(log_total, np.log(np.exp(scaled).sum(-1)), atol=1e-5)


@pytest.mark.parametrize("place", [0, 1, 255, 256, 511, 512, 598, 599])
def test_draw_finds_the_only_token_whatever_the_chance(place: int):
    logits = np.full((4, 600), -np.inf)
    logits[:, place] = -3.0
    token, _ = draw(logits, 1.0, [0.0, 0.3, 0.99, BELOW_ONE])
    assert token.tolist() == [place] * 4


def test_draw_reaches_the_first_and_the_last_token_with_weight():
    logits = np.zeros((2, 1000))
    logits[:, :3] = logits[:, 990:] = -np.inf
    token, _ = draw(logits, 1.0, [0.0, BELOW_ONE])
    assert token.tolist() == [3, 989]


def test_no_temperature_overflows():
    logits = np.random.default_rng(0).normal(size=(3, 300)) * 1e37
    token, log_total = draw(logits, [1e-30, 1.0, 100.0], 0.5)
    assert token.tolist() == logits.argmax(-1).tolist()
    assert np.allclose(log_total, 0)


def test_likeliest_is_the_lowest_id_among_equals():
    logits = np.zeros((3, 300), np.float32)
    logits[1, [9, 200]] = 4.0
    logits[2] = np.nan
    token, best = jax.jit(choice.likeliest)(logits)
    assert token.tolist() == [0, 9, 0]
    assert best[:2].tolist() == [0.0, 4.0]


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf])
def test_unsound_value_is_found_at_every_place(value: float):
    logits = np.random.default_rng(0).normal(size=(601, 600)).astype(np.float32)
    logits[:, 5] = -np.inf
    logits[np.arange(600), np.arange(600)] = value
    sound = jax.jit(choice.is_sound)(logits)
    assert sound.tolist() == [False] * 600 + [True]


def test_candidates_come_best_first_and_lower_ids_first_among_equals():
    logits = np.random.default_rng(0).integers(0, 20, (50, 300)).astype(np.float32)
    heat = np.full(50, 2.0, np.float32)
    found = jax.jit(choice.best_candidates, static_argnums=3)(logits, logits.max(-1), heat, 40)
    ids, relative, total = jax.device_get(found)
    expected = np.argsort(-logits, -1, kind="stable")[:, :40]
    np.testing.assert_array_equal(ids, expected)
    best = logits.max(-1, keepdims=True)
    np.testing.assert_allclose(relative, (np.take_along_axis(logits, expected, -1) - best) / 2)
    np.testing.assert_allclose(total, np.log(np.exp((logits - best) / 2).sum(-1)), rtol=1e-5)
