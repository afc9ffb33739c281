"""Tokenizers in the form of the other kind of model file, and back."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace, Whitespace

from jaxllama.errors import BadTokenizer, UnsupportedModel
from jaxllama.text.exchange import (
    PROBE,
    TokenizerSource,
    as_files,
    as_metadata,
    check_same,
    source_of_folder,
    source_of_metadata,
)
from tests.text.test_from_json import byte_level, save, sentencepiece
from tests.text.vocabularies import BYTE_LEVEL_RULES, SCORED, golden, metadata

TEXTS = [PROBE, "", " ", "  two  spaces ", "[INST] x\n\n<|im_start|>user<|im_end|>", "\x00\x7f"]


def same_tokens(one: TokenizerSource, other: TokenizerSource) -> None:
    first, second = one.build(), other.build()
    for text in (*TEXTS, *golden()["texts"]):
        ids = first.encode(text, special=True)
        assert second.encode(text, special=True) == ids
        assert second.decode(ids, special=True) == first.decode(ids, special=True)
    assert second.text.template == first.text.template
    assert second.text.special == first.text.special


@pytest.mark.parametrize("kind", [*BYTE_LEVEL_RULES, *SCORED])
def test_metadata_becomes_files_and_metadata_again(kind: str):
    given = metadata(kind) | {"tokenizer.chat_template": "{{ x }}", "other": 1}
    source = source_of_metadata(given)
    assert "other" not in source.metadata
    size = len(given["tokenizer.ggml.tokens"])
    assert as_metadata(source, size) == source.metadata
    folder = TokenizerSource(files=as_files(source))
    same_tokens(source, folder)
    same_tokens(source, TokenizerSource(metadata=as_metadata(folder, size + 3)))


@pytest.mark.parametrize("made", [byte_level(), sentencepiece("legacy"), sentencepiece("always")])
def test_files_become_metadata(tmp_path: Path, made: Tokenizer):
    begin = "<s>" if made.token_to_id("<s>") is not None else None
    config = {"eos_token": "<|im_end|>", "bos_token": begin, "chat_template": "{{ y }}"}
    source = source_of_folder(save(tmp_path, made, tokenizer_config=config))
    assert as_files(source) == source.files
    folder = TokenizerSource(metadata=as_metadata(source, 2000))
    assert len(folder.metadata["tokenizer.ggml.tokens"]) == 2000
    assert folder.build().encode(PROBE) == source.build().encode(PROBE)
    assert folder.build().text.template == "{{ y }}"


def test_words_cut_by_an_unknown_rule_are_refused(tmp_path: Path):
    made = byte_level()
    made.pre_tokenizer = Whitespace()
    with pytest.raises(UnsupportedModel, match="cuts words by a rule"):
        as_metadata(source_of_folder(save(tmp_path, made)), 2000)


def test_other_models_than_bpe_are_refused(tmp_path: Path):
    made = Tokenizer(Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    made.pre_tokenizer, made.decoder = Metaspace(), decoders.Metaspace()
    with pytest.raises(UnsupportedModel, match="type 'Unigram' is not supported in GGUF"):
        as_metadata(source_of_folder(save(tmp_path, made)), 8)


def test_a_vocabulary_larger_than_the_model_is_refused(tmp_path: Path):
    with pytest.raises(UnsupportedModel, match="and the model 8; expected at most as many"):
        as_metadata(source_of_folder(save(tmp_path, byte_level())), 8)


def test_a_folder_without_a_tokenizer(tmp_path: Path):
    with pytest.raises(BadTokenizer, match="has no tokenizer to write to the new file"):
        source_of_folder(tmp_path)


def test_a_difference_is_found():
    one = source_of_metadata(metadata("llama")).build()
    other = source_of_metadata(metadata("llama-no-prefix"))
    with pytest.raises(UnsupportedModel, match="cannot be written as x: a text of"):
        check_same(one, other, "x")
    ends = metadata("llama") | {"tokenizer.ggml.eos_token_id": 3}
    with pytest.raises(UnsupportedModel, match="begin and end tokens would differ"):
        check_same(one, source_of_metadata(ends), "x")


def test_the_files_are_what_others_read():
    files = as_files(source_of_metadata(metadata("gpt-2")))
    assert Tokenizer.from_str(files["tokenizer.json"].decode()).encode("Hello").ids
    assert json.loads(files["tokenizer_config.json"])["tokenizer_class"]
