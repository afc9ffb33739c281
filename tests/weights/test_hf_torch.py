"""Hugging Face folders with pytorch_model.bin: the same tree, and only where it is all there is."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch_writer as writer
from hf_writer import write_hf_torch
from hostile import outcome
from trees import assert_same, random_weights, read_all
from writers import hf_tensors, write_hf

from jaxllama.errors import BadHeader, BadTensors, CheckpointError, UnsupportedModel
from jaxllama.testing import FAMILIES, tiny
from jaxllama.weights import open_checkpoint

SMALL = tiny(name="small", vocab_size=64, width=32, heads=2, kv_heads=1, ffn_width=32, layers=1)
PARAMS = random_weights(SMALL)
INDEX = "pytorch_model.bin.index.json"


def refusal(folder: Path) -> CheckpointError:
    error = outcome(folder)
    assert error is not None
    return error


@pytest.mark.origin("RLLaMA: Hugging Face folders of .bin files")
@pytest.mark.parametrize("family", ["llama2", "llama3", "smollm2", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("shards", [1, 3])
def test_the_canonical_tree(tmp_path: Path, family: str, shards: int):
    config = FAMILIES[family]
    params = random_weights(config)
    write_hf_torch(tmp_path, config, params, shards=shards, deflate=shards == 1)
    with open_checkpoint(tmp_path) as it:
        assert_same(read_all(it), params)
        assert {kind for kind, _ in it.kinds.values()} == {"F32"}


def test_parts_are_read_alone(tmp_path: Path):
    write_hf_torch(tmp_path, SMALL, PARAMS)
    with open_checkpoint(tmp_path) as it:
        name = "model.layers.0.mlp.down_proj.weight"
        part = it.read_part(name, (slice(3, 9), slice(4, 20)))
        np.testing.assert_array_equal(part, it.read_stored(name)[3:9, 4:20])


def test_safetensors_come_first(tmp_path: Path):
    write_hf_torch(tmp_path, SMALL, {path: value * 2 for path, value in PARAMS.items()})
    write_hf(tmp_path, SMALL, PARAMS)
    with open_checkpoint(tmp_path) as it:
        assert_same(read_all(it), PARAMS)


class Runs:
    """Pickles to a call that writes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.canary), "w")


def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path: Path):
    write_hf_torch(tmp_path, SMALL, PARAMS)
    for protocol in (2, 4):
        raw = pickle.dumps({"a": Runs(tmp_path / "canary")}, protocol)
        writer.write_zip(tmp_path / "pytorch_model.bin", {"data.pkl": raw})
        assert "open', which is not among the allowed names" in str(refusal(tmp_path))
        (tmp_path / "pytorch_model.bin").write_bytes(raw)
        assert "no torch checkpoint" in str(refusal(tmp_path))
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "name", ["../secret.bin", "/etc/passwd", "..", "x.safetensors", "a/b.bin", "x\0y.bin", ""]
)
def test_shards_outside_the_folder_are_refused(tmp_path: Path, name: str):
    folder = tmp_path / "model"
    write_hf_torch(folder, SMALL, PARAMS)
    writer.save_torch(tmp_path / "secret.bin", {"a": np.zeros(3, np.float32)})
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    error = refusal(folder)
    assert isinstance(error, BadHeader)
    assert "expected a torch file in the folder" in str(error)


def test_a_tensor_in_two_shards(tmp_path: Path):
    folder = write_hf_torch(tmp_path, SMALL, PARAMS, shards=2)
    first, second = sorted(folder.glob("*.bin"))
    second.write_bytes(first.read_bytes())
    assert "is in pytorch_model-00001-of-00002.bin too" in str(refusal(folder))


def test_a_tensor_mapped_twice(tmp_path: Path):
    folder = write_hf_torch(tmp_path, SMALL, PARAMS, shards=2)
    one, other = (path.name for path in sorted(folder.glob("*.bin")))
    (folder / INDEX).write_text(f'{{"weight_map": {{"a": "{one}", "a": "{other}"}}}}')
    assert "given twice" in str(refusal(folder))


def test_a_missing_shard_is_named(tmp_path: Path):
    folder = write_hf_torch(tmp_path, SMALL, PARAMS, shards=2)
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    assert "shards that are missing: pytorch_model-00002-of-00002.bin" in str(refusal(folder))


def test_an_unused_file_with_the_models_tensors_is_refused(tmp_path: Path):
    folder = write_hf_torch(tmp_path, SMALL, PARAMS)
    (folder / "pytorch_model_old.bin").write_bytes((folder / "pytorch_model.bin").read_bytes())
    assert isinstance(refusal(folder), BadTensors)


def test_other_bin_files_are_not_looked_at(tmp_path: Path):
    folder = write_hf_torch(tmp_path, SMALL, PARAMS)
    (folder / "training_args.bin").write_bytes(b"anything")
    assert outcome(folder) is None


def test_integers_are_refused_by_name(tmp_path: Path):
    folder = write_hf_torch(tmp_path, SMALL, PARAMS)
    tensors = hf_tensors(PARAMS)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.int64)
    writer.save_torch(folder / "pytorch_model.bin", tensors)
    error = refusal(folder)
    assert isinstance(error, UnsupportedModel)
    assert "'model.norm.weight' has dtype I64" in str(error)
