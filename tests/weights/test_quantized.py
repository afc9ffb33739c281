"""GPTQ and AWQ folders: zeros, groups, orders and parts; what contradicts itself is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import outcome
from quantized_writer import Quantizer, change
from safetensors.numpy import load_file, save_file
from writers import flatten, write_hf

from jaxllama.config import EngineConfig, ModelConfig
from jaxllama.errors import BadTensors, CheckpointError, UnsupportedModel
from jaxllama.kernels.cpu import library
from jaxllama.kernels.packed import Packed
from jaxllama.model.params import abstract_params
from jaxllama.model.prepare import Preparation
from jaxllama.sharding import make_mesh
from jaxllama.testing import check_weights, random_params, tiny
from jaxllama.weights import open_checkpoint
from jaxllama.weights.base import fill
from jaxllama.weights.stored import unpacked
from tests.model.test_prepare import times

CONFIG = tiny(name="q", width=64, heads=2, kv_heads=2, head_dim=32, ffn_width=96, layers=1)
WEIGHTS = flatten(random_params(CONFIG))
UP = "blocks.0.ffn.up.weight"
DOWN = "blocks.0.ffn.down.weight"
THEIRS = "model.layers.0.mlp.up_proj"


def read(folder: Path, path: str = UP) -> Packed:
    with open_checkpoint(folder) as checkpoint:
        value = checkpoint.read(path, abstract_params(CONFIG)[path])
    assert isinstance(value, Packed)
    return value


def refusal(folder: Path) -> CheckpointError:
    error = outcome(folder)
    assert error is not None
    return error


def test_a_zero_may_be_one_more_than_the_largest_code(tmp_path: Path):
    folder, held = Quantizer(is_far=True).write(tmp_path, CONFIG, WEIGHTS)
    assert (load_file(folder / "model.safetensors")[f"{THEIRS}.qzeros"] & 15)[0, 0] == 15
    np.testing.assert_array_equal(unpacked(read(folder)).T, held[UP])


@pytest.mark.parametrize("sorts", [False, True])
def test_a_last_group_may_be_shorter(tmp_path: Path, sorts: bool):
    folder, held = Quantizer(group=64, sorts=sorts).write(tmp_path, CONFIG, WEIGHTS)
    value = read(folder, DOWN)  # 96 inputs
    assert (value.group, value.scales.shape) == (32, (64, 3))
    np.testing.assert_array_equal(unpacked(value).T, held[DOWN])
    check_weights(folder)


def test_an_order_that_changes_nothing_is_dropped(tmp_path: Path):
    folder, held = Quantizer().write(tmp_path, CONFIG, WEIGHTS)
    change(folder, g_idx=(np.arange(64) // 32).astype(np.int32))
    value = read(folder)
    assert value.order is None
    np.testing.assert_array_equal(unpacked(value).T, held[UP])


def test_symmetric_matrices_keep_half_precision_scales(tmp_path: Path):
    folder, _ = Quantizer(is_symmetric=True).write(tmp_path, CONFIG, WEIGHTS)
    assert read(folder).scales.dtype == read(folder).minima.dtype == np.float16
    folder, _ = Quantizer(bits=8, is_symmetric=True).write(tmp_path / "8", CONFIG, WEIGHTS)
    assert read(folder).minima is None
    folder, _ = Quantizer().write(tmp_path / "4", CONFIG, WEIGHTS)
    assert read(folder).scales.dtype == np.float32  # the products need more digits


BODIES = [
    EngineConfig(slots=2, context=64, dtype="float32", packed=True, kernels="xla"),
    pytest.param(
        EngineConfig(slots=2, context=64, kernels="cpu", dtype="stored"),
        marks=pytest.mark.skipif(not library.available(), reason=library.why_not()),
    ),
]
KINDS = {
    "gptq": Quantizer(is_symmetric=True),
    "gptq 8": Quantizer(bits=8),
    "sorted": Quantizer(sorts=True),
    "awq": Quantizer("awq"),
    "groups of 16": Quantizer(group=16),  # which the C++ kernels have no tiles for
}


@pytest.mark.origin("ExLlama: GPTQ with groups and act-order")
@pytest.mark.parametrize("engine", BODIES, ids=["xla", "cpu"])
@pytest.mark.parametrize("kind", KINDS)
def test_both_bodies_multiply_with_the_weights_of_the_file(
    tmp_path: Path, engine: EngineConfig, kind: str
):
    folder, held = KINDS[kind].write(tmp_path, CONFIG, WEIGHTS)
    leaves = abstract_params(CONFIG)
    preparation = Preparation(CONFIG, engine, make_mesh(engine, CONFIG))
    with open_checkpoint(folder) as checkpoint:
        fill(leaves, checkpoint, preparation.add)
    block = preparation.tree()["blocks"][0]
    x = np.random.default_rng(5).standard_normal((3, 96), dtype=np.float32)
    for part, names, width in (("attention", "qkv", 64), ("ffn", ["down"], 96)):
        found = times(block[part][names[0]]["weight"], x[:, :width])
        wanted = np.concatenate(
            [x[:, :width] @ held[f"blocks.0.{part}.{name}.weight"] for name in names], axis=1
        )[:, : found.shape[1]]
        assert np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()


I32, F16 = np.int32, np.float16
LIES: dict[str, tuple[Quantizer, dict[str, np.ndarray | None], str]] = {
    "no zeros": (Quantizer(), {"qzeros": None}, "up_proj.qzeros missing"),
    "no scales": (Quantizer("awq"), {"scales": None, "qzeros": None}, "qzeros and model"),
    "floats for codes": (Quantizer(), {"qweight": np.zeros((8, 96), F16)}, "F16 [8, 96]; expected"),
    "zeros for more outputs": (Quantizer(), {"qzeros": np.zeros((2, 24), I32)}, "bits for each"),
    "zeros of more groups": (Quantizer(), {"qzeros": np.zeros((4, 12), I32)}, "expected [2, 12]"),
    "scales of more groups": (
        Quantizer(), {"scales": np.ones((4, 96), F16), "qzeros": np.zeros((4, 12), I32)},
        "4 groups of 64 inputs; group_size 32 makes 2",
    ),
    "groups that do not divide": (
        Quantizer(says="none"),
        {"scales": np.ones((3, 96), F16), "qzeros": np.zeros((3, 12), I32)}, "do not divide",
    ),
    "codes of fewer inputs": (
        Quantizer(), {"qweight": np.zeros((4, 96), I32), "g_idx": None}, "makes 1",
    ),
    "an order for others": (Quantizer(), {"g_idx": np.zeros(32, I32)}, "expected [64]"),
    "a group too high": (Quantizer(), {"g_idx": np.full(64, 2, I32)}, "groups 2 to 2"),
    "a group too low": (Quantizer(), {"g_idx": np.full(64, -1, I32)}, "groups -1 to -1"),
    "unequal groups": (
        Quantizer(), {"g_idx": (np.arange(64) > 60).astype(I32)}, "start at multiples of 1;",
    ),
    "an order without groups": (
        Quantizer(group=-1), {"g_idx": (np.arange(64) // 32).astype(I32)}, "has only one group",
    ),
    "an order in AWQ": (Quantizer("awq"), {"g_idx": np.zeros(64, I32)}, "g_idx' has dtype I32"),
    "an empty matrix": (Quantizer(), {"scales": np.ones((0, 96), F16)}, "F16 [0, 96]; expected"),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_parts_that_contradict_each_other(tmp_path: Path, name: str):
    quantizer, changed, message = LIES[name]
    folder, _ = quantizer.write(tmp_path, CONFIG, WEIGHTS)
    held = load_file(folder / "model.safetensors")
    tensors = {part: value for part, value in changed.items() if f"{THEIRS}.{part}" in held}
    change(folder, **tensors)
    if name == "an order in AWQ":
        held[f"{THEIRS}.g_idx"] = np.zeros(64, I32)
        save_file(held, folder / "model.safetensors")
    error = refusal(folder)
    assert isinstance(error, UnsupportedModel if name == "an order in AWQ" else BadTensors)
    assert message in str(error)


STATED: dict[str, tuple[dict[str, Any], str]] = {
    "2 bits": ({"bits": 2}, "weights of 2 bits are not supported; expected 4 or 8"),
    "3 bits": ({"bits": 3}, "weights of 3 bits"),
    "marlin": ({"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'"),
    "older marlin": ({"is_marlin_format": True}, "'marlin'"),
    "exl2": ({"quant_method": "exl2"}, "quantized with 'exl2'"),
    "AWQ gemv": ({"quant_method": "awq", "version": "GEMV"}, "version is 'gemv'"),
    "AWQ 8 bits": ({"quant_method": "awq", "bits": 8}, "weights of 8 bits"),
}


@pytest.mark.parametrize("name", STATED)
@pytest.mark.parametrize("place", ["config", "file"])
def test_layouts_without_kernels_are_refused_by_name(tmp_path: Path, name: str, place: str):
    changed, message = STATED[name]
    quantizer = Quantizer(says=place)
    folder, _ = quantizer.write(tmp_path, CONFIG, WEIGHTS)
    file = folder / ("config.json" if place == "config" else "quantize_config.json")
    fields = json.loads(file.read_text())
    (fields["quantization_config"] if place == "config" else fields).update(changed)
    file.write_text(json.dumps(fields))
    error = refusal(folder)
    assert isinstance(error, UnsupportedModel)
    assert message in str(error)


@pytest.mark.parametrize(("name", "layout"), [("q_weight", "EXL2"), ("B", "Marlin")])
def test_foreign_tensors_are_refused_by_name(tmp_path: Path, name: str, layout: str):
    folder, _ = Quantizer(says="none").write(tmp_path, CONFIG, WEIGHTS)
    held = load_file(folder / "model.safetensors") | {f"{THEIRS}.{name}": np.zeros(8, I32)}
    save_file(held, folder / "model.safetensors")
    assert f"in the {layout} layout" in str(refusal(folder))


def test_three_bits_are_recognised_by_their_zeros(tmp_path: Path):
    folder, _ = Quantizer(says="none").write(tmp_path, CONFIG, WEIGHTS)
    change(folder, qzeros=np.zeros((2, 9), I32))
    assert "weights of 3 bits, which are not supported" in str(refusal(folder))


def test_biases_of_zeros_are_ignored_and_others_are_not(tmp_path: Path):
    folder, _ = Quantizer(biases=True).write(tmp_path, CONFIG, WEIGHTS)
    assert outcome(folder) is None
    change(folder, bias=np.ones(96, F16))
    assert "up_proj.bias is surplus" in str(refusal(folder))
    dense = write_hf(tmp_path / "dense", CONFIG, WEIGHTS)
    held = load_file(dense / "model.safetensors") | {f"{THEIRS}.bias": np.zeros(96, F16)}
    save_file(held, dense / "model.safetensors")
    assert "up_proj.bias is surplus" in str(refusal(dense))


def test_biases_of_the_model_are_read(tmp_path: Path):
    config: ModelConfig = dataclasses.replace(CONFIG, qkv_bias=True, out_bias=True, ffn_bias=True)
    weights = flatten(random_params(config))
    folder, held = Quantizer().write(tmp_path, config, weights)
    check_weights(folder, expected=held)
