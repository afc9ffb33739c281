"""Every kind of vocabulary against llama.cpp and SentencePiece."""

import pytest

from jaxllama.text.from_gguf import tokenizer_from_gguf
from jaxllama.weights import open_checkpoint
from jaxllama.weights.store import find_source, store_folder
from tests.text.vocabularies import (
    BYTE_LEVEL_RULES,
    SCORED,
    USER_DEFINED,
    golden,
    metadata,
    tokenizer,
)

KINDS = (*BYTE_LEVEL_RULES, *SCORED)


def differing(kind: str, special: bool, built=None) -> list[str]:
    """Texts whose ids differ from llama.cpp's."""
    built = built or tokenizer(kind)
    found = golden()["ids"][kind]
    expected = list(found["plain"])
    if special:
        for place, ids in found["special"].items():
            expected[int(place)] = ids
    return [
        text
        for text, ids in zip(golden()["texts"], expected, strict=True)
        if built.encode(text, special=special) != ids
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_plain_text_has_the_ids_of_llama_cpp(kind):
    assert differing(kind, special=False) == []


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_have_the_ids_of_llama_cpp(kind):
    assert differing(kind, special=True) == []


@pytest.mark.parametrize("kind", ["default", "gpt-2", "llama-bpe", "qwen2", "smollm"])
def test_the_goldens_tell_the_rules_apart(kind):
    for other in {"default", "gpt-2", "llama-bpe", "qwen2", "smollm"} - {kind}:
        wrong = tokenizer_from_gguf(metadata(kind) | {"tokenizer.ggml.pre": other})
        assert differing(kind, special=False, built=wrong)


def test_scored_pieces_join_as_in_sentencepiece():
    ours = tokenizer("llama")
    for text, ids in zip(golden()["texts"], golden()["sentencepiece"], strict=True):
        if not any(word in text for word in USER_DEFINED):  # it knows none
            assert ours.encode(text) == ids, text


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_gives_the_text_back(kind):
    ours = tokenizer(kind)
    for text in golden()["texts"]:
        if "\u2581" not in text and "[INST]" not in text and " \n\n" not in text:
            assert ours.decode(ours.encode(text)) == text


def test_the_default_model_has_the_ids_of_llama_cpp():
    source = find_source(None)
    path = store_folder() / source.file
    if not source.is_there(path):
        pytest.skip("the default model is not in the store: jaxllama pull smollm2-135m")
    with open_checkpoint(path) as checkpoint:
        ours = checkpoint.tokenizer()
    assert differing("smollm2", special=False, built=ours) == []
    assert differing("smollm2", special=True, built=ours) == []
    assert (ours.begin_id, ours.end_ids) == (1, (2, 0))
