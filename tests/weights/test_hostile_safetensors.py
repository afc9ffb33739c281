"""Hugging Face folders that are truncated, corrupt or hostile: one clear error, quickly."""

import json
from pathlib import Path

import pytest
from hostile import HUGE, flipped, flips, outcome, safetensors_bytes
from writers import flatten, hf_config, write_hf

from jaxllama.errors import (
    BadHeader,
    BadTensors,
    CheckpointError,
    UnknownFormat,
    UnsupportedModel,
)
from jaxllama.testing import random_params, tiny
from jaxllama.weights import open_checkpoint

SMALL = tiny(name="small", vocab_size=64, width=32, heads=2, kv_heads=1, ffn_width=32, layers=1)
PARAMS = flatten(random_params(SMALL))
A = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
B = {"dtype": "F32", "shape": [4], "data_offsets": [16, 32]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_hf(tmp_path / "model", SMALL, PARAMS)


def refusal(folder: Path) -> CheckpointError:
    error = outcome(folder)
    assert error is not None
    return error


def test_the_sound_folder_is_read(folder: Path):
    assert outcome(folder) is None


@pytest.mark.parametrize("part", range(8))
def test_truncated_anywhere(folder: Path, part: int):
    file = folder / "model.safetensors"
    sound = file.read_bytes()
    for at in range(25):
        file.write_bytes(sound[: (len(sound) - 1) * at // 25 + part])
        assert "model.safetensors" in str(refusal(folder))


@pytest.mark.parametrize("seed", range(8))
def test_flipped_bits_never_raise_anything_else(folder: Path, seed: int):
    file = folder / "model.safetensors"
    sound = file.read_bytes()
    header = 8 + int.from_bytes(sound[:8], "little")
    refused = 0
    for place in flips(header, 30, seed):
        file.write_bytes(flipped(sound, place))
        refused += outcome(folder) is not None
    assert refused > 15


HOSTILE: dict[str, tuple[bytes, str]] = {
    "no length": (b"1234567", "at least 8"),
    **{
        f"length {n}": (safetensors_bytes({}, 0, length=n), "header's length")
        for n in (0, 1, 3, 100_000_001, *HUGE)
    },
    "not JSON": (safetensors_bytes("{nonsense", 0), "not valid JSON"),
    "not UTF-8": (safetensors_bytes(b'{"\xff": 1}', 0), "not valid JSON"),
    "a list": (safetensors_bytes([1, 2], 0), "expected a JSON object"),
    "deep nesting": (safetensors_bytes("[" * 100_000, 0), "not valid JSON"),
    "a number of 5000 digits": (safetensors_bytes('{"a": ' + "1" * 5000 + "}", 0), "JSON"),
    "key twice": (
        safetensors_bytes(f'{{"a": {json.dumps(A)}, "a": {json.dumps(A)}}}', 16), "given twice",
    ),
    "inner key twice": (
        safetensors_bytes('{"a": {"dtype": "F32", "dtype": "F16"}}', 0), "given twice",
    ),
    "entry is a number": (safetensors_bytes({"a": 5}, 0), "expected dtype, shape"),
    "entry lacks a key": (safetensors_bytes({"a": {"dtype": "F32"}}, 0), "expected dtype, shape"),
    "unknown dtype": (safetensors_bytes({"a": A | {"dtype": "F33"}}, 16), "'F33'"),
    "dtype is a list": (safetensors_bytes({"a": A | {"dtype": ["F32"]}}, 16), "dtype"),
    "shape is text": (safetensors_bytes({"a": A | {"shape": "4"}}, 16), "whole numbers"),
    "shape is fractional": (safetensors_bytes({"a": A | {"shape": [4.0]}}, 16), "whole numbers"),
    "shape is true": (safetensors_bytes({"a": A | {"shape": [True, 4]}}, 16), "whole numbers"),
    "shape is negative": (safetensors_bytes({"a": A | {"shape": [-4]}}, 16), "whole numbers"),
    "shape is huge": (safetensors_bytes({"a": A | {"shape": [2**62, 4]}}, 16), "spans 16 bytes"),
    "shape is astronomic": (safetensors_bytes({"a": A | {"shape": [2**64]}}, 16), "whole numbers"),
    "many dimensions": (safetensors_bytes({"a": A | {"shape": [1] * 99}}, 16), "99 dimensions"),
    "size differs": (safetensors_bytes({"a": A | {"shape": [3]}}, 16), "takes 12"),
    "negative offset": (safetensors_bytes({"a": A | {"data_offsets": [-16, 0]}}, 16), "offsets"),
    "end before begin": (safetensors_bytes({"a": A | {"data_offsets": [16, 0]}}, 16), "spans -16"),
    "three offsets": (safetensors_bytes({"a": A | {"data_offsets": [0, 8, 16]}}, 16), "3 data"),
    "past the end": (safetensors_bytes({"a": A}, 15), "the file has"),
    "something after": (safetensors_bytes({"a": A}, 17), "the file has"),
    "overlap": (safetensors_bytes({"a": A, "b": B | {"data_offsets": [8, 24]}}, 24), "overlap"),
    "gap": (safetensors_bytes({"a": A, "b": B | {"data_offsets": [20, 36]}}, 36), "gap"),
    "gap at the start": (safetensors_bytes({"b": B}, 32), "gap"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_header(folder: Path, case: str):
    raw, words = HOSTILE[case]
    (folder / "model.safetensors").write_bytes(raw)
    error = refusal(folder)
    assert isinstance(error, BadHeader)
    assert words in str(error)
    assert "model.safetensors" in str(error)


@pytest.mark.parametrize("dtype", ["I32", "U32"])
def test_tensor_of_another_type_is_named(folder: Path, dtype: str):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"F32"', f'"{dtype}"'.encode(), 1))
    error = refusal(folder)
    assert isinstance(error, UnsupportedModel)
    assert dtype in str(error)
    assert "expected one of F32, F16, BF16" in str(error)


INDEX = "model.safetensors.index.json"
WRONG_INDEX: dict[str, tuple[str, str]] = {
    "not JSON": ("{", "not valid JSON"),
    "no map": ("{}", "names 0 files"),
    "map is a list": ('{"weight_map": []}', "weight_map"),
    "number": ('{"weight_map": {"a": 5}}', "expected a safetensors file"),
    "list": ('{"weight_map": {"a": ["x"]}}', "expected a safetensors file"),
    "parent": ('{"weight_map": {"a": "../secret.safetensors"}}', "expected a safetensors file"),
    "absolute": ('{"weight_map": {"a": "/etc/passwd"}}', "expected a safetensors file"),
    "dots": ('{"weight_map": {"a": ".."}}', "expected a safetensors file"),
    "zero byte": ('{"weight_map": {"a": "x\\u0000y"}}', "expected a safetensors file"),
    "missing shard": (
        '{"weight_map": {"a": "model-00009.safetensors", "b": "model.safetensors"}}',
        "names 1 of 2 shards that are missing: model-00009.safetensors",
    ),
}


@pytest.mark.parametrize("case", WRONG_INDEX)
def test_wrong_index(folder: Path, case: str):
    text, words = WRONG_INDEX[case]
    (folder / INDEX).write_text(text)
    assert words in str(refusal(folder))


def test_tensor_in_two_shards(tmp_path: Path):
    folder = write_hf(tmp_path, SMALL, PARAMS, shards=2)
    first, second = sorted(folder.glob("*.safetensors"))
    second.write_bytes(first.read_bytes())
    assert "is in model-00001-of-00002.safetensors too" in str(refusal(folder))


def test_tensors_mapped_to_another_shard_are_listed(tmp_path: Path):
    folder = write_hf(tmp_path, SMALL, PARAMS, shards=2)
    index = json.loads((folder / INDEX).read_text())
    name = "model.norm.weight"
    index["weight_map"][name] = "model-00001-of-00002.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    assert (
        f"maps 1 of {len(index['weight_map'])} tensors to a shard that does not hold them: "
        f"'{name}' is mapped to model-00001-of-00002.safetensors and lies in "
        f"model-00002-of-00002.safetensors"
    ) in str(refusal(folder))


def test_tensors_mapped_to_a_shard_and_in_none_are_listed(tmp_path: Path):
    folder = write_hf(tmp_path, SMALL, PARAMS, shards=2)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["ghost"] = "model-00002-of-00002.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    assert "'ghost' is mapped to model-00002-of-00002.safetensors and lies in no shard" in str(
        refusal(folder)
    )


@pytest.mark.parametrize("shards", [1, 2])
def test_an_unused_file_with_the_models_tensors_is_refused(tmp_path: Path, shards: int):
    folder = write_hf(tmp_path, SMALL, PARAMS, shards=shards)
    used = sorted(folder.glob("*.safetensors"))[0]
    (folder / "model.old.safetensors").write_bytes(used.read_bytes())
    error = refusal(folder)
    assert isinstance(error, BadTensors)
    assert f"tensors twice, in model.old.safetensors and in {used.name}" in str(error)
    assert "move the files that are not meant out of the folder" in str(error)


@pytest.mark.parametrize("raw", [safetensors_bytes({"a": A}, 16), b"broken"])
def test_another_unused_file_is_named_in_the_log(folder: Path, caplog, raw: bytes):
    (folder / "adapter.safetensors").write_bytes(raw)
    assert outcome(folder) is None
    assert [each.getMessage() for each in caplog.records] == [
        f"{folder / 'adapter.safetensors'} is not read: it is not one of the model's shards"
    ]


def test_several_safetensors_without_an_index(folder: Path):
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    (folder / "b.safetensors").write_bytes((folder / "a.safetensors").read_bytes())
    assert "2 safetensors files and neither" in str(refusal(folder))


WRONG_VALUES = ["text", [], [1], {}, {"a": 1}, -1, 0, 1.5, 10**30, 1e300, True, float("inf")]


@pytest.mark.parametrize("field", [*hf_config(SMALL), "rope_scaling", "quantization_config"])
def test_wrong_types_in_the_configuration(folder: Path, field: str):
    refused = 0
    for value in WRONG_VALUES:
        (folder / "config.json").write_text(json.dumps(hf_config(SMALL) | {field: value}))
        error = outcome(folder)
        refused += error is not None
        assert error is None or "config.json" in str(error) or "tensors" in str(error)
    assert refused >= 5 or field == "sliding_window"  # which a Llama model has no use for


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '"x"', "{}", "[" * 100_000, "\udcff", '{"a": 1, "a": 2}']
)
def test_corrupt_configuration(folder: Path, text: str):
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert "config.json" in str(refusal(folder))


def test_configuration_too_large_to_be_one(folder: Path):
    (folder / "config.json").write_text(" " * (2 << 20))
    assert "expected at most" in str(refusal(folder))


def test_absent_required_fields_are_named(folder: Path):
    for field in ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size"):
        config = hf_config(SMALL)
        del config[field]
        (folder / "config.json").write_text(json.dumps(config))
        assert f"{field} is missing" in str(refusal(folder))


def test_missing_configuration(folder: Path):
    (folder / "config.json").unlink()
    error = refusal(folder)
    assert isinstance(error, UnknownFormat)
    assert "a folder with model.safetensors" in str(error)


def test_code_in_the_folder_is_not_run(folder: Path, tmp_path: Path):
    canary = tmp_path / "canary"
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w')\n")
    auto = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    config = hf_config(SMALL) | {"auto_map": auto, "trust_remote_code": True}
    (folder / "config.json").write_text(json.dumps(config))
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.config.width == SMALL.width
    assert not canary.exists()
