"""Meta's folders: every generation, shard count, form and type give the canonical tree."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch_writer as writer
from hostile import outcome
from meta_writer import cut, meta_params, meta_tensors, write_meta
from trees import assert_same, random_weights, read_all

from jaxllama.config import Rope
from jaxllama.errors import BadHeader, BadTensors, CheckpointError, UnsupportedModel
from jaxllama.testing import FAMILIES, tiny
from jaxllama.weights import open_checkpoint
from jaxllama.weights.fields import CheckedFields
from jaxllama.weights.meta_config import read_ffn_width, read_rope

GENERATIONS = {
    name: FAMILIES[name] for name in ("llama1", "llama2", "llama3", "tinyllama", "smollm2")
}
SMALL = tiny(name="small", vocab_size=64, width=32, heads=4, kv_heads=2, head_dim=8, ffn_width=32,
             layers=1)  # fmt: skip


def refusal(folder: Path) -> CheckpointError:
    error = outcome(folder)
    assert error is not None
    return error


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("form", ["zip", "deflated", "folder"])
def test_one_shard(tmp_path: Path, generation: str, form: str):
    config = GENERATIONS[generation]
    params = random_weights(config)
    with open_checkpoint(write_meta(tmp_path, config, params, form=form)) as it:
        assert_same(read_all(it), params)
        for name in ("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "ffn_width"):
            assert getattr(it.config, name) == getattr(config, name), name
        assert (it.config.norm_eps, it.config.rope) == (config.norm_eps, config.rope)
        assert it.config.tied == config.tied


@pytest.mark.origin("RLLaMA: Meta's checkpoints in shards, zipped or unpacked")
@pytest.mark.parametrize("shards", [2, 4])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("form", ["zip", "folder"])
def test_shards_are_joined_along_the_axis_of_each_tensor(
    tmp_path: Path, shards: int, axis: int, form: str
):
    config = tiny(name="wide", kv_heads=4)
    params = random_weights(config)
    write_meta(tmp_path, config, params, shards=shards, embedding_axis=axis, form=form)
    with open_checkpoint(tmp_path) as it:
        assert_same(read_all(it), params)
        assert f"{shards - 1}/layers.0.attention.wq.weight" in it.shapes
        part = it.read_part("1/layers.0.attention.wq.weight", (slice(2, 9), slice(1, 7)))
        whole = it.read_stored("1/layers.0.attention.wq.weight")
        np.testing.assert_array_equal(part, whole[2:9, 1:7])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_floats_keep_the_precision_of_the_file(tmp_path: Path, dtype: str):
    params = random_weights(SMALL, dtype)
    with open_checkpoint(write_meta(tmp_path, SMALL, params, dtype=dtype)) as it:
        found = read_all(it)
        assert {kind for kind, _ in it.kinds.values()} == {
            {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]
        }
    assert_same(found, params)
    matrices = [value for value in found.values() if len(value.shape) == 2]
    assert {str(value.dtype) for value in matrices} == {dtype}


def test_vocabulary_of_minus_one_is_that_of_the_embedding(tmp_path: Path):
    for axis in (0, 1):
        folder = tmp_path / str(axis)
        params = random_weights(SMALL)
        extra = {"vocab_size": -1}
        write_meta(folder, SMALL, params, shards=2, embedding_axis=axis, extra=extra)
        with open_checkpoint(folder) as it:
            assert it.config.vocab_size == SMALL.vocab_size


def test_a_head_that_repeats_the_embedding_is_tied(tmp_path: Path):
    config = tiny(name="m", tied=True)
    params = random_weights(config)
    tensors = meta_tensors(config, params)
    write_meta(tmp_path, config, params)
    tensors["output.weight"] = tensors["tok_embeddings.weight"]
    writer.save_torch(tmp_path / "consolidated.00.pth", tensors)
    with open_checkpoint(tmp_path) as it:
        assert it.config.tied
        assert_same(read_all(it), params)


@pytest.mark.parametrize("name", ["consolidated", "consolidated.pth"])
def test_a_single_shard_without_a_number(tmp_path: Path, name: str):
    params = random_weights(SMALL)
    form = "zip" if name.endswith(".pth") else "folder"
    write_meta(tmp_path, SMALL, params, form=form)
    next(path for path in tmp_path.iterdir() if path.name.startswith("cons")).rename(
        tmp_path / name
    )
    with open_checkpoint(tmp_path) as it:
        assert_same(read_all(it), params)


def config_of(tmp_path: Path, **fields: object):
    """The configuration of a small model whose params.json has some fields changed."""
    params = random_weights(SMALL)
    folder = write_meta(tmp_path / "model", SMALL, params)
    stated = {key: value for key, value in (meta_params(SMALL) | fields).items() if value != ""}
    (folder / "params.json").write_text(json.dumps(stated))
    with open_checkpoint(folder) as it:
        return it.config


# dim, multiple_of, factor and the feed-forward of the published models.
PUBLISHED = {
    "7B": (4096, 256, None, 11008), "13B": (5120, 256, None, 13824),
    "65B": (8192, 256, None, 22016), "llama2 70B": (8192, 4096, 1.3, 28672),
    "llama3 8B": (4096, 1024, 1.3, 14336), "llama3 70B": (8192, 4096, 1.3, 28672),
    "llama3.1 405B": (16384, 4096, 1.2, 53248), "llama3.2 1B": (2048, 256, 1.5, 8192),
    "llama3.2 3B": (3072, 256, 1.0, 8192),
}  # fmt: skip


@pytest.mark.parametrize("model", PUBLISHED)
def test_the_feed_forward_of_published_models(model: str):
    width, multiple, factor, expected = PUBLISHED[model]
    fields = CheckedFields({"multiple_of": multiple, "ffn_dim_multiplier": factor}, "params.json")
    assert read_ffn_width(fields, width, {}, 1) == expected


def test_the_feed_forward_without_a_rule_is_that_of_the_tensors(tmp_path: Path):
    assert config_of(tmp_path, multiple_of="").ffn_width == SMALL.ffn_width
    assert config_of(tmp_path, multiple_of="", hidden_dim=32).ffn_width == 32


def test_a_window_and_a_head_size_are_read_where_they_are_stated(tmp_path: Path):
    config = config_of(tmp_path, sliding_window=12, head_dim=8)
    assert (config.window, config.head_dim) == (12, 8)


@pytest.mark.parametrize(
    ("fields", "context"),
    [
        ({"norm_eps": 1e-6}, 2048),
        ({}, 4096),
        ({"rope_theta": 1e6}, 16384),
        ({"rope_theta": 5e5}, 8192),
        ({"rope_theta": 5e5, "use_scaled_rope": True}, 131072),
        ({"max_seq_len": 512}, 512),
    ],
)
def test_the_context_of_each_generation(tmp_path: Path, fields: dict, context: int):
    assert config_of(tmp_path, **fields).max_context == context


def test_scaled_rope_has_the_factor_of_the_model():
    def rope(width: int, **more: object) -> Rope:
        values = {"rope_theta": 500000.0, "use_scaled_rope": True} | more
        return read_rope(CheckedFields(values, "params.json"), width)

    assert rope(4096) == Rope(500000.0, "llama3", 8.0, original_context=8192)
    assert rope(2048).factor == rope(3072).factor == 32.0
    assert rope(2048, rope_scaling_factor=16).factor == 16.0
    assert rope(2048, use_scaled_rope=False) == Rope(500000.0)


def test_names_of_the_other_kind_are_read_too(tmp_path: Path):
    params = random_weights(SMALL)
    folder = write_meta(tmp_path, SMALL, params)
    stated = meta_params(SMALL)
    for ours, theirs in (
        ("dim", "hidden_size"), ("n_heads", "num_attention_heads"),
        ("n_layers", "num_hidden_layers"), ("norm_eps", "rms_norm_eps"),
    ):  # fmt: skip
        stated[theirs] = stated.pop(ours)
    (folder / "params.json").write_text(json.dumps(stated))
    assert outcome(folder) is None


@pytest.mark.parametrize(
    "key",
    ["quantization_args", "lora_args", "moe", "moe_args", "vision_num_layers", "vision_chunk_size"],
)
def test_models_that_are_more_than_a_llama_are_named(tmp_path: Path, key: str):
    write_meta(tmp_path, SMALL, random_weights(SMALL), extra={key: {"a": 1}})
    error = refusal(tmp_path)
    assert isinstance(error, UnsupportedModel)
    assert key in str(error)


WRONG = ["text", [], {}, -7, 0, 1.5, 10**30, 1e300, True, float("inf"), float("nan"), None]


@pytest.mark.parametrize(
    "field",
    [*meta_params(SMALL), "use_scaled_rope", "head_dim", "max_seq_len"],
)
def test_wrong_values_in_params(tmp_path: Path, field: str):
    folder = write_meta(tmp_path, SMALL, random_weights(SMALL))
    refused = 0
    for value in WRONG:
        (folder / "params.json").write_text(json.dumps(meta_params(SMALL) | {field: value}))
        error = outcome(folder)
        refused += error is not None
        assert error is None or "params.json" in str(error) or "tensors" in str(error)
    assert refused >= 5


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", "[" * 100_000, '{"a":1,"a":2}'])
def test_corrupt_params(tmp_path: Path, text: str):
    folder = write_meta(tmp_path, SMALL, random_weights(SMALL))
    (folder / "params.json").write_text(text)
    assert "params.json" in str(refusal(folder))


def test_missing_and_twofold_shards_are_named(tmp_path: Path):
    params = random_weights(SMALL)
    write_meta(tmp_path, SMALL, params, shards=4)
    (tmp_path / "consolidated.01.pth").rename(tmp_path / "aside")
    assert "but not consolidated.01 (download them too)" in str(refusal(tmp_path))
    (tmp_path / "aside").rename(tmp_path / "consolidated.01")  # a file where a folder is expected
    assert "but not consolidated.01" in str(refusal(tmp_path))
    (tmp_path / "consolidated.01").rename(tmp_path / "consolidated.01.pth")
    write_meta(tmp_path / "other", SMALL, params, form="folder")
    (tmp_path / "other/consolidated.00").rename(tmp_path / "consolidated.00")
    assert "shard 0 twice, as consolidated.00 and as consolidated.00.pth" in str(refusal(tmp_path))


def test_a_last_shard_that_is_missing_shows_in_the_shapes(tmp_path: Path):
    write_meta(tmp_path, SMALL, random_weights(SMALL), shards=2)
    (tmp_path / "consolidated.01.pth").unlink()
    error = refusal(tmp_path)
    assert isinstance(error, BadTensors)
    assert "layers.0.attention.wq.weight has shape [16, 32], expected [32, 32]" in str(error)


def test_shards_that_differ_are_listed(tmp_path: Path):
    params = random_weights(SMALL)
    write_meta(tmp_path, SMALL, params, shards=2)
    tensors = cut(meta_tensors(SMALL, params), 1, 2)
    del tensors["norm.weight"]
    tensors["extra.weight"] = np.zeros(3, np.float32)
    tensors["layers.0.attention.wo.weight"] = np.zeros((32, 8), np.float32)
    writer.save_torch(tmp_path / "consolidated.01.pth", tensors)
    message = str(refusal(tmp_path))
    assert "3 tensors do not fit" in message
    assert "1/norm.weight is missing" in message
    assert "1/extra.weight is surplus" in message
    assert "1/layers.0.attention.wo.weight has shape [32, 8], expected [32, 16]" in message


def test_a_tensor_of_another_type_is_named(tmp_path: Path):
    params = random_weights(SMALL)
    write_meta(tmp_path, SMALL, params)
    tensors = meta_tensors(SMALL, params)
    tensors["norm.weight"] = tensors["norm.weight"].astype(np.int8)
    writer.save_torch(tmp_path / "consolidated.00.pth", tensors)
    error = refusal(tmp_path)
    assert isinstance(error, UnsupportedModel)
    assert "'norm.weight' has dtype I8" in str(error)


def test_a_shard_that_is_no_checkpoint(tmp_path: Path):
    write_meta(tmp_path, SMALL, random_weights(SMALL))
    (tmp_path / "consolidated.00.pth").write_bytes(b"version https://git-lfs\n")
    assert isinstance(refusal(tmp_path), BadHeader)
