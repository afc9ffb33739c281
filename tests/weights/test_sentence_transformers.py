"""Sentence-transformers folders: what they say, and what is refused by name."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxllama.errors import (
    BadHeader,
    BadTensors,
    BadTokenizer,
    CheckpointError,
    UnknownFormat,
    UnsupportedModel,
)
from jaxllama.model.bert import encoder_shapes
from jaxllama.text.sentences import sentence_tokenizer
from jaxllama.weights import open_checkpoint
from jaxllama.weights.sentence_transformers import SentenceFolder
from tests.weights.encoder_writer import (
    KINDS,
    LONGEST,
    POSITIONS,
    PROMPTS,
    module,
    vocabulary,
    write,
    write_encoder,
)

TENSORS = "model.safetensors"


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_encoder(tmp_path / "bert")


def read(folder: Path) -> dict[str, np.ndarray]:
    with SentenceFolder.open(folder) as opened:
        shapes = encoder_shapes(opened.config)
        weights = opened.read_weights(shapes, lambda array: array, lambda *_: None)
        assert {path: array.shape for path, array in weights.items()} == shapes
        return weights


def resave(folder: Path, change) -> None:
    tensors = load_file(folder / TENSORS)
    change(tensors)
    save_file(
        {name: np.ascontiguousarray(each) for name, each in tensors.items()}, folder / TENSORS
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_says_how_texts_become_vectors(tmp_path, kind):
    with SentenceFolder.open(write_encoder(tmp_path / kind, kind)) as opened:
        config = opened.config
        assert opened.prompts.texts == PROMPTS and opened.prompts.default is None
    assert config.name == kind
    assert config.max_length == LONGEST
    assert config.first_position == (2 if kind in ("roberta", "mpnet") else 0)
    assert config.relative_buckets == (32 if kind == "mpnet" else 0)
    pooling = {"roberta": "cls", "distilbert": "max"}.get(kind, "mean")
    assert (config.pooling, config.normalizes) == (pooling, kind in ("bert", "mpnet"))


def test_dtypes_old_names_prefixes_and_heads_change_nothing(folder):
    expected = read(folder)

    def as_once(tensors):
        for name in list(tensors):
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma")
            old = old.replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[f"bert.{old}"] = tensors.pop(name)
        tensors["bert.embeddings.position_ids"] = np.arange(POSITIONS)[None]
        tensors["cls.predictions.bias"] = np.zeros(3, np.float32)
        tensors["bert.pooler.dense.weight"] = np.zeros((2, 2), np.float32)

    resave(folder, as_once)
    for path, array in read(folder).items():
        np.testing.assert_array_equal(array, expected[path])
    resave(
        folder,
        lambda tensors: tensors.update({k: v.astype(np.float16) for k, v in tensors.items()}),
    )
    for path, array in read(folder).items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, expected[path], atol=4e-3)


def test_a_plain_encoder_without_modules_takes_the_mean(folder):
    (folder / "modules.json").unlink()
    with SentenceFolder.open(folder) as opened:
        assert (opened.config.pooling, opened.config.normalizes) == ("mean", False)


def test_the_encoder_may_lie_in_a_folder_of_its_own(folder):
    inner = folder / "0_Transformer"
    inner.mkdir()
    for name in (TENSORS, "config.json", "tokenizer.json", "sentence_bert_config.json"):
        (folder / name).rename(inner / name)
    steps = [module(0, "Transformer") | {"path": "0_Transformer"}, module(1, "Pooling")]
    write(folder / "modules.json", steps)
    with SentenceFolder.open(folder) as opened:
        assert opened.encoder_path == inner and opened.config.max_length == LONGEST


def test_a_length_beyond_the_positions_is_cut_to_them(folder):
    write(folder / "sentence_bert_config.json", {"max_seq_length": 10**6})
    with SentenceFolder.open(folder) as opened:
        assert opened.config.max_length == POSITIONS


def test_without_a_length_of_its_own_the_tokenizer_s_counts(folder):
    (folder / "sentence_bert_config.json").unlink()
    with SentenceFolder.open(folder) as opened:
        assert opened.config.max_length == LONGEST


REFUSED = [
    ("config.json", {"architectures": ["ModernBertModel"]}, UnsupportedModel, "'ModernBertModel'"),
    ("config.json", {"architectures": []}, UnsupportedModel, "architecture None"),
    ("config.json", {"hidden_act": "swiglu"}, UnsupportedModel, "'swiglu'; expected one of gelu"),
    ("config.json", {"position_embedding_type": "rotary"}, UnsupportedModel, "'rotary'"),
    ("config.json", {"is_decoder": True}, UnsupportedModel, "is_decoder"),
    ("config.json", {"num_attention_heads": 5}, UnsupportedModel, "5 heads"),
    ("config.json", {"num_hidden_layers": 900}, BadHeader, "900; so many blocks"),
    ("config.json", {"hidden_size": 2**40}, BadHeader, "must lie in"),
    ("config.json", {"hidden_size": 64}, BadTensors, "expected"),
    ("modules.json", [module(0, "Transformer"), module(2, "Dense")], UnsupportedModel, "'Dense'"),
    ("modules.json", [module(0, "Pooling"), module(1, "Transformer")], UnsupportedModel, "order"),
    ("modules.json", {}, BadHeader, "expected a list"),
    ("modules.json", [7], BadHeader, "type is missing"),
    ("modules.json", [module(0, "Transformer") | {"path": "../x"}], BadHeader, "'../x'"),
    ("modules.json", [module(0, "Transformer") | {"path": "/etc"}], BadHeader, "'/etc'"),
    ("1_Pooling/config.json", {"pooling_mode": "weightedmean"}, UnsupportedModel, "weightedmean"),
    ("1_Pooling/config.json", {}, UnsupportedModel, "not stated"),
    (
        "1_Pooling/config.json",
        {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True},
        UnsupportedModel,
        "mean_tokens and max_tokens",
    ),
    (
        "1_Pooling/config.json",
        {"pooling_mode_mean_tokens": True, "include_prompt": False},
        UnsupportedModel,
        "include_prompt",
    ),
    ("config_sentence_transformers.json", {"prompts": {"q": 1}}, BadHeader, "q is 1"),
    ("config_sentence_transformers.json", {"prompts": {"q": "x" * 5000}}, BadHeader, "5000"),
    ("config_sentence_transformers.json", {"default_prompt_name": "q"}, BadHeader, "'q'"),
]


@pytest.mark.parametrize(("file", "content", "error", "words"), REFUSED)
def test_what_is_not_supported_is_refused_by_name(folder, file, content, error, words):
    path = folder / file
    is_change = file == "config.json"
    write(path, json.loads(path.read_text()) | content if is_change else content)
    with pytest.raises(error, match=words):
        read(folder)


def test_all_tensors_that_do_not_fit_are_listed(folder):
    def spoil(tensors):
        del tensors["embeddings.LayerNorm.bias"]
        tensors["encoder.layer.0.output.dense.bias"] = np.zeros(3, np.float32)
        tensors["embeddings.LayerNorm.weight"] = np.zeros(32, np.int32)
        tensors["adapter.weight"] = np.zeros(3, np.float32)

    resave(folder, spoil)
    with pytest.raises(BadTensors) as error:
        read(folder)
    for words in (
        "4 tensors",
        "embeddings.LayerNorm.bias is missing",
        "dense.bias has shape [3], expected [32]",
        "dtype I32",
        "'adapter.weight' is surplus",
    ):
        assert words in str(error.value)


def test_what_is_no_encoder_is_told_what_one_is(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(UnknownFormat, match=r"expected a sentence-transformers folder"):
            SentenceFolder.open(path)


READ = (
    *("modules.json", "config.json", "sentence_bert_config.json", "1_Pooling/config.json"),
    *("config_sentence_transformers.json", "tokenizer.json", TENSORS),
)


@pytest.mark.parametrize("name", READ)
def test_a_truncated_file_is_refused(folder, name):
    whole = (folder / name).read_bytes()
    for keep in (0.0, 0.1, 0.5, 0.9):
        (folder / name).write_bytes(whole[: int(len(whole) * keep)])
        with pytest.raises(CheckpointError):
            read(folder)
            sentence_tokenizer(folder)


def test_bert_s_vocabulary_is_as_good_as_its_tokenizer(folder):
    expected = sentence_tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BadTokenizer, match=r"neither tokenizer.json nor BERT's vocab.txt"):
        sentence_tokenizer(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary("bert")) + "\n")
    write(folder / "tokenizer_config.json", {})
    found = sentence_tokenizer(folder)
    for text in ("The cat's 42 marKETs: Ünïcödé ☃ 我", "[SEP] finding [MASK]", "x" * 120):
        assert found.wrap(found.encode(text)) == expected.wrap(expected.encode(text))
    cased = {"do_lower_case": False}
    write(folder / "tokenizer_config.json", cased)
    assert sentence_tokenizer(folder).encode("Cat") != found.encode("Cat")


@pytest.mark.parametrize(
    ("lines", "words"), [(["a", "b"], r"lacks \[CLS\]"), ([*vocabulary("bert"), "a"], "twice")]
)
def test_a_vocabulary_that_is_not_bert_s_is_refused(folder, lines, words):
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(lines))
    with pytest.raises(BadTokenizer, match=words):
        sentence_tokenizer(folder)


def test_a_folder_may_ask_for_lower_case(folder):
    plain, lowering = sentence_tokenizer(folder), sentence_tokenizer(folder, lowercases=True)
    assert lowering.encode("CAT") == plain.encode("cat")


def test_as_a_model_for_text_it_is_refused_with_the_option_that_takes_it(folder):
    with pytest.raises(UnsupportedModel, match=r"makes vectors of texts.*--embedding-model"):
        open_checkpoint(folder)
