"""Float8 weights: each way of scaling gives what the file stands for; wrong scales are refused."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hf_writer import save_safetensors, write_float8
from hostile import outcome
from trees import assert_same, random_weights, read_all
from writers import hf_config, hf_tensors

from jaxllama.errors import BadTensors, CheckpointError, UnsupportedModel
from jaxllama.testing import tiny
from jaxllama.weights import open_checkpoint

# Sizes that blocks of 24 and 16 do not divide.
MODEL = tiny(name="m", vocab_size=64, width=32, heads=2, kv_heads=1, ffn_width=40, layers=1)
PARAMS = random_weights(MODEL)
METHODS = {
    "block": None,
    "row": {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0},
    "tensor": {"quant_method": "compressed-tensors", "format": "float-quantized"},
}


def refusal(folder: Path) -> CheckpointError:
    error = outcome(folder)
    assert error is not None
    return error


@pytest.mark.parametrize("scaling", METHODS)
@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_values_times_scales(tmp_path: Path, scaling: str, dtype: str):
    folder, expected = write_float8(
        tmp_path, MODEL, PARAMS, dtype=dtype, scaling=scaling, quantization=METHODS[scaling]
    )
    with open_checkpoint(folder) as it:
        assert_same(read_all(it), expected)
        name = "model.layers.0.mlp.down_proj.weight"
        assert it.kinds[name] == (dtype, MODEL.width * MODEL.ffn_width)
        part = it.read_part(name, (slice(20, 29), slice(10, 37)))
        np.testing.assert_array_equal(part, it.read_stored(name)[20:29, 10:37])
    off = max(np.abs(expected[path] - PARAMS[path]).max() for path in PARAMS)
    assert 0 < off < (0.2 if dtype == "F8_E4M3" else 0.4)


def test_float8_without_scales_is_widened(tmp_path: Path):
    folder, _ = write_float8(tmp_path, MODEL, PARAMS)
    tensors = hf_tensors(PARAMS)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].astype(ml_dtypes.float8_e4m3fn)
    save_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(hf_config(MODEL)))
    with open_checkpoint(folder) as it:
        np.testing.assert_array_equal(it.read_stored(name), tensors[name].astype(np.float32))


@pytest.mark.parametrize("shape", [(2,), (31, 1), (1, 2), (1, 3), (3, 2, 1), (0,), (40, 32)])
def test_scales_of_another_shape_are_refused(tmp_path: Path, shape: tuple[int, ...]):
    folder, _ = write_float8(tmp_path, MODEL, PARAMS)
    tensors = hf_tensors(PARAMS)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].astype(ml_dtypes.float8_e4m3fn)
    tensors[f"{name}_scale_inv"] = np.ones(shape, np.float32)
    save_safetensors(folder / "model.safetensors", tensors)
    error = refusal(folder)
    assert isinstance(error, BadTensors)
    assert f"have shape {list(shape)}; expected one, one for each row, or [2, 2]" in str(error)


@pytest.mark.parametrize("size", [[128], [0, 1], [-1, 128], ["a", "b"], [128, 128, 128], [1.5, 2]])
def test_wrong_block_sizes_are_refused(tmp_path: Path, size: list):
    method = {"quant_method": "fp8", "weight_block_size": size}
    folder, _ = write_float8(tmp_path, MODEL, PARAMS, quantization=method)
    assert isinstance(refusal(folder), UnsupportedModel)


@pytest.mark.parametrize(
    "method",
    [
        {"quant_method": "bitsandbytes"}, {"quant_method": "exl2"}, {}, {"quant_method": "hqq"},
        {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    ],
)  # fmt: skip
def test_other_methods_are_refused(tmp_path: Path, method: dict):
    folder, _ = write_float8(tmp_path, MODEL, PARAMS, quantization=method | {"x": 1})
    error = refusal(folder)
    assert isinstance(error, UnsupportedModel)
    assert "weights are quantized with" in str(error)


def test_scales_of_a_matrix_that_is_not_float8_are_surplus(tmp_path: Path):
    folder, _ = write_float8(tmp_path, MODEL, PARAMS)
    tensors = hf_tensors(PARAMS)
    tensors["model.layers.0.mlp.up_proj.weight_scale"] = np.ones((), np.float32)
    save_safetensors(folder / "model.safetensors", tensors)
    assert "model.layers.0.mlp.up_proj.weight_scale is surplus" in str(refusal(folder))


def test_as_many_blocks_as_rows_are_blocks(tmp_path: Path):
    """Four rows and four blocks along a row: the shape of the scales tells which they are."""
    model = tiny(name="m", vocab_size=64, width=32, heads=2, kv_heads=1, ffn_width=4, layers=1)
    folder, expected = write_float8(tmp_path, model, random_weights(model), block=(4, 8))
    with open_checkpoint(folder) as it:
        assert_same(read_all(it), expected)
