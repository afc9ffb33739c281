"""What config.json and GGUF metadata say about rope, windows and defaults."""

import json
import math
from pathlib import Path

import pytest
from writers import flatten, hf_config, write_gguf

from jaxllama.config import ModelConfig, Rope
from jaxllama.errors import BadHeader, CheckpointError, UnsupportedModel
from jaxllama.testing import FAMILIES, random_params, tiny
from jaxllama.weights import open_checkpoint
from jaxllama.weights.fields import CheckedFields
from jaxllama.weights.huggingface_config import read_config

BASE = hf_config(FAMILIES["llama2"])


def config_of(*absent: str, **fields: object) -> ModelConfig:
    """The configuration of a Llama config.json with some fields changed."""
    values = json.loads(json.dumps(BASE | fields))
    return read_config(
        CheckedFields({k: v for k, v in values.items() if k not in absent}, "c.json"), "c", 100
    )


YARN = Rope(5e5, "yarn", 4.0, original_context=64)
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
ROPES: dict[str, tuple[dict[str, object], Rope]] = {
    "theta": ({"rope_theta": 5e5}, Rope(5e5)),
    "whole theta": ({"rope_theta": 500000}, Rope(5e5)),
    "null scaling": ({"rope_theta": 5e5, "rope_scaling": None}, Rope(5e5)),
    "linear": ({"rope_scaling": {"type": "linear", "factor": 4}}, Rope(1e4, "linear", 4.0)),
    "dynamic": ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, Rope()),
    "llama3": (
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
        Rope(5e5, "llama3", 8.0, original_context=64),
    ),
    "new form": (
        {"rope_theta": 1.5, "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5} | LLAMA3},
        Rope(5e5, "llama3", 8.0, original_context=64),
    ),
    "new form, default": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, Rope(1e6),
    ),
    "yarn": (
        {"rope_theta": 5e5, "rope_scaling": {
            "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
        YARN,
    ),
    "yarn without a factor": (
        {"rope_theta": 5e5, "rope_scaling": {
            "rope_type": "yarn", "original_max_position_embeddings": 64}},
        YARN,
    ),
    "yarn in full": (
        {"rope_scaling": {
            "rope_type": "yarn", "factor": 2.0, "beta_fast": 16, "beta_slow": 2,
            "attention_factor": 0.8, "original_max_position_embeddings": 128}},
        Rope(1e4, "yarn", 2.0, original_context=128, beta_fast=16.0, beta_slow=2.0,
             attention_factor=0.8),
    ),
    "yarn with mscale": (
        {"rope_scaling": {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0,
                          "mscale_all_dim": 0.5, "original_max_position_embeddings": 128}},
        Rope(1e4, "yarn", 40.0, original_context=128,
             attention_factor=(0.1 * math.log(40) + 1) / (0.05 * math.log(40) + 1)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ROPES)
def test_rope_of_config_json(case: str):
    fields, rope = ROPES[case]
    assert config_of(**fields).rope == rope


REFUSED_ROPES: dict[str, tuple[dict[str, object], str]] = {
    "unknown": ({"rope_scaling": {"type": "spiral", "factor": 2}}, "'spiral' is not"),
    "longrope without factors": ({"rope_scaling": {"type": "longrope"}}, "short_factor has 0"),
    "partial": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    "partial, new form": ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary"),
    "by layer": ({"rope_parameters": {"full_attention": {"rope_theta": 1}}}, "between layers"),
    "no factor": ({"rope_scaling": {"type": "linear"}}, "rope_scaling: factor is missing"),
    "factor 0": ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor is 0"),
    "theta 1": ({"rope_theta": 1}, "rope_theta is 1"),
    "wrong order": (
        {"rope_scaling": LLAMA3 | {"rope_type": "llama3", "low_freq_factor": 4.0}}, "low < high",
    ),
    "not truncated": ({"rope_scaling": {"type": "yarn", "truncate": False}}, "truncate"),
    "beta": ({"rope_scaling": {"type": "yarn", "factor": 2, "beta_slow": 0}}, "beta_slow is 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED_ROPES)
def test_rope_that_is_refused(case: str):
    fields, words = REFUSED_ROPES[case]
    with pytest.raises(CheckpointError, match=words):
        config_of(**fields)


def test_absent_fields_mean_what_transformers_takes_them_to_mean():
    config = config_of(
        "head_dim", "num_key_value_heads", "rms_norm_eps", "rope_theta", "tie_word_embeddings",
        "attention_bias", "mlp_bias", "sliding_window", "max_position_embeddings",
    )  # fmt: skip
    assert (config.head_dim, config.kv_heads, config.max_context) == (16, 4, 2048)
    assert (config.norm_eps, config.rope.theta, config.tied) == (1e-6, 1e4, False)
    assert (config.qkv_bias, config.out_bias, config.ffn_bias) == (False, False, False)
    assert config.window is None
    qwen3 = config_of("head_dim", architectures=["Qwen3ForCausalLM"])
    assert (qwen3.head_dim, qwen3.qk_norm, qwen3.qkv_bias) == (128, True, False)
    qwen2 = config_of("attention_bias", architectures=["Qwen2ForCausalLM"])
    assert (qwen2.qkv_bias, qwen2.out_bias) == (True, False)
    mistral = config_of(
        "num_key_value_heads", "sliding_window", architectures=["MistralForCausalLM"],
        num_attention_heads=16,
    )  # fmt: skip
    assert (mistral.kv_heads, mistral.window) == (8, 4096)


def test_model_type_stands_in_for_architectures():
    assert config_of("architectures", model_type="qwen3").qk_norm
    with pytest.raises(UnsupportedModel, match="expected one of LlamaForCausalLM, Mistral"):
        config_of("architectures", model_type="gpt2")
    with pytest.raises(
        UnsupportedModel, match=r"'MambaForCausalLM' is not .* \(state space layers"
    ):
        config_of(architectures=["MambaForCausalLM"])


def test_quantized_and_foreign_models_are_refused():
    with pytest.raises(UnsupportedModel, match="quantized with 'exl2'"):
        config_of(quantization_config={"quant_method": "exl2", "bits": 4})
    with pytest.raises(UnsupportedModel, match="hidden_act is 'gelu'"):
        config_of(hidden_act="gelu")


def test_mistral_window():
    mistral = ["MistralForCausalLM"]
    assert config_of(architectures=mistral, sliding_window=12).window == 12
    assert config_of(architectures=mistral, sliding_window=None).window is None


def test_qwen_window_counts_only_where_it_is_asked_for():
    def window(**fields: object) -> int | None:
        return config_of(architectures=["Qwen2ForCausalLM"], sliding_window=12, **fields).window

    assert window() is None
    assert window(use_sliding_window=False, max_window_layers=0) is None
    assert window(use_sliding_window=True, max_window_layers=0) == 12
    assert window(use_sliding_window=True, max_window_layers=2) is None
    assert window(layer_types=["full_attention"] * 2) is None
    assert window(layer_types=["sliding_attention"] * 2) == 12
    with pytest.raises(BadHeader, match="layer_types has 1 values"):
        window(layer_types=["sliding_attention"])


def test_some_layers_may_have_the_window():
    qwen = {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 12, "num_hidden_layers": 4}
    late = config_of(**qwen, use_sliding_window=True, max_window_layers=3)
    assert [late.window_of(spec) for spec in late.specs] == [None, None, None, 12]
    kinds = ["full_attention", "sliding_attention"] * 2
    mixed = config_of(**qwen, layer_types=kinds)
    assert [mixed.window_of(spec) for spec in mixed.specs] == [None, 12, None, 12]
    assert len(mixed.pattern) == 2


GGUF_ROPES: dict[str, tuple[dict[str, object], Rope]] = {
    "plain": ({}, Rope()),
    "type none": ({"scaling.type": "none", "scaling.factor": 4.0}, Rope()),
    "linear": ({"scaling.type": "linear", "scaling.factor": 4.0}, Rope(1e4, "linear", 4.0)),
    "linear by default": ({"scaling.factor": 4.0}, Rope(1e4, "linear", 4.0)),
    "linear, old key": ({"scale_linear": 4.0}, Rope(1e4, "linear", 4.0)),
    "linear, factor 0": ({"scaling.type": "linear", "scaling.factor": 0.0}, Rope()),
    "yarn": (
        {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 64},
        Rope(1e4, "yarn", 4.0, original_context=64),
    ),
    "yarn in full": (
        {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.yarn_beta_fast": 16.0,
         "scaling.yarn_beta_slow": 2.0, "scaling.attn_factor": 0.5},
        Rope(1e4, "yarn", 4.0, original_context=256, beta_fast=16.0, beta_slow=2.0,
             attention_factor=0.5 * (0.1 * math.log(4) + 1)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", GGUF_ROPES)
def test_rope_of_a_gguf(tmp_path: Path, case: str):
    fields, rope = GGUF_ROPES[case]
    config = FAMILIES["llama2"]
    metadata = {f"llama.rope.{key}": value for key, value in fields.items()}
    write_gguf(tmp_path / "m.gguf", config, flatten(random_params(config)), metadata=metadata)
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        assert checkpoint.config.rope == rope


def test_rope_factors_are_stretched_by_a_linear_factor_too(tmp_path: Path):
    config = tiny(rope=Rope(kind="factors", factors=(1, 1, 2, 2, 4, 4, 8, 8)))
    write_gguf(
        tmp_path / "m.gguf",
        config,
        flatten(random_params(config)),
        metadata={"llama.rope.scaling.factor": 2.0},
    )
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        assert checkpoint.config.rope.factors == (2, 2, 4, 4, 8, 8, 16, 16)


def test_head_counts_may_come_as_equal_lists(tmp_path: Path):
    config = FAMILIES["llama3"]
    write_gguf(
        tmp_path / "m.gguf",
        config,
        flatten(random_params(config)),
        metadata={"llama.attention.head_count_kv": [config.kv_heads] * config.layers},
    )
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        assert checkpoint.config.kv_heads == config.kv_heads


def test_name_comes_from_the_file(tmp_path: Path):
    config = FAMILIES["llama2"]
    params = flatten(random_params(config))
    write_gguf(tmp_path / "m.gguf", config, params, metadata={"general.name": "Small One"})
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        assert checkpoint.config.name == "Small One"
    assert config_of().name == "c"
