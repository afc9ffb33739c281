"""Float8 weights: each way of scaling gives what the file stands for; wrong scales are refused.

The matrices stay float8 until the C++ body or a writer of files expands them.
"""

import dataclasses
import json
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest
from hf_writer import save_safetensors, write_float8
from hostile import outcome
from trees import assert_same, random_weights, read_all
from writers import hf_config, hf_tensors, write_tokenizer_json

from jaxllama.errors import BadTensors, CheckpointError, UnsupportedModel
from jaxllama.kernels.packed import Packed
from jaxllama.testing import tiny
from jaxllama.weights import open_checkpoint
from jaxllama.weights.convert import Recipe, convert
from jaxllama.weights.gguf_writer import Kind, encode
from jaxllama.weights.stored import unpacked

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
        whole = it.read_stored(name)
        assert isinstance(whole, Packed)
        assert whole.is_float8 and whole.scales.dtype == np.float32 and whole.group == 8
        part = it.read_part(name, (slice(20, 29), slice(8, 32)))
        np.testing.assert_array_equal(unpacked(part), unpacked(whole)[20:29, 8:32])
        with pytest.raises(ValueError, match=r"inputs 10 to 40 .* multiples of 8"):
            it.read_part(name, (slice(20, 29), slice(10, 40)))
    off = max(np.abs(expected[path] - PARAMS[path]).max() for path in PARAMS)
    assert 0 < off < (0.2 if dtype == "F8_E4M3" else 0.4)


def test_float8_without_scales_has_the_scale_one(tmp_path: Path):
    folder, _ = write_float8(tmp_path, MODEL, PARAMS)
    tensors = hf_tensors(PARAMS)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].astype(ml_dtypes.float8_e4m3fn)
    save_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(hf_config(MODEL)))
    with open_checkpoint(folder) as it:
        found = it.read_stored(name)
        assert isinstance(found, Packed) and (found.scales == 1).all()
        np.testing.assert_array_equal(unpacked(found), tensors[name].astype(np.float32))


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
        found = read_all(it)
        assert_same(found, expected)
        # Groups of four inputs would make the scales as large as the weights: it is expanded.
        assert isinstance(found["blocks.0.ffn.down.weight"], np.ndarray)
        assert isinstance(found["blocks.0.ffn.up.weight"], Packed)


def test_damaged_numbers_are_expanded_without_a_word(tmp_path: Path):
    """The engine tells of what is not a number when it draws a token."""
    folder, _ = write_float8(tmp_path, MODEL, PARAMS, dtype="F8_E5M2")
    tensors = hf_tensors(PARAMS)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].astype(ml_dtypes.float8_e5m2)
    tensors[name][3, :3] = (np.nan, np.inf, 57344)
    tensors[f"{name}_scale"] = np.full((40, 1), 3e38, np.float32)
    tensors[f"{name}_scale"][4] = np.nan
    save_safetensors(folder / "model.safetensors", tensors)
    with open_checkpoint(folder) as it:
        rows = unpacked(it.read_stored(name))
    assert np.isnan(rows[3, 0]) and (rows[3, 1:3] == np.inf).all() and np.isnan(rows[4]).all()


def test_q8_0_and_our_own_checkpoints_hold_expanded_weights(tmp_path: Path):
    """Both keep integers in eight bits, which float8 numbers must not be taken for."""
    model = tiny(name="m", width=64, heads=2, kv_heads=1, ffn_width=64, layers=1)
    folder, expected = write_float8(tmp_path / "m", model, random_weights(model), block=(64, 64))
    name, path = "model.layers.0.mlp.up_proj.weight", "blocks.0.ffn.up.weight"
    with open_checkpoint(folder) as it:
        matrix = it.read_stored(name)
    assert isinstance(matrix, Packed)
    matrix = dataclasses.replace(matrix, scales=np.ones_like(matrix.scales))  # exact in float16
    blocks = encode(name, matrix, Kind.Q8_0)
    np.testing.assert_array_equal(blocks, gguf.quantize(unpacked(matrix), Kind.Q8_0))
    write_tokenizer_json(folder, model.vocab_size)
    convert(folder, tmp_path / "native", Recipe(), progress=lambda *_: None)
    with open_checkpoint(tmp_path / "native") as it:
        np.testing.assert_array_equal(it.read_stored(path), expected[path])
