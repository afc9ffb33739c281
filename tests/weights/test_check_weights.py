"""check_weights passes our own formats and catches each way of breaking the contract."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from writers import flatten, gguf_vocabulary, write_gguf, write_hf, write_tokenizer_json

from jaxllama.errors import BadTensors
from jaxllama.kernels.packed import Packed
from jaxllama.model.params import Leaf
from jaxllama.testing import check_weights, random_params, tiny
from jaxllama.testing.weights import check_packed, check_value
from jaxllama.weights.gguf import GgufCheckpoint
from jaxllama.weights.huggingface import HuggingFaceCheckpoint
from jaxllama.weights.layout import UnpairRope

CONFIG = tiny(name="small", width=32, heads=2, kv_heads=1, ffn_width=32, layers=1)
PARAMS = flatten(random_params(CONFIG))


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    vocabulary = gguf_vocabulary(CONFIG.vocab_size)
    write_gguf(tmp_path / "m.gguf", CONFIG, PARAMS, kind="Q4_0", metadata=vocabulary)
    return tmp_path / "m.gguf"


@pytest.fixture
def hf_folder(tmp_path: Path) -> Path:
    write_hf(tmp_path / "model", CONFIG, PARAMS)
    write_tokenizer_json(tmp_path / "model", CONFIG.vocab_size)
    return tmp_path / "model"


def test_gguf_keeps_the_contract(gguf_file: Path):
    check_weights(gguf_file)


def test_hugging_face_keeps_the_contract(hf_folder: Path):
    check_weights(str(hf_folder))


def broken(monkeypatch: pytest.MonkeyPatch, path: Path, name: str, value: object) -> str:
    """What check_weights says once one part of the format is replaced."""
    format_class = GgufCheckpoint if path.suffix else HuggingFaceCheckpoint
    monkeypatch.setattr(format_class, name, value)
    with pytest.raises(AssertionError) as caught:
        check_weights(path)
    return str(caught.value)


def test_recogniser_that_claims_everything(monkeypatch: pytest.MonkeyPatch, gguf_file: Path):
    claims = classmethod(lambda _cls, _path: True)
    assert "note.txt is recognised" in broken(monkeypatch, gguf_file, "recognizes", claims)


def test_reader_that_gives_nan(monkeypatch: pytest.MonkeyPatch, hf_folder: Path):
    read = HuggingFaceCheckpoint.read_stored
    words = broken(
        monkeypatch, hf_folder, "read_stored", lambda self, name: read(self, name) * np.nan
    )
    assert "holds NaN or infinity" in words


def test_reader_that_widens_to_float64(monkeypatch: pytest.MonkeyPatch, hf_folder: Path):
    read = HuggingFaceCheckpoint.read_stored
    words = broken(
        monkeypatch, hf_folder, "read_stored", lambda self, name: read(self, name).astype("f8")
    )
    assert "dtype float64" in words


def test_reader_that_changes_its_mind(monkeypatch: pytest.MonkeyPatch, hf_folder: Path):
    read, counter = HuggingFaceCheckpoint.read_stored, iter(range(1000))
    words = broken(
        monkeypatch, hf_folder, "read_stored", lambda self, name: read(self, name) + next(counter)
    )
    assert "differs when it is read again" in words


def test_reader_that_hands_out_one_array(monkeypatch: pytest.MonkeyPatch, hf_folder: Path):
    read, kept = HuggingFaceCheckpoint.read_stored, {}
    words = broken(
        monkeypatch,
        hf_folder,
        "read_stored",
        lambda self, name: kept.setdefault(name, read(self, name)),
    )
    assert "shares memory" in words


def test_reader_of_parts_that_takes_the_wrong_one(monkeypatch: pytest.MonkeyPatch, hf_folder: Path):
    words = broken(
        monkeypatch,
        hf_folder,
        "read_part",
        lambda self, name, index: self.read_stored(name)[
            tuple(slice(0, each.stop - each.start) for each in index)
        ],
    )
    assert "read in part" in words and "differs from the same part of the whole" in words


def test_step_whose_inverse_does_not_undo_it(monkeypatch: pytest.MonkeyPatch, gguf_file: Path):
    monkeypatch.setattr(UnpairRope, "inverse", lambda self: self)
    with pytest.raises(AssertionError, match=r"blk\.0\.attn_[qk]\.weight differs when it is made"):
        check_weights(gguf_file)


def test_reader_that_forgets_a_tensor(monkeypatch: pytest.MonkeyPatch, hf_folder: Path):
    monkeypatch.setattr(HuggingFaceCheckpoint, "shapes", {"model.norm.weight": (32,)})
    with pytest.raises(BadTensors, match=r"embed_tokens.weight is missing"):
        check_weights(hf_folder)


def test_reader_that_fails_oddly_on_damage(monkeypatch: pytest.MonkeyPatch, hf_folder: Path):
    opener = HuggingFaceCheckpoint.open.__func__

    def careless(cls: type, path: Path) -> HuggingFaceCheckpoint:
        json.loads((path / "config.json").read_text())
        return opener(cls, path)

    words = broken(monkeypatch, hf_folder, "open", classmethod(careless))
    assert "config.json cut to 0%: raised JSONDecodeError" in words


LEAF = Leaf((32, 4), ("width", "ffn"))
GOOD = Packed(
    np.zeros((4, 16), np.uint8), np.ones((4, 1), np.float16), np.ones((4, 1), np.float16), 4, 32
)
WRONG_PACKED: dict[str, tuple[dict[str, object], str]] = {
    "codes": ({"codes": np.zeros((4, 16), np.int8)}, "int8 codes; not uint8"),
    "bits": ({"bits": 8}, r"shape \(16, 4\)"),
    "group": ({"group": 24}, "groups of 24 do not divide 32"),
    "scales": ({"scales": np.ones((1, 4), np.float16)}, r"scales are \(1, 4\)"),
    "minima": ({"minima": np.full((4, 1), np.inf, np.float16)}, "minima hold NaN or infinity"),
    "kind of scales": ({"scales": np.ones((4, 1), np.int32)}, "scales are int32"),
}


def test_sound_packed_matrix_passes():
    check_packed("blocks.0.ffn.up.weight", LEAF, GOOD)
    check_packed("embed.weight", Leaf((4, 32), ("vocab", "width")), GOOD)


@pytest.mark.parametrize("case", WRONG_PACKED)
def test_wrong_packed_matrix_is_caught(case: str):
    changed, words = WRONG_PACKED[case]
    with pytest.raises(AssertionError, match=words):
        check_value("blocks.0.ffn.up.weight", LEAF, dataclasses.replace(GOOD, **changed))


def test_packed_vector_is_caught():
    with pytest.raises(AssertionError, match="matrices only"):
        check_value("final_norm.weight", Leaf((32,), ("width",)), GOOD)
