"""The model's two ways in, against the NumPy reference, for every family."""

from functools import partial

import jax
import numpy as np
import pytest

from jaxllama.config import EngineConfig, ModelConfig
from jaxllama.model.cache import empty_cache
from jaxllama.model.params import abstract_params, model_of
from jaxllama.testing import numpy_llama
from jaxllama.testing.models import FAMILIES, random_params, shapes, tiny
from tests.support import place_all

SLOTS, SLOT = 3, 1  # the sequence lies in the middle slot
PIECE = 60  # tokens of one prompt call
STEPS = 20
# Compiling is the test's time.
QUICK = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
LENGTH = 2 * PIECE + STEPS  # beyond one block of keys (128 columns)
TOKENS = np.random.RandomState(7).randint(0, 256, LENGTH)


def run(config: ModelConfig, params: dict, tokens: np.ndarray) -> np.ndarray:
    """Logits after every token: two prompt calls, then steps with busy neighbours."""
    weights = place_all(config, EngineConfig(), tree=params)

    @QUICK
    def prompt(weights, tokens, cache, slot, start):
        model = model_of(config, weights)
        hidden, cache = model.prompt(tokens, cache, slot, start)
        return model.head(hidden), cache

    @QUICK
    def step(weights, tokens, cache, position, active):
        model = model_of(config, weights)
        hidden, cache = model.step(tokens, cache, position, active)
        return model.head(hidden), cache

    cache = empty_cache(config, EngineConfig(slots=SLOTS, context=256), PIECE)
    found = []
    for start in range(0, 2 * PIECE, PIECE):
        piece = tokens[start : start + PIECE]
        # A neighbour's prompt in between must leave no trace in ours.
        _, cache = prompt(weights, piece[::-1], cache, np.int32(0), np.int32(start // 2))
        logits, cache = prompt(weights, piece, cache, np.int32(SLOT), np.int32(start))
        found.append(logits)
    for position in range(2 * PIECE, len(tokens)):
        row = np.array([5, tokens[position], 9], np.int32)
        places = np.array([position - 40, position, 3], np.int32)
        active = np.array([True, True, False])
        logits, cache = step(weights, row, cache, places, active)
        found.append(logits[SLOT : SLOT + 1])
    return np.concatenate(found)


def worst(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, relative to the largest logit."""
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_the_numpy_reference(family: str):
    config = FAMILIES[family]
    params = random_params(config)
    expected = numpy_llama.logits(config, params, TOKENS)
    assert worst(run(config, params, TOKENS), expected) < 1e-4


def test_the_comparison_notices_one_wrong_token():
    config = FAMILIES["llama3"]
    params = random_params(config)
    changed = TOKENS.copy()
    changed[3] += 1
    found = run(config, params, changed)
    expected = numpy_llama.logits(config, params, TOKENS)
    assert worst(found[:3], expected[:3]) < 1e-4
    assert worst(found[4:], expected[4:]) > 1e-3


@pytest.mark.parametrize("window", [1, 128, 129])
def test_windows_end_where_they_should_around_a_block_of_keys(window: int):
    config = tiny(kv_heads=2, window=window)
    params = random_params(config)
    expected = numpy_llama.logits(config, params, TOKENS)
    assert worst(run(config, params, TOKENS), expected) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_have_the_canonical_names_and_shapes(family: str):
    config = FAMILIES[family]
    found = {path: leaf.shape for path, leaf in abstract_params(config).items()}
    assert found == shapes(config)
