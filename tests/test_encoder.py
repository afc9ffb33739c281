"""Encoders against sentence-transformers, and the Python API."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxllama
from jaxllama import encoder as module
from jaxllama.encoder import Encoder
from jaxllama.engine import encoding
from jaxllama.errors import BadTokenizer, GenerationFailed, InvalidParameter, PromptTooLong
from jaxllama.weights.store import find_source, store_folder
from tests.support import KEPT
from tests.weights.encoder_writer import KINDS, LONGEST, TEXTS, WIDTH, write, write_encoder

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def goldens():
    return np.load(GOLDEN / "encoders.npz")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    return {kind: write_encoder(root / kind, kind) for kind in KINDS}


@pytest.fixture(scope="module", autouse=True)
def kept_programs():
    """Keep compiled programs for later runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "cache_folder", lambda: KEPT / "encoders")
        yield


@pytest.fixture(scope="module")
def bert(folders):
    with Encoder.load(folders["bert"]) as loaded:
        yield loaded


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_those_of_sentence_transformers(folders, goldens, kind):
    with Encoder.load(folders[kind]) as encoder:
        found = encoder.encode(TEXTS, truncate=True)
        queries = encoder.encode(TEXTS, truncate=True, prompt_name="query")
    assert found.shape == (len(TEXTS), WIDTH)
    np.testing.assert_allclose(found, goldens[kind], atol=2e-5)
    np.testing.assert_allclose(queries, goldens[f"{kind}_query"], atol=2e-5)


def test_minilm_is_that_of_sentence_transformers_on_a_hundred_texts():
    source = find_source("minilm")
    if not source.is_there(store_folder() / source.file):
        pytest.skip("the encoder is not in the store: jaxllama pull minilm")
    texts = (GOLDEN / "sentences.txt").read_text(encoding="utf-8").splitlines()
    with Encoder.load("minilm") as encoder:
        found = encoder.encode(texts, truncate=True)
        assert encoder.texts.traces in (0, 3 * len(encoder.texts.sizes))
    assert len(texts) == 100
    assert np.abs(found - np.load(GOLDEN / "minilm.npz")["vectors"]).max() < 1e-4


def test_company_changes_a_vector_by_rounding_only(bert):
    alone = np.stack([bert.encode(text, truncate=True) for text in TEXTS])
    np.testing.assert_allclose(
        bert.encode(TEXTS * 5, truncate=True)[: len(TEXTS)], alone, atol=1e-6
    )


def test_nothing_is_compiled_after_loading(bert):
    before = bert.texts.traces
    for length in (1, 5, LONGEST - 2):
        bert.encode([[20] * length] * 9)
    assert bert.texts.traces == before


def test_a_second_start_compiles_nothing(bert, folders):
    del bert
    with Encoder.load(folders["bert"]) as again:
        again.encode("the cat")
        assert again.texts.traces == 0


def test_a_text_gives_a_vector_and_a_list_gives_rows(bert):
    one = bert.encode("the cat")
    assert one.shape == (WIDTH,) and np.linalg.norm(one) == pytest.approx(1)
    ids = bert.tokenizer.encode("the cat")
    np.testing.assert_allclose(bert.encode(ids), one, atol=1e-6)
    np.testing.assert_allclose(bert.encode(["the cat", ids]), [one, one], atol=1e-6)
    assert bert.encode([]).shape == (0, WIDTH)


def test_fewer_dimensions_are_the_first_ones_scaled_to_length_one(bert):
    whole, short = bert.encode("the cat"), bert.encode("the cat", dimensions=5)
    np.testing.assert_allclose(short, whole[:5] / np.linalg.norm(whole[:5]), rtol=1e-5)
    assert bert.encode("the cat", dimensions=WIDTH).tolist() == whole.tolist()
    with pytest.raises(InvalidParameter, match=f"dimensions is 33; .* have {WIDTH} numbers"):
        bert.encode("the cat", dimensions=WIDTH + 1)


def test_a_text_that_is_too_long_is_refused_or_cut(bert):
    long = "cat " * LONGEST
    with pytest.raises(PromptTooLong, match=f"32 tokens; bert reads at most {LONGEST - 2}"):
        bert.encode(long)
    cut = bert.encode("cat " * (LONGEST - 2))
    np.testing.assert_allclose(bert.encode(long, truncate=True), cut, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "non-empty"),
        ("a\ud800", "surrogate"),
        ("x" * ((128 << 10) + 1), "131073 characters; at most 131072"),
        ([-1], "token -1; expected ids from 0"),
        ([10**6], "token 1000000"),
        ([[]], "no token"),
    ],
)
def test_what_is_no_text_is_refused(bert, text, words):
    with pytest.raises(InvalidParameter, match=words):
        bert.encode(text)


def test_an_unknown_prompt_lists_the_known_ones(bert):
    with pytest.raises(InvalidParameter, match=r"'queries'.*'query', 'passage'"):
        bert.encode("cat", prompt_name="queries")


def test_a_default_prompt_is_put_before_texts(folders, bert, tmp_path):
    del bert
    folder = write_encoder(tmp_path / "bert")
    prompts = {"prompts": {"q": "find: "}, "default_prompt_name": "q"}
    write(folder / "config_sentence_transformers.json", prompts)
    with Encoder.load(folder) as ours, Encoder.load(folders["bert"]) as plain:
        assert ours.ids("cat") == plain.ids("find: cat")


def test_vectors_that_are_no_numbers_fail(bert):
    with pytest.raises(GenerationFailed, match="NaN"):
        bert.finished(np.full((1, WIDTH), np.nan, np.float32))


def test_a_text_is_charged_as_it_is_computed(bert):
    counts = list(bert.encode_in_steps([[20] * 20] * 3))
    assert [count for count in counts if count] == [20, 20, 20]


def test_a_slow_block_is_a_piece_of_its_own(bert, monkeypatch):
    monkeypatch.setattr(encoding, "PIECE_SECONDS", 0.0)
    assert list(bert.encode_in_steps([[20] * 20] * 2)) == [0, 20, 0, 20]
    monkeypatch.setattr(encoding, "PIECE_SECONDS", 1e9)
    assert list(bert.encode_in_steps([[20] * 20] * 2)) == [20, 20]


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    folder = write_encoder(tmp_path / "bert")
    name = "embeddings.word_embeddings.weight"
    with pytest.raises(BadTokenizer, match="ids up to"):
        Encoder.load(shrunk(folder, name))


def shrunk(folder: Path, name: str) -> Path:
    """Cut the last row of a tensor, and say so in config.json."""
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = tensors[name][:-1].copy()
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    write(folder / "config.json", config | {"vocab_size": len(tensors[name])})
    return folder


def test_the_encoder_is_in_the_package_s_front():
    assert jaxllama.Encoder is Encoder
