"""The byte tokenizer behaves as a real one would."""

import pytest

from jaxllama.testing import FAMILIES, ByteTokenizer


@pytest.mark.parametrize(
    "text", ["", "plain", " two  spaces\n", "naïve 東京 🙂\x00\x7f", "<|im_end|>"]
)
def test_ids_are_the_bytes_and_come_back_as_text(text: str):
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text


def test_every_byte_is_a_piece():
    tokenizer = ByteTokenizer()
    assert [tokenizer.piece(id_) for id_ in range(256)] == [bytes([i]) for i in range(256)]


def test_special_text_is_read_only_where_asked_for_and_not_where_guarded():
    tokenizer = ByteTokenizer()
    assert tokenizer.encode("a<|im_end|>", special=True) == [97, 259]
    guarded = tokenizer.guard("a<|im_end|>")
    assert tokenizer.decode(tokenizer.encode(guarded, special=True)) == "a<|im_end|>"


def test_special_tokens_have_no_text_unless_asked_for():
    tokenizer = ByteTokenizer()
    assert tokenizer.decode([256, 97, 257]) == "a"
    assert tokenizer.decode([256, 97, 257], special=True) == "<s>a</s>"


def test_begin_token_is_added_when_the_model_wants_it():
    assert ByteTokenizer(adds_begin=True).encode("a") == [256, 97]
    assert ByteTokenizer().encode("a") == [97]
    assert ByteTokenizer().encode("a", begin=True) == [256, 97]


def test_every_tiny_model_has_room_for_its_ids():
    assert {c.vocab_size >= ByteTokenizer().vocab_size for c in FAMILIES.values()} == {True}
