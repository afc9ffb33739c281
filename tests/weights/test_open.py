"""Opening a path: whatever lies there, at once, and what happens when it changes afterwards."""

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hostile import outcome, read_everything
from writers import flatten, write_gguf, write_hf

from jaxllama.errors import BrokenPlugin, CheckpointError, UnknownFormat
from jaxllama.model.params import Leaf
from jaxllama.testing import random_params, tiny
from jaxllama.testing.models import shapes
from jaxllama.weights import open_checkpoint
from jaxllama.weights.base import fill
from jaxllama.weights.gguf import GgufCheckpoint

CONFIG = tiny(layers=1)
PARAMS = flatten(random_params(CONFIG))


def refusal(path: Path) -> str:
    error = outcome(path)
    assert error is not None
    return str(error)


def test_missing_path(tmp_path: Path):
    assert "No such file" in refusal(tmp_path / "nothing")
    assert "cannot be opened" in refusal(Path("a\0b"))


def test_empty_file(tmp_path: Path):
    (tmp_path / "m.gguf").touch()
    assert "m.gguf is empty" in refusal(tmp_path / "m.gguf")


def test_one_byte(tmp_path: Path):
    (tmp_path / "m.gguf").write_bytes(b"G")
    assert "a file of 1 bytes" in refusal(tmp_path / "m.gguf")


def test_folder_without_a_model_is_described(tmp_path: Path):
    assert "an empty folder" in refusal(tmp_path)
    for i in range(20):
        (tmp_path / f"{i:02}.txt").touch()
    message = refusal(tmp_path)
    assert "a folder with 00.txt, 01.txt" in message
    assert "and 12 more" in message
    assert "formats: gguf, huggingface" in message


@pytest.mark.parametrize("at", ["m.gguf", "model/config.json", "model/model.safetensors"])
def test_fifo_does_not_wait_for_a_writer(tmp_path: Path, at: str):
    write_hf(tmp_path / "model", CONFIG, PARAMS)
    (tmp_path / at).unlink(missing_ok=True)
    os.mkfifo(tmp_path / at)
    refusal(tmp_path / at.partition("/")[0])


@pytest.mark.parametrize("at", ["m.gguf", "model/config.json", "model/model.safetensors"])
def test_endless_device_is_not_read(tmp_path: Path, at: str):
    write_hf(tmp_path / "model", CONFIG, PARAMS)
    (tmp_path / at).unlink(missing_ok=True)
    (tmp_path / at).symlink_to("/dev/zero")
    refusal(tmp_path / at.partition("/")[0])
    refusal(Path("/dev/zero"))


def test_symlink_loop(tmp_path: Path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert "cannot be opened" in refusal(tmp_path / "a")


def test_symlinks_to_a_model_are_followed(tmp_path: Path):
    write_hf(tmp_path / "blobs", CONFIG, PARAMS)
    (tmp_path / "model").mkdir()
    for file in (tmp_path / "blobs").iterdir():
        (tmp_path / "model" / file.name).symlink_to(file)
    assert outcome(tmp_path / "model") is None


def test_plugin_that_fails_to_recognise_is_blamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(path: Path) -> bool:
        raise KeyError(path)

    monkeypatch.setattr(GgufCheckpoint, "recognizes", fail)
    with pytest.raises(BrokenPlugin, match=r"weight format 'gguf' failed on .*KeyError"):
        open_checkpoint(tmp_path)


def test_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(GgufCheckpoint, "recognizes", refuse)
    with pytest.raises(CheckpointError, match="cannot be read: Permission denied"):
        open_checkpoint(tmp_path)


def test_refused_files_are_let_go(tmp_path: Path):
    write_hf(tmp_path, CONFIG, PARAMS, extra={"vocab_size": 0})
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        refusal(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_file_truncated_after_it_was_opened(tmp_path: Path):
    write_gguf(tmp_path / "m.gguf", CONFIG, PARAMS)
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        os.truncate(tmp_path / "m.gguf", 10_000)
        with pytest.raises(CheckpointError, match=r"truncated meanwhile|changed while"):
            read_everything(checkpoint)


def test_file_overwritten_after_it_was_opened(tmp_path: Path):
    path = tmp_path / "m.gguf"
    write_gguf(path, CONFIG, PARAMS)
    with open_checkpoint(path) as checkpoint:
        with path.open("r+b") as file:
            file.seek(-100, os.SEEK_END)
            file.write(b"x" * 50)
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))  # clocks of file systems are coarse
        with pytest.raises(CheckpointError, match="changed while it was read"):
            read_everything(checkpoint)


def test_file_replaced_after_it_was_opened_is_not_seen(tmp_path: Path):
    path = tmp_path / "m.gguf"
    write_gguf(path, CONFIG, PARAMS)
    with open_checkpoint(path) as checkpoint:
        (tmp_path / "other").write_bytes(b"GGUF, or so it says")
        (tmp_path / "other").replace(path)
        leaf = Leaf((CONFIG.width,), ("width",))
        np.testing.assert_array_equal(
            checkpoint.read("final_norm.weight", leaf), PARAMS["final_norm.weight"]
        )


def test_one_tensor_at_a_time_is_in_memory(tmp_path: Path):
    config = tiny(layers=24, width=128, ffn_width=256)
    params = flatten(random_params(config))
    write_gguf(tmp_path / "m.gguf", config, params)
    leaves = {path: Leaf(shape, (None,) * len(shape)) for path, shape in shapes(config).items()}
    largest = max(value.nbytes for value in params.values())
    total = sum(value.nbytes for value in params.values())
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        assert len(checkpoint.table) >= len(leaves)  # made once, and kept; not a part of reading
        tracemalloc.start()
        fill(leaves, checkpoint, lambda *_: None)
        peak = tracemalloc.get_traced_memory()[1]
        kept = fill(leaves, checkpoint, lambda _path, _leaf, value: value)
        assert tracemalloc.get_traced_memory()[1] > total  # what it would be otherwise
        tracemalloc.stop()
    assert len(kept["blocks"]) == config.layers
    assert peak < 4 * largest < total


def test_unknown_format_is_an_error_of_its_own(tmp_path: Path):
    (tmp_path / "x.bin").write_bytes(b"something else")
    with pytest.raises(UnknownFormat, match="formats: gguf, huggingface"):
        open_checkpoint(str(tmp_path / "x.bin"))
