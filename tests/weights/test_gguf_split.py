"""Split GGUF files: every part opens the whole model; parts that do not belong together do not."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from trees import random_weights
from writers import write_gguf

from jaxllama.errors import BadHeader, CheckpointError
from jaxllama.model.params import abstract_params
from jaxllama.testing import tiny
from jaxllama.weights import open_checkpoint
from jaxllama.weights.base import check_tensors
from jaxllama.weights.gguf_split import first_parts

CONFIG = tiny(name="one", layers=2)
WEIGHTS = random_weights(CONFIG)
FACTORS = [1.0 + i for i in range(CONFIG.head_dim // 2)]


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    write_gguf(tmp_path / "m.gguf", CONFIG, WEIGHTS, factors=FACTORS, split=8)
    return sorted(tmp_path.glob("m-*.gguf"))


@pytest.mark.parametrize("number", [0, 1, -1])
def test_any_part_opens_the_whole_model(parts: list[Path], number: int):
    assert len(parts) == 3
    with open_checkpoint(parts[number]) as checkpoint:
        leaves = abstract_params(checkpoint.config)
        check_tensors(leaves, checkpoint)
        for path, leaf in leaves.items():
            np.testing.assert_array_equal(checkpoint.read(path, leaf), WEIGHTS[path])
        path = "blocks.1.ffn.down.weight"
        part = (slice(0, 5), slice(3, 9))
        np.testing.assert_array_equal(
            checkpoint.read(path, leaves[path], part), WEIGHTS[path][part]
        )
        assert checkpoint.config.rope.factors == tuple(FACTORS)


def test_a_missing_part_is_named(parts: list[Path]):
    parts[1].unlink()
    with pytest.raises(CheckpointError, match=r"1 are missing: m-00002-of-00003\.gguf"):
        open_checkpoint(parts[0])


def test_a_part_under_another_name_is_told_what_is_expected(parts: list[Path]):
    other = parts[0].rename(parts[0].with_name("model.gguf"))
    with pytest.raises(CheckpointError, match=r"a name like NAME-00001-of-00003\.gguf"):
        open_checkpoint(other)


def test_a_part_in_the_place_of_another_is_refused(parts: list[Path]):
    parts[2].write_bytes(parts[1].read_bytes())
    with pytest.raises(BadHeader, match="says that it is part 2 of 3; expected part 3 of 3"):
        open_checkpoint(parts[0])


@pytest.mark.parametrize("lie", ["a tensor twice", "another count of tensors"])
def test_parts_that_do_not_belong_together(tmp_path: Path, lie: str):
    total = 2 if lie == "a tensor twice" else 3
    for number in range(2):
        path = tmp_path / f"m-{number + 1:05}-of-00002.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", total)
        name = "a" if lie == "a tensor twice" else f"a{number}"
        writer.add_tensor(name, np.zeros(32, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    words = "tensor 'a' is in m-00001-of-00002.gguf too" if total == 2 else "have 3 tensors; they"
    with pytest.raises(BadHeader, match=words):
        open_checkpoint(tmp_path / "m-00001-of-00002.gguf")


def test_a_split_model_counts_once(parts: list[Path], tmp_path: Path):
    write_gguf(tmp_path / "other.gguf", CONFIG, WEIGHTS)
    assert first_parts(tmp_path) == [parts[0], tmp_path / "other.gguf"]
