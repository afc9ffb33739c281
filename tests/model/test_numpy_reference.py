"""The NumPy reference against logits that transformers computed from the same weights."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from jaxllama.config import ModelConfig, Rope
from jaxllama.testing import numpy_llama
from jaxllama.testing.models import FAMILIES, random_params, shapes

GOLDEN = Path(__file__).parent.parent / "golden"

# What sets a family apart, undone: the golden must notice.
UNDONE = {
    "llama1": {"norm_eps": 1e-2},
    "llama3": {"rope": Rope(10000.0)},
    "llama31": {"rope": Rope(500000.0)},
    "mistral": {"window": 13},
    "linear": {"rope": Rope()},
    "ntk": {"rope": Rope()},
    "yarn": {"rope": Rope(kind="linear", factor=4.0)},
    "yarn_scaled": {
        "rope": dataclasses.replace(FAMILIES["yarn_scaled"].rope, attention_factor=1.0)
    },
    "factors": {"rope": Rope()},
    "qwen3": {"qk_norm": False},
}


def worst_difference(config: ModelConfig, family: str, dtype: type = np.float64) -> float:
    """Largest difference from the golden, relative to its largest logit."""
    golden = np.load(GOLDEN / f"{family}.npz")
    params = random_params(FAMILIES[family])
    found = numpy_llama.logits(config, params, golden["tokens"], dtype=dtype)[golden["rows"]]
    return np.abs(found - golden["logits"]).max() / np.abs(golden["logits"]).max()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_logits_equal_those_of_transformers(family: str, dtype: type):
    assert worst_difference(FAMILIES[family], family, dtype) < 1e-5


@pytest.mark.parametrize("family", UNDONE)
def test_golden_notices_when_what_defines_the_family_is_undone(family: str):
    changed = dataclasses.replace(FAMILIES[family], **UNDONE[family])
    assert worst_difference(changed, family) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_continuation_equals_that_of_transformers(family: str):
    golden = np.load(GOLDEN / f"{family}.npz")
    config = FAMILIES[family]
    found = numpy_llama.greedy(config, random_params(config), golden["tokens"].tolist(), 16)
    assert found == golden["greedy"].tolist()


def test_biases_move_the_logits():
    config = FAMILIES["biased"]
    params = random_params(config)
    for path in [p for p in shapes(config) if p.endswith("1.ffn.down.bias")]:
        _, layer, group, name, leaf = path.split(".")
        params["blocks"][int(layer)][group][name][leaf][:] = 0
    golden = np.load(GOLDEN / "biased.npz")
    found = numpy_llama.logits(config, params, golden["tokens"])[golden["rows"]]
    assert np.abs(found - golden["logits"]).max() > 1e-2


def test_last_keeps_only_the_final_rows():
    config = FAMILIES["llama3"]
    params = random_params(config)
    every = numpy_llama.logits(config, params, [1, 2, 3])
    final = numpy_llama.logits(config, params, [1, 2, 3], last=1)
    np.testing.assert_allclose(final, every[-1:], rtol=1e-12)


def test_every_family_has_the_size_of_a_real_model_s_activations():
    for config in FAMILIES.values():
        spread = numpy_llama.logits(config, random_params(config), range(40)).std()
        assert 1 < spread < 4, config.name
