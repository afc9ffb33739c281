"""PEFT folders: what they mean, and every way in which they do not fit."""

import contextlib
import dataclasses
import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from torch_writer import save_torch

from jaxllama.config import EngineConfig, Experts
from jaxllama.errors import BadTensors, CheckpointError, UnknownFormat, UnsupportedModel
from jaxllama.weights.lora import rank_of, read_adapter
from tests.adapter_writer import random_adapter, write_adapter
from tests.support import MODEL

ENGINE = EngineConfig(adapter_slots=1, adapter_rank=16)
Q = "base_model.model.model.layers.0.self_attn.q_proj"
DOWN = "base_model.model.model.layers.0.mlp.down_proj"


def test_matrices_lie_side_by_side_by_group_padded_with_zeros(tmp_path: Path):
    tensors = random_adapter(MODEL, rank=4)
    found = read_adapter(write_adapter(tmp_path, tensors), MODEL, ENGINE)
    group = found[0]["qkv"]
    assert group.a.shape == (MODEL.width, 3 * 16)
    a, b = tensors[f"{Q}.lora_A.weight"], tensors[f"{Q}.lora_B.weight"]
    np.testing.assert_array_equal(group.a[:, :4], a.T)
    np.testing.assert_array_equal(group.b[0][:4], 2 * b.T)
    assert not group.a[:, 4:16].any() and not group.b[0][4:].any()
    assert group.a[:, 16:20].any() and group.a[:, 32:36].any()
    assert list(found) == list(range(MODEL.layers))
    assert list(found[0]) == ["qkv", "o", "gate_up", "down"]


def test_layers_that_the_adapter_leaves_alone_get_zeros(tmp_path: Path):
    tensors = {name: each for name, each in random_adapter(MODEL).items() if ".layers.0." in name}
    found = read_adapter(write_adapter(tmp_path, tensors), MODEL, ENGINE)
    assert found[0]["down"].a.any()
    assert not found[1]["down"].a.any() and not found[1]["down"].b[0].any()


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"lora_alpha": 8}, 2), ({"lora_alpha": 1}, 0.25),
        ({"lora_alpha": 8, "use_rslora": True}, 4),
        ({"lora_alpha": 8, "alpha_pattern": {"q_proj": 2}}, 0.5),
        ({"lora_alpha": 8, "alpha_pattern": {"layers.0.self_attn.q_proj": 2}}, 0.5),
        ({"lora_alpha": 8, "alpha_pattern": {"k_proj": 2}}, 2),
        ({"lora_alpha": 8, "r": 2, "rank_pattern": {"q_proj": 4, "k_proj": 4, "v_proj": 4,
          "o_proj": 4, "gate_proj": 4, "up_proj": 4, "down_proj": 4}}, 2),
    ],
)  # fmt: skip
def test_the_scale_follows_from_alpha_and_rank(tmp_path: Path, settings: dict, scale: float):
    tensors = random_adapter(MODEL, rank=4)
    folder = write_adapter(tmp_path, tensors, **settings)
    found = read_adapter(folder, MODEL, ENGINE)[0]["qkv"].b[0][:4]
    np.testing.assert_allclose(found, scale * tensors[f"{Q}.lora_B.weight"].T, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_types_names_and_files_of_all_kinds_read_the_same(tmp_path: Path, dtype: type):
    tensors = {name: each.astype(dtype) for name, each in random_adapter(MODEL).items()}
    first = read_adapter(write_adapter(tmp_path / "one", tensors), MODEL, ENGINE)
    named = {name.replace(".weight", ".default.weight"): each for name, each in tensors.items()}
    second = read_adapter(write_adapter(tmp_path / "two", named), MODEL, ENGINE)
    folder = write_adapter(tmp_path / "three", tensors)
    (folder / "adapter_model.safetensors").unlink()
    save_torch(folder / "adapter_model.bin", tensors)
    third = read_adapter(folder, MODEL, ENGINE)
    for other in (second, third):
        for index, groups in first.items():
            for name, group in groups.items():
                np.testing.assert_array_equal(group.a, other[index][name].a)
                np.testing.assert_array_equal(group.b[0], other[index][name].b[0])


def test_the_highest_rank_counts(tmp_path: Path):
    folder = write_adapter(tmp_path, random_adapter(MODEL), rank_pattern={"q_proj": 32})
    assert rank_of(folder) == 32
    with pytest.raises(
        UnsupportedModel, match=r"has rank 32; this engine takes at most 16 .*--lora-rank 32"
    ):
        read_adapter(folder, MODEL, ENGINE)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; expected LORA"),
        ({"use_dora": True}, "use_dora True; expected False"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out True"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"layer_replication": [[0, 4]]}, "layer_replication"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the model's own weights"),
        ({"init_lora_weights": "olora"}, "changes the model's own weights"),
        ({"rank_pattern": {".*_proj": 4}}, "patterns are not supported"),
    ],
)
def test_other_kinds_of_adapters_are_refused_by_name(tmp_path: Path, settings: dict, words: str):
    folder = write_adapter(tmp_path, random_adapter(MODEL), **settings)
    with pytest.raises(UnsupportedModel, match=words):
        read_adapter(folder, MODEL, ENGINE)


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 0}, {"r": -1}, {"r": "4"}, {"r": 1 << 40}, {"lora_alpha": None},
        {"lora_alpha": math.nan}, {"lora_alpha": "x"}, {"rank_pattern": [1]},
        {"rank_pattern": {"q_proj": 0}}, {"rank_pattern": {"q_proj": 1.5}},
        {"alpha_pattern": {"q_proj": True}}, {"alpha_pattern": {"q_proj": 1e400}},
    ],
)  # fmt: skip
def test_wrong_numbers_are_refused(tmp_path: Path, settings: dict):
    folder = write_adapter(tmp_path, random_adapter(MODEL), **settings)
    with pytest.raises(CheckpointError):
        read_adapter(folder, MODEL, ENGINE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t | {"base_model.model.lm_head.lora_A.weight": t[f"{Q}.lora_A.weight"]},
         "lm_head.lora_A.weight changes nothing that this model has"),
        (lambda t: t | {f"{Q}kv.lora_A.weight": t[f"{Q}.lora_A.weight"]}, "changes nothing"),
        (lambda t: t | {Q.replace(".0.", ".99.") + ".lora_A.weight": t[f"{Q}.lora_A.weight"]},
         "changes nothing"),
        (lambda t: {n: v for n, v in t.items() if n != f"{Q}.lora_B.weight"},
         "lora_A.weight comes without the other matrix"),
        (lambda t: t | {f"{Q}.lora_A.weight": t[f"{Q}.lora_A.weight"][:3]}, "has shape .3, "),
        (lambda t: t | {f"{DOWN}.lora_B.weight": t[f"{DOWN}.lora_B.weight"][1:]}, "has shape"),
        (lambda t: t | {f"{Q}.lora_A.weight": t[f"{Q}.lora_A.weight"].astype(np.int32)},
         "has type I32"),
        (lambda t: t | {f"{Q}.lora_A.weight": t[f"{Q}.lora_A.weight"] * np.nan}, "not finite"),
        (lambda t: t | {f"{Q}.lora_B.weight": t[f"{Q}.lora_B.weight"] * 1e6}, "above 65504"),
        (lambda t: t | {f"{Q}.bias": np.ones(8, np.float32)}, "q_proj.bias changes nothing"),
        (lambda _: {}, "it has no lora_A and lora_B tensors"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_listed(tmp_path: Path, change, words: str):
    folder = write_adapter(tmp_path, change(random_adapter(MODEL)))
    with pytest.raises(BadTensors, match=words):
        read_adapter(folder, MODEL, ENGINE)


def test_all_problems_are_told_at_once(tmp_path: Path):
    tensors = random_adapter(MODEL)
    del tensors[f"{Q}.lora_A.weight"]
    tensors[f"{DOWN}.lora_A.weight"] = np.ones((4, 3), np.float32)
    with pytest.raises(BadTensors) as caught:
        read_adapter(write_adapter(tmp_path, tensors), MODEL, ENGINE)
    assert "without the other matrix" in str(caught.value) and "has shape" in str(caught.value)


def test_a_bias_of_zeros_is_left_out(tmp_path: Path):
    tensors = random_adapter(MODEL) | {f"{Q}.bias": np.full(8, 1e-7, np.float32)}
    assert read_adapter(write_adapter(tmp_path, tensors), MODEL, ENGINE)


def test_experts_cannot_be_adapted(tmp_path: Path):
    model = dataclasses.replace(MODEL, experts=Experts(4, 2, 32))
    with pytest.raises(BadTensors, match=r"down_proj\.lora_A\.weight changes nothing"):
        read_adapter(write_adapter(tmp_path, random_adapter(MODEL)), model, ENGINE)
    targets = ("q", "k", "v", "o")
    folder = write_adapter(tmp_path / "fits", random_adapter(MODEL, targets=targets))
    assert list(read_adapter(folder, model, ENGINE)[0]) == ["qkv", "o"]


def test_what_is_no_adapter_is_refused(tmp_path: Path):
    with pytest.raises(UnknownFormat, match="is no adapter; expected a folder"):
        read_adapter(tmp_path, MODEL, ENGINE)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UnknownFormat, match="has no tensors"):
        read_adapter(tmp_path, MODEL, ENGINE)


def test_thousands_of_damaged_files_are_refused_or_read(tmp_path: Path):
    """One declared error class, whatever was changed in the file or its settings."""
    folder, rng = (
        write_adapter(tmp_path, random_adapter(MODEL, targets=("q",))),
        np.random.default_rng(0),
    )
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        whole = (folder / name).read_bytes()
        for _ in range(1000):
            raw = bytearray(whole)
            head = min(len(raw), 1500)
            for _ in range(rng.integers(1, 4)):
                raw[rng.integers(head)] = rng.integers(256)
            if rng.random() < 0.2:
                raw = raw[: rng.integers(len(raw))]
            (folder / name).write_bytes(raw)
            with contextlib.suppress(CheckpointError):
                read_adapter(folder, MODEL, ENGINE)
        (folder / name).write_bytes(whole)
    assert read_adapter(folder, MODEL, ENGINE)


def test_a_pickle_that_calls_is_refused(tmp_path: Path):
    folder = write_adapter(tmp_path, random_adapter(MODEL))
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    with pytest.raises(CheckpointError):
        read_adapter(folder, MODEL, ENGINE)
