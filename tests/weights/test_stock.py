"""The models in the store: listed with their names and sizes, removed one at a time."""

import json
from pathlib import Path

import pytest
from encoder_writer import module, write, write_encoder
from every_format import FORMATS
from writers import flatten

from jaxllama.cli.main import main
from jaxllama.errors import CheckpointError
from jaxllama.testing import random_params, tiny
from jaxllama.weights.stock import discard, stocked

CONFIG = tiny(layers=1)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    monkeypatch.setenv("JAXLLAMA_HOME", str(folder))
    weights = flatten(random_params(CONFIG))
    made, _ = FORMATS["Hugging Face float32"].write(tmp_path, CONFIG, weights)
    made.rename(folder / "owner--name")
    (folder / "owner--name--x.gguf").mkdir()
    made, _ = FORMATS["GGUF F32"].write(tmp_path, CONFIG, weights)
    made.rename(folder / "owner--name--x.gguf" / "x.gguf")
    (folder / "bad.gguf").write_bytes(b"GGUF but no more")
    (folder / "README.md").write_text("notes")
    (folder / "x.part").write_text("half")
    (folder / ".pull-1").mkdir()
    outside = tmp_path / "outside.gguf"
    outside.write_bytes((folder / "owner--name--x.gguf" / "x.gguf").read_bytes())
    (folder / "linked.gguf").symlink_to(outside)
    return folder


def test_models_are_listed_by_the_name_that_commands_take(store: Path):
    found = {each.name: each for each in stocked()}
    assert list(found) == ["bad.gguf", "hf:owner/name", "hf:owner/name/x.gguf", "linked.gguf"]
    assert found["hf:owner/name/x.gguf"].reader == "GgufCheckpoint"
    assert found["hf:owner/name"].nbytes == sum(
        each.stat().st_size for each in (store / "owner--name").iterdir()
    )
    assert found["bad.gguf"].problem and not found["bad.gguf"].reader


def test_a_model_with_a_name_is_listed_and_removed_by_it(store: Path):
    folder = store / "Qwen--Qwen3-0.6B"
    (store / "owner--name").rename(folder)
    assert "qwen3-0.6b" in {each.name for each in stocked()}
    assert discard("hf:Qwen/Qwen3-0.6B").path == folder
    assert not folder.exists()


@pytest.mark.parametrize("name", ["hf:owner/name", "owner--name", "bad.gguf", "linked.gguf"])
def test_one_model_is_removed_and_the_others_stay(store: Path, tmp_path: Path, name: str):
    before = {each.name for each in stocked()}
    gone = discard(name)
    assert {each.name for each in stocked()} == before - {gone.name}
    assert (tmp_path / "outside.gguf").exists()
    assert (store / "README.md").exists()


@pytest.mark.parametrize("name", ["hf:owner/nam", "../outside.gguf", "README.md", ".", ""])
def test_what_is_no_model_of_the_store_is_not_removed(store: Path, name: str):
    before = sorted(store.rglob("*"))
    with pytest.raises(CheckpointError, match="the store has no model"):
        discard(name)
    assert sorted(store.rglob("*")) == before


def test_an_encoder_is_listed_with_the_option_that_takes_it(
    store: Path, capsys: pytest.CaptureFixture[str]
):
    write_encoder(store / "vectors")
    folder = write_encoder(store / "other--vectors")  # with the encoder in a folder of its own
    inner = folder / "0_Transformer"
    inner.mkdir()
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        (folder / name).rename(inner / name)
    steps = [module(0, "Transformer") | {"path": inner.name}, module(1, "Pooling")]
    write(folder / "modules.json", steps)
    with pytest.raises(SystemExit):
        main(["list"])
    lines = [each for each in capsys.readouterr().out.splitlines() if "vectors" in each]
    assert len(lines) == 2
    assert all(each.endswith("SentenceFolder, for --embedding-model") for each in lines)


def test_an_architecture_that_is_no_name_is_a_damaged_model(store: Path):
    path = store / "owner--name" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": [["x"]]}))
    (found,) = (each for each in stocked() if each.name == "hf:owner/name")
    assert "architecture" in found.problem


@pytest.mark.usefixtures("store")
def test_the_commands(capsys: pytest.CaptureFixture[str]):
    for arguments in (["list"], ["list", "--json"], ["remove", "linked.gguf"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
    first, *_, middle, last = capsys.readouterr().out.splitlines()
    assert "damaged" in first
    assert len(json.loads(middle)["models"]) == 4
    assert last.endswith("linked.gguf")


def test_the_names_are_listed_with_where_they_come_from(capsys: pytest.CaptureFixture[str]):
    for arguments in (["list", "--names"], ["list", "--names", "--json"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines[0].split()[0] == "smollm2-135m" and lines[0].endswith("on PyPI, 93 MB")
    assert json.loads(last)["qwen3-0.6b"] == "hf:Qwen/Qwen3-0.6B"
    assert [line.split()[0] for line in lines] == list(json.loads(last))
