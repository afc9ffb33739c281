"""Encoding and decoding, whatever file the vocabulary came from."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllama.errors import BadTokenizer, InvalidParameter
from jaxllama.text.cuts import LONGEST_UNCUT
from jaxllama.text.from_gguf import tokenizer_from_gguf
from jaxllama.text.tokenizer import Tokenizer, library_errors
from jaxllama.text.vocabulary import BYTE_LEVEL
from tests.text.vocabularies import metadata, tokenizer

KINDS = ("llama-bpe", "smollm", "default", "llama", "llama-no-prefix")
END = "<|im_end|>"
any_text = st.text(st.characters(codec="utf-8", exclude_characters="\u2581"), max_size=40)


def with_begin(kind: str) -> Tokenizer:
    return tokenizer_from_gguf(metadata(kind) | {"tokenizer.ggml.add_bos_token": True})


def test_special_text_is_ordinary_unless_asked_for():
    ours = tokenizer("llama-bpe")
    (end,) = ours.encode(END, special=True)
    assert len(ours.encode(END)) > 1
    assert end not in ours.encode(END)


def test_guarded_special_text_is_ordinary_in_a_prompt():
    ours = tokenizer("llama-bpe")
    user = f"say {END} now"
    prompt = ours.encode(f"<|im_start|>{ours.guard(user)}{END}", special=True)
    start, end = ours.encode(f"<|im_start|>{END}", special=True)
    assert prompt == [start, *ours.encode(user), end]


@settings(deadline=None)
@given(any_text)
@pytest.mark.parametrize("kind", ["llama-bpe", "llama"])
def test_guarding_changes_no_token_of_ordinary_text(kind, text):
    ours = tokenizer(kind)
    assert ours.encode(ours.guard(text), special=True) == ours.encode(text)


def test_the_begin_token_is_added_as_the_model_was_trained():
    for kind in ("llama-bpe", "llama"):
        assert with_begin(kind).encode("a") == [
            with_begin(kind).begin_id,
            *tokenizer(kind).encode("a"),
        ]
        assert tokenizer(kind).encode("a")[0] != tokenizer(kind).begin_id


def test_the_caller_may_decide_about_the_begin_token():
    ours = with_begin("llama")
    assert ours.encode("a", begin=False) == ours.encode("a")[1:]
    assert tokenizer("llama").encode("a", begin=True) == ours.encode("a")


def test_a_prompt_that_spells_the_begin_token_gets_no_second_one():
    ours = with_begin("llama")
    assert ours.encode("<s>a", special=True).count(ours.begin_id) == 1
    assert ours.encode("<s>a")[0] == ours.begin_id  # there it is only text
    assert ours.encode("a", special=True)[0] == ours.begin_id


def test_a_begin_token_that_does_not_exist_cannot_be_added():
    file = metadata("smollm")
    del file["tokenizer.ggml.bos_token_id"]
    with pytest.raises(InvalidParameter, match="no begin-of-text token"):
        tokenizer_from_gguf(file).encode("a", begin=True)


def test_no_text_has_no_tokens():
    assert tokenizer("llama").encode("") == []
    assert with_begin("llama").encode("") == [1]


@settings(deadline=None)
@given(any_text)
@pytest.mark.parametrize("kind", KINDS)
def test_text_survives_encoding(kind, text):
    ours = tokenizer(kind)
    if " \n\n" not in text:  # a user-defined token, before which llama.cpp adds a space
        assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize("text", ["\ud800", "ok \udfff"])
def test_lone_surrogates_are_refused(text):
    with pytest.raises(InvalidParameter, match="lone surrogate U\\+D"):
        tokenizer("llama-bpe").encode(text)


def test_pieces_are_bytes():
    ours = tokenizer("gpt-2")
    assert b"".join(ours.piece(token) for token in ours.encode("é 🙂\n")) == "é 🙂\n".encode()
    scored = tokenizer("llama")
    assert scored.piece(3 + 0xE2) == b"\xe2"
    assert scored.piece(scored.encode("a")[0])[:1] == b" "


def test_control_tokens_have_no_text_unless_asked():
    ours = tokenizer("llama")
    (end,) = ours.encode(END, special=True)
    assert ours.piece(end) == b""
    assert ours.piece(end, special=True) == END.encode()
    assert ours.decode([end, 3 + ord("x")]) == "x"
    assert ours.decode([end, 3 + ord("x")], special=True) == END + "x"


def test_user_defined_tokens_have_text():
    ours = tokenizer("llama-bpe")
    (token,) = ours.encode("[INST]")
    assert ours.piece(token) == b"[INST]"


def test_ids_outside_the_vocabulary():
    ours = tokenizer("llama-bpe")
    assert ours.piece(ours.vocab_size) == b""  # the model's table may be padded
    with pytest.raises(InvalidParameter, match="token id is -1"):
        ours.piece(-1)


def test_broken_utf8_is_replaced():
    ours = tokenizer("llama")
    assert ours.decode([3 + 0xF0, 3 + 0x9F, 3 + ord("A")]) == "\ufffdA"


def test_the_leading_space_of_a_scored_vocabulary_is_dropped_at_the_start_only():
    ours = tokenizer("llama")
    ids = ours.encode("ab ab")
    assert ours.decode(ids) == "ab ab"
    assert ours.decode(ids, start=False) == " ab ab"
    assert ours.decode([1, *ids]) == "ab ab"
    bare = tokenizer("llama-no-prefix")
    assert bare.decode(bare.encode(" ab")) == " ab"


def test_end_tokens_are_the_models_own_then_the_known_ones():
    ours = tokenizer("llama-bpe")
    texts = [ours.piece(token, special=True) for token in ours.end_ids]
    assert texts == [b"<|eot_id|>", b"<|im_end|>", b"<|endoftext|>"]


def test_the_model_text_names_template_begin_end_and_control_tokens():
    text = tokenizer_from_gguf(metadata("llama") | {"tokenizer.chat_template": "{{ x }}"}).text
    assert (text.template, text.begin, text.end, text.name) == (
        "{{ x }}",
        "<s>",
        "</s>",
        "tiny llama",
    )
    assert {"<s>", "</s>", "<|im_start|>"} <= text.special
    assert "[INST]" not in text.special


@pytest.mark.parametrize("kind", ["llama-bpe", "smollm", "llama"])
@pytest.mark.parametrize("letter", ["a", " ", "\n", "1", "<|im", "\u0301"])
def test_a_long_run_takes_time_in_proportion(kind, letter):
    """It takes 0.1 to 0.4 s; any quadratic step on the way takes far over 10 s."""
    text, start = letter * (LONGEST_UNCUT // len(letter)), time.process_time()
    ours = tokenizer(kind)
    ours.encode(ours.guard(text), special=True)
    assert time.process_time() - start < 5


def test_a_panic_of_the_library_becomes_an_error():
    class PanicException(BaseException):  # as the library's own derives past Exception
        pass

    message = "it broke: the tokenizers library failed: boom"
    with pytest.raises(BadTokenizer, match=message), library_errors("it broke"):
        raise PanicException("boom")


def test_an_interrupt_is_not_contained():
    with pytest.raises(KeyboardInterrupt), library_errors("it broke"):
        raise KeyboardInterrupt


def test_the_byte_alphabet_is_complete():
    assert sorted(BYTE_LEVEL.values()) == list(range(256))
    assert BYTE_LEVEL["Ġ"] == ord(" ")
