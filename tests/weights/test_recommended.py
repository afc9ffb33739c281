"""Recommended sampling: what files say of it, by our names, and what of it is used."""

import json
from pathlib import Path

import gguf
import pytest
from writers import flatten, write_gguf, write_hf

from jaxllama.engine.choosing.knobs import catalogue
from jaxllama.errors import CheckpointError, InvalidParameter
from jaxllama.loading import sampling_defaults_of
from jaxllama.testing import random_params, tiny
from jaxllama.weights import open_checkpoint, store
from jaxllama.weights.recommended import GGUF_NAMES, GGUF_PREFIX
from tests.support import installed_samplers

SMALL = tiny(name="small", vocab_size=64, width=32, heads=2, kv_heads=1, ffn_width=32, layers=1)
PARAMS = flatten(random_params(SMALL))
LLAMA = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": 2, "max_length": 4096}


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf(tmp_path_factory.mktemp("hf"), SMALL, PARAMS)


def of_folder(folder: Path, said: object) -> dict[str, object]:
    (folder / "generation_config.json").write_text(
        said if isinstance(said, str) else json.dumps(said)
    )
    with open_checkpoint(folder) as checkpoint:
        return dict(checkpoint.recommended)


def used(path: Path, choice: str = "auto") -> dict[str, object]:
    with open_checkpoint(path) as checkpoint:
        return sampling_defaults_of(choice, path, checkpoint, catalogue(installed_samplers()))


def test_generation_config_recommends_what_it_names_and_nothing_else(hf: Path):
    assert of_folder(hf, LLAMA) == {"temperature": 0.6, "top_p": 0.9}
    assert of_folder(hf, {"eos_token_id": 2, "top_k": None}) == {}


def test_without_sampling_the_likeliest_token_is_taken(hf: Path):
    assert of_folder(hf, {"do_sample": False, "temperature": 0.6})["temperature"] == 0.0


def test_a_folder_without_generation_config_recommends_nothing(hf: Path):
    (hf / "generation_config.json").unlink(missing_ok=True)
    assert used(hf) == {}


def test_a_broken_generation_config_is_refused_by_name(hf: Path):
    with pytest.raises(CheckpointError, match=r"generation_config\.json: not valid JSON"):
        of_folder(hf, "{")


def test_what_cannot_be_followed_is_named_in_the_log(hf: Path, caplog: pytest.LogCaptureFixture):
    said = {"temperature": -1, "top_k": 20, "top_p": 1.5, "min_p": "x", "num_beams": 4}
    of_folder(hf, said | {"min_length": 5, "penalty_alpha": 0.6, "encoder_repetition_penalty": 1.0})
    assert used(hf) == {"top_k": 20}
    (line,) = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    for words in (
        "temperature is -1; it must lie in [0.0, 100.0]",
        "top_p is 1.5; it must lie in [0.0, 1.0]",
        "min_p is 'x'; expected a number",
        "no installed sampler has generation_config.json: num_beams (4)",
        "no installed sampler has generation_config.json: min_length (5)",
        "no installed sampler has generation_config.json: penalty_alpha (0.6)",
    ):
        assert words in line
    assert "encoder_repetition_penalty" not in line


def test_what_changes_nothing_is_no_default(hf: Path):
    of_folder(hf, {"temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.1, "top_k": 0})
    assert used(hf) == {"repetition_penalty": 1.1}


def test_none_switches_recommendations_off_and_nothing_else_is_known(hf: Path):
    of_folder(hf, LLAMA)
    assert used(hf, "none") == {}
    with pytest.raises(InvalidParameter, match="'maybe'; expected one of auto, none"):
        used(hf, "maybe")


def test_gguf_metadata_recommends_by_the_knobs_names(tmp_path: Path, caplog):
    said = {
        "temp": 0.7,
        "top_k": 20,
        "top_p": 0.95,
        "penalty_repeat": 1.05,
        "penalty_last_n": 64,
        "sequence": "top_k;temp",
    }
    path = tmp_path / "m.gguf"
    metadata = {f"general.sampling.{name}": value for name, value in said.items()}
    write_gguf(path, SMALL, PARAMS, metadata=metadata)
    assert used(path) == {
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 0.95,
        "repetition_penalty": 1.05,
        "repetition_window": 64,
    }
    assert "no installed sampler has general.sampling.sequence ('top_k;temp')" in caplog.text


def test_gguf_keys_are_those_of_its_own_library():
    keys = {
        value
        for name, value in vars(gguf.Keys.General).items()
        if name.startswith("SAMPLING_") and name != "SAMPLING_SEQUENCE"
    }
    assert keys == {GGUF_PREFIX + name for name in GGUF_NAMES}


def test_a_named_model_has_a_line_that_its_file_overrules(tmp_path: Path, monkeypatch):
    class Here:
        file = "m.gguf"

        def is_there(self, target: Path) -> bool:
            return target.is_file()

    monkeypatch.setattr(store, "NAMES", {"one": Here()})
    monkeypatch.setattr(store, "RECOMMENDED", {"one": {"temperature": 0.2, "top_p": 0.9}})
    path = tmp_path / "m.gguf"
    write_gguf(path, SMALL, PARAMS, metadata={"general.sampling.temp": 0.5})
    assert used(path) == {"temperature": 0.5, "top_p": 0.9}
    assert used(path.rename(tmp_path / "another.gguf")) == {"temperature": 0.5}


def test_the_default_model_is_recommended_as_its_card_says():
    assert store.RECOMMENDED[store.DEFAULT] == {"temperature": 0.2, "top_p": 0.9}
