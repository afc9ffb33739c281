"""Every architecture from a GGUF file: the configuration and weights of the folder it came from."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convert import to_gguf

from jaxllama.config import LayerSpec, ModelConfig
from jaxllama.errors import CheckpointError, UnsupportedModel
from jaxllama.kernels.packed import Packed, dense_of
from jaxllama.model.params import abstract_params
from jaxllama.weights import open_checkpoint
from jaxllama.weights.architectures import ARCHITECTURES, LACKING, pattern_of
from jaxllama.weights.base import check_tensors
from jaxllama.weights.fields import CheckedFields
from jaxllama.weights.gguf_config import read_scales
from jaxllama.weights.huggingface_config import read_config

GOLDEN = Path(__file__).parent.parent / "golden/architectures"
NAMES = sorted(path.name for path in GOLDEN.iterdir())
# A GGUF file states no divisor of the scores: Gemma's is the head size, the goldens' is not.
UNSTATED = {"gemma2": {"query_scale": None}, "gemma3": {"query_scale": None}}


def read_all(path: Path) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """The configuration and every weight in canonical layout, dense."""
    with open_checkpoint(path) as checkpoint:
        abstract = abstract_params(checkpoint.config)
        check_tensors(abstract, checkpoint)
        values = {name: checkpoint.read(name, leaf) for name, leaf in abstract.items()}
        for name, leaf in abstract.items():
            assert values[name].shape == leaf.shape or name == "embed.weight", name
    return checkpoint.config, {name: dense(name, value) for name, value in values.items()}


def dense(name: str, value: np.ndarray | Packed) -> np.ndarray:
    if not isinstance(value, Packed):
        return np.asarray(value, np.float32)
    matrix = dense_of(value)
    return matrix.T if name == "embed.weight" else matrix


def assert_close(found: Any, expected: Any, where: str = "") -> None:
    """Equal but for the float32 in which a GGUF file keeps numbers."""
    if dataclasses.is_dataclass(expected):
        for field in dataclasses.fields(expected):
            pair = (getattr(each, field.name) for each in (found, expected))
            assert_close(*pair, f"{where}.{field.name}")
    elif isinstance(expected, float | tuple) and expected and isinstance(found, float | tuple):
        assert found == (pytest.approx(expected) if not is_specs(expected) else expected), where
    else:
        assert found == expected, where


def is_specs(value: object) -> bool:
    return isinstance(value, tuple) and isinstance(value[0], LayerSpec)


# GGUF has no word for experts in some layers, and for weights that do not add up to 1.
@pytest.mark.parametrize("name", [name for name in NAMES if name != "qwen3_moe_mixed"])
def test_a_gguf_file_means_the_same_as_its_folder(tmp_path: Path, name: str):
    to_gguf(GOLDEN / name, tmp_path / "m.gguf")
    config, weights = read_all(GOLDEN / name)
    found, values = read_all(tmp_path / "m.gguf")
    expected = dataclasses.replace(config, name=found.name, **UNSTATED.get(name, {}))
    assert_close(found, expected, name)
    assert values.keys() == weights.keys()
    for path, value in weights.items():
        np.testing.assert_array_equal(values[path], value, err_msg=path)


@pytest.mark.parametrize("name", ["gemma2", "phi3", "mixtral"])
def test_fused_and_stacked_matrices_may_be_packed(tmp_path: Path, name: str):
    path = tmp_path / "m.gguf"
    to_gguf(GOLDEN / name, path, "Q8_0")
    _, weights = read_all(GOLDEN / name)
    _, values = read_all(path)
    assert values.keys() == weights.keys()
    for name_, value in weights.items():
        error = np.abs(values[name_] - value).max() / np.abs(value).max()
        assert error < 0.01, name_


def test_every_name_of_the_table_means_one_architecture():
    for names in (
        [each.class_name for each in ARCHITECTURES],
        [each.model_type for each in ARCHITECTURES],
        [each.title for each in ARCHITECTURES],
    ):
        assert len(set(names)) == len(names)
    assert not {each.class_name for each in ARCHITECTURES} & set(LACKING)


def test_every_architecture_has_a_golden():
    goldens = {
        json.loads((GOLDEN / name / "config.json").read_text())["model_type"] for name in NAMES
    }
    older = {"llama", "mistral", "qwen2", "qwen3"}  # in tests/golden itself
    assert goldens | older == {each.model_type for each in ARCHITECTURES}


@pytest.mark.parametrize("name", ["Gemma3ForConditionalGeneration", "DeepseekV3ForCausalLM"])
def test_an_architecture_that_is_not_supported_is_refused_with_what_is_missing(name: str):
    fields = {"architectures": [name]}
    with pytest.raises(UnsupportedModel, match=f"'{name}' is not supported .{LACKING[name]}"):
        read_config(CheckedFields(fields, "config.json"), "m", 100)


def test_a_pattern_is_the_shortest_run_of_layers():
    full, windowed = LayerSpec(windowed=False), LayerSpec()
    assert pattern_of([windowed] * 5) == (windowed,)
    assert pattern_of([windowed, full, windowed, full, windowed]) == (windowed, full)
    assert pattern_of([full, windowed, windowed]) == (full, windowed, windowed)


def test_gemma_2_of_46_layers_divides_its_scores_by_another_size():
    fields = {"gemma2.attention.sliding_window": 4096}
    family = next(each for each in ARCHITECTURES if each.gguf == "gemma2")
    sizes = {46: (4608 / 32) ** -0.5, 42: None}
    for layers, scale in sizes.items():
        found = read_scales(CheckedFields(fields, "m.gguf"), family, layers, (4608, 32))
        assert found.get("query_scale") == scale


def written(**fields: object) -> ModelConfig:
    """The configuration of a golden's config.json with some fields changed."""
    values = json.loads((GOLDEN / str(fields.pop("golden")) / "config.json").read_text())
    return read_config(CheckedFields(values | fields, "config.json"), "m", 500)


def test_older_config_files_say_the_same():
    gemma = written(golden="gemma3")
    old = written(
        golden="gemma3",
        rope_parameters=None,
        layer_types=None,
        rope_theta=1e6,
        rope_local_base_freq=1e4,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
        sliding_window_pattern=6,
    )
    assert old == gemma
    phi = written(golden="phi3_long")
    factors = json.loads((GOLDEN / "phi3_long/config.json").read_text())["rope_parameters"]
    scaling = {key: factors[key] for key in ("short_factor", "long_factor")}
    old = written(golden="phi3_long", rope_parameters=None, rope_scaling=scaling | {"type": "su"})
    assert old == phi
    assert phi.rope.long_factors


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "too many experts": ({"golden": "mixtral", "num_local_experts": 84}, "84; so many experts"),
    "more used than there are": (
        {"golden": "mixtral", "num_experts_per_tok": 5}, "num_experts_per_tok is 5",
    ),
    "too few layer types": ({"golden": "gemma3", "layer_types": ["full_attention"]}, "1 values"),
    "another activation": ({"golden": "gemma2", "hidden_activation": "relu"}, "'relu'"),
    "looks both ways": (
        {"golden": "gemma3", "use_bidirectional_attention": True}, "use_bidirectional_attention",
    ),
    "cap": ({"golden": "gemma2", "attn_logit_softcapping": -1.0}, "attn_logit_softcapping is -1"),
    "scale": ({"golden": "granite", "residual_multiplier": 0}, "residual_multiplier is 0"),
    "part of a head": (
        {"golden": "granite", "partial_rotary_factor": 0.5}, "not supported for Granite",
    ),
    "factors of another size": (
        {"golden": "phi3_long", "rope_parameters": {
            "rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
        "1 rope factors",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_config_that_is_refused(case: str):
    fields, words = REFUSED[case]
    with pytest.raises(CheckpointError, match=words):
        written(**fields)
