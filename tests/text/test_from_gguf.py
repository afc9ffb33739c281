"""GGUF metadata: what is read, and what is refused."""

import logging

import numpy as np
import pytest

from jaxllama.errors import BadTokenizer
from jaxllama.text.from_gguf import tokenizer_from_gguf
from jaxllama.text.pretokenize import ALIASES, CUTTINGS
from tests.text.vocabularies import metadata, tokenizer

KEY = "tokenizer.ggml."


def changed(kind: str, **values: object) -> dict[str, object]:
    """Metadata with some values replaced, or removed where None."""
    file = metadata(kind) | {KEY + name: value for name, value in values.items()}
    return {key: value for key, value in file.items() if value is not None}


def swapped(kind: str, name: str, place: int, value: object) -> dict[str, object]:
    """Metadata with one entry of one array replaced."""
    items = list(metadata(kind)[KEY + name])
    items[place] = value
    return changed(kind, **{name: items})


REFUSED = {
    "no model": (changed("qwen2", model=None), "tokenizer.ggml.model is missing"),
    "model of another kind": (changed("qwen2", model="bert"), "model is 'bert'; supported are"),
    "model is no text": (changed("qwen2", model=3), "tokenizer.ggml.model is 3; expected text"),
    "no tokens": (changed("qwen2", tokens=None), "tokenizer.ggml.tokens is missing"),
    "empty tokens": (changed("llama", tokens=[]), "tokenizer.ggml.tokens is empty"),
    "tokens are text": (changed("qwen2", tokens="abc"), "tokens is a str; expected an array"),
    "tokens are bytes": (swapped("qwen2", "tokens", 5, b"x"), "tokens holds bytes"),
    "token twice": (swapped("qwen2", "tokens", 5, "a"), "tokens holds 'a' twice"),
    "types missing one": (changed("qwen2", token_type=[1, 1]), "token_type has 2 entries"),
    "types are numbers with points": (
        swapped("qwen2", "token_type", 0, 1.5),
        "token_type is float64",
    ),
    "type out of range": (swapped("qwen2", "token_type", 0, 9), "token_type holds 1 to 9"),
    "byte token of another text": (swapped("llama", "token_type", 300, 6), "calls token 300"),
    "no merges": (changed("qwen2", merges=None), "tokenizer.ggml.merges is missing"),
    "merge of one token": (swapped("qwen2", "merges", 7, "abc"), r"merges\[7\] is 'abc'"),
    "merge of unknown tokens": (swapped("qwen2", "merges", 7, "q# z"), r"merges\[7\] is 'q# z'"),
    "merges are numbers": (changed("qwen2", merges=[1, 2]), "merges holds int"),
    "no scores": (changed("llama", scores=None), "tokenizer.ggml.scores is missing"),
    "scores missing one": (changed("llama", scores=[0.0]), "scores has 1 entries"),
    "scores are whole": (
        changed("llama", scores=np.zeros(len(metadata("llama")[KEY + "scores"]), np.uint8)),
        "scores is uint8",
    ),
    "score is no number": (swapped("llama", "scores", 0, float("nan")), "not finite"),
    "scores are nested": (changed("llama", scores=[[0.0], [1.0, 2.0]]), "scores is no array"),
    "unknown rule": (changed("qwen2", pre="klingon"), "pre is 'klingon'; known .* llama-bpe"),
    "begin past the end": (changed("qwen2", bos_token_id=10**6), "bos_token_id is 1000000"),
    "begin is a flag": (changed("qwen2", bos_token_id=True), "expected a token id"),
    "end is text": (changed("qwen2", eos_token_id="</s>"), "eos_token_id is '</s>'"),
    "flag is a number": (changed("qwen2", add_bos_token=1), "add_bos_token is 1; expected true"),
    "template is a list": (
        metadata("qwen2") | {"tokenizer.chat_template": ["x"]},
        "chat_template is",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unusable_metadata_is_refused_by_name(case):
    file, message = REFUSED[case]
    with pytest.raises(BadTokenizer, match=message):
        tokenizer_from_gguf(file)


def test_the_untouched_metadata_is_accepted():
    for kind in ("qwen2", "llama"):
        assert tokenizer_from_gguf(changed(kind)).vocab_size == len(metadata(kind)[KEY + "tokens"])


@pytest.mark.parametrize("name", [*CUTTINGS, *ALIASES])
def test_every_rule_builds_a_tokenizer(name):
    ours = tokenizer_from_gguf(changed("qwen2", pre=name))
    assert ours.decode(ours.encode("Hi 123!")) == "Hi 123!"


def test_an_alias_is_its_rule():
    text = "we'LL 12345 go  \n\n on"
    assert tokenizer_from_gguf(changed("qwen2", pre="llama3", add_bos_token=False)).encode(
        text
    ) == tokenizer("llama-bpe").encode(text)


def test_a_missing_rule_is_the_default_one_and_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        ours = tokenizer_from_gguf(changed("qwen2", pre=None))
    assert ours.encode("a1234b, c") == tokenizer("default").encode("a1234b, c")
    assert "tokenizer.ggml.pre is missing" in caplog.text


def test_llama_3_files_add_the_begin_token_unless_they_say_otherwise():
    assert tokenizer_from_gguf(changed("llama-bpe", add_bos_token=None)).encode("a")[0] == (
        tokenizer("llama-bpe").begin_id
    )


def test_scored_files_add_begin_and_a_space_unless_they_say_otherwise():
    ours = tokenizer_from_gguf(changed("llama", add_bos_token=None, add_space_prefix=None))
    assert ours.encode("a") == [1, *tokenizer("llama").encode("a")]


def test_arrays_may_be_numpys():
    file = changed(
        "llama",
        tokens=np.array(metadata("llama")[KEY + "tokens"], object),
        scores=np.array(metadata("llama")[KEY + "scores"], np.float32),
        token_type=np.array(metadata("llama")[KEY + "token_type"], np.int32),
    )
    assert tokenizer_from_gguf(file).encode("Hello") == tokenizer("llama").encode("Hello")


def test_without_types_every_token_is_ordinary():
    ours = tokenizer_from_gguf(changed("qwen2", token_type=None))
    assert len(ours.encode("<|im_end|>", special=True)) > 1
    assert ours.text.special == frozenset()


def test_an_empty_token_gets_a_name_of_its_own():
    last = len(metadata("qwen2")[KEY + "tokens"]) - 1
    ours = tokenizer_from_gguf(swapped("qwen2", "tokens", last, ""))
    assert ours.piece(last, special=True) == f"[EMPTY_{last}]".encode()


def test_ordinary_text_never_becomes_a_control_token_by_merging():
    """A hostile file could hide a control token behind a merge."""
    token = metadata("gpt-2")[KEY + "tokens"].index("es")
    ours = tokenizer_from_gguf(swapped("gpt-2", "token_type", token, 3))
    text = "es"
    assert token in tokenizer("gpt-2").encode(text)
    assert token not in ours.encode(text)
    assert ours.encode(text, special=True) == [token]


def test_scored_text_never_becomes_a_control_or_byte_token():
    ours = tokenizer("llama")
    for text in ("<s>", "</s>", "<unk>", "<0x0A>"):
        assert ours.decode(ours.encode(text)) == text
        assert not {0, 1, 2, 3 + 0x0A} & set(ours.encode(text))


def test_characters_outside_the_vocabulary_fall_back_to_bytes():
    ours = tokenizer("llama-no-prefix")
    assert ours.encode("\U0001f9ff") == [3 + byte for byte in "\U0001f9ff".encode()]


def test_without_bytes_they_become_the_unknown_token():
    tokens = ["<unk>", "<s>", "</s>", "\u2581", "a"]
    ours = tokenizer_from_gguf(
        {
            KEY + "model": "llama",
            KEY + "tokens": tokens,
            KEY + "scores": [0.0, 0.0, 0.0, -1.0, -2.0],
            KEY + "token_type": [2, 3, 3, 1, 1],
            KEY + "add_bos_token": False,
        }
    )
    assert ours.encode("aéa") == [3, 4, 0, 4]
    assert ours.decode([3, 4, 0, 4]) == "aa"
