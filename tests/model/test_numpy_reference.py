"""The NumPy reference against logits that transformers computed from the same weights."""

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxllama.config import Experts, LayerSpec, ModelConfig, Rope
from jaxllama.model.params import abstract_params, nest
from jaxllama.model.rope import fitted
from jaxllama.testing import numpy_llama
from jaxllama.testing.models import FAMILIES, random_params, shapes
from jaxllama.weights import open_checkpoint

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


# Of each architecture, what sets it apart, undone: its golden must notice.
ARCHITECTURES_UNDONE: dict[str, list[dict[str, Any]]] = {
    "gemma": [{"activation": "silu"}, {"embed_scale": 1.0}],
    "gemma2": [
        {"attention_cap": None},
        {"logit_cap": None},
        {"pattern": (LayerSpec(),)},
        {"query_scale": None},
        {"window": 10},
    ],
    "gemma3": [{"local_rope": None}, {"rope": Rope(1e6)}, {"pattern": (LayerSpec(),)}],
    "granite": [
        {name: 1.0} for name in ("query_scale", "embed_scale", "residual_scale", "logit_scale")
    ],
    "mixtral": [{"experts": Experts(4, 1, 32)}, {"experts": Experts(4, 2, 32, normed=False)}],
    "olmo2": [{"qk_norm": False}, {"norm_eps": 1e-2}],
    "phi3": [{"window": 12}],
    "phi3_long": [{"rope": Rope()}],
    "phi4_mini": [{"rotary_dim": None}],
    "qwen3_moe": [{"qk_norm": False}, {"experts": Experts(6, 3, 16)}],
    "qwen3_moe_mixed": [{"experts": Experts(4, 2, 16)}],
    "smollm3": [{"pattern": (LayerSpec(),)}, {"rope": Rope(1e4)}],
}


@cache
def golden_model(name: str) -> tuple[ModelConfig, dict[Any, Any]]:
    """The configuration and the weights of a golden model."""
    with open_checkpoint(GOLDEN / "architectures" / name) as checkpoint:
        config = fitted(checkpoint.config, 64)
        leaves = abstract_params(config)
        return config, nest({path: checkpoint.read(path, leaf) for path, leaf in leaves.items()})


def difference(config: ModelConfig, name: str, kept: str = "logits") -> float:
    """Largest difference from a golden model's logits, relative to the largest of them."""
    golden = np.load(GOLDEN / "architectures" / name / "logits.npz")
    tokens = golden["tokens"][: len(golden[kept])]
    found = numpy_llama.logits(config, golden_model(name)[1], tokens)
    return np.abs(found - golden[kept]).max() / np.abs(golden[kept]).max()


@pytest.mark.parametrize("name", ARCHITECTURES_UNDONE)
def test_architectures_have_the_logits_of_transformers(name: str):
    assert difference(golden_model(name)[0], name) < 1e-5


@pytest.mark.parametrize("name", ARCHITECTURES_UNDONE)
def test_golden_notices_when_what_defines_the_architecture_is_undone(name: str):
    for change in ARCHITECTURES_UNDONE[name]:
        changed = dataclasses.replace(golden_model(name)[0], **change)
        assert difference(changed, name) > 1e-3, change


def test_a_short_context_uses_the_short_factors():
    with open_checkpoint(GOLDEN / "architectures/phi3_long") as checkpoint:
        config = checkpoint.config
    assert difference(fitted(config, 16), "phi3_long", "short_logits") < 1e-5
    assert difference(fitted(config, 17), "phi3_long", "short_logits") > 1e-3


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
