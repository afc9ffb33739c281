"""Text as it comes."""

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxllama.text.tail import Tail, first_stop, longest_head
from jaxllama.text.tokenizer import Tokenizer
from tests.text.vocabularies import tokenizer

KINDS = ("llama-bpe", "smollm", "llama", "llama-no-prefix")


def stream(
    ours: Tokenizer, ids: list[int], stop: tuple[str, ...] = (), *, start: bool = True
) -> tuple[list[str], str | None]:
    """What is shown after every token and at the end, and the stop string that was met."""
    tail = Tail(ours, stop, start=start)
    return [*(tail.push(token) for token in ids), tail.flush()], tail.stopped


def cut(text: str, stop: tuple[str, ...]) -> tuple[str, str | None]:
    """The definition, one character at a time: first completed, then longest."""
    for end in range(1, len(text) + 1):
        met = [word for word in stop if text[:end].endswith(word)]
        if met:
            longest = max(met, key=len)
            return text[: end - len(longest)], longest
    return text, None


def check(ours: Tokenizer, ids: list[int], stop: tuple[str, ...]) -> None:
    shown, met = stream(ours, ids, stop)
    assert ("".join(shown), met) == cut(ours.decode(ids), stop)


@pytest.mark.parametrize("kind", KINDS)
def test_every_token_alone_is_shown_as_it_decodes(kind):
    ours = tokenizer(kind)
    for token in range(ours.vocab_size):
        assert "".join(stream(ours, [token])[0]) == ours.decode([token])


@pytest.mark.parametrize("kind", KINDS)
def test_random_ids_stream_to_their_text(kind):
    """2,500 sequences each: bytes of broken characters are frequent among them."""
    ours, chance = tokenizer(kind), random.Random(kind)
    raw = [token for token in range(ours.vocab_size) if ours.piece(token)[:1] >= b"\x80"]
    for _ in range(2500):
        pool = raw if chance.random() < 0.5 else range(ours.vocab_size)
        ids = chance.choices(pool, k=chance.randint(1, 12))
        assert "".join(stream(ours, ids)[0]) == ours.decode(ids)


@settings(max_examples=300, deadline=None)
@given(st.data())
@pytest.mark.parametrize("kind", KINDS)
def test_stop_strings_cut_the_text_where_they_are_completed(kind, data):
    """Stops are taken from the text itself: over several tokens, overlapping, nearly met."""
    ours = tokenizer(kind)
    ids = data.draw(st.lists(st.integers(0, ours.vocab_size - 1), min_size=1, max_size=14))
    text = ours.decode(ids)
    stops = []
    for _ in range(data.draw(st.integers(1, 3))):
        first = data.draw(st.integers(0, max(0, len(text) - 1)))
        word = text[first : first + data.draw(st.integers(1, 12))]
        changed = data.draw(st.sampled_from(["", "", "é", "x"]))  # a near miss
        stops.append((word + changed) or "\n")
    check(ours, ids, tuple(stops))


@settings(deadline=None)
@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=5), max_size=4))
@example("abcabd", ["abd"])
def test_the_result_does_not_depend_on_tokens(text, stops):
    ours = tokenizer("gpt-2")
    single = [ours.encode(letter)[0] for letter in text]
    check(ours, single, tuple(stops))
    check(ours, ours.encode(text), tuple(stops))


def test_a_character_is_shown_with_its_last_byte():
    ours = tokenizer("llama")
    ids = [3 + byte for byte in "é🙂".encode()]
    assert stream(ours, ids)[0] == ["", "é", "", "", "", "🙂", ""]


def test_broken_bytes_are_shown_as_soon_as_they_cannot_heal():
    ours = tokenizer("llama")
    ids = [3 + byte for byte in b"\xf0\x9fA\xff"]
    assert stream(ours, ids)[0] == ["", "", "\ufffdA", "\ufffd", ""]


def test_a_character_cut_off_by_the_end_is_one_replacement():
    ours = tokenizer("llama")
    ids = [3 + byte for byte in "🙂".encode()[:3]]
    assert stream(ours, ids)[0] == ["", "", "", "\ufffd"]


def test_the_start_of_a_stop_string_is_held_back_until_it_cannot_be_one():
    ours = tokenizer("llama")
    ids = [3 + byte for byte in b"a\nUser\nUser:b"]
    shown, met = stream(ours, ids, ("\nUser:",))
    assert shown[:7] == ["a", "", "", "", "", "", "\nUser"]
    assert ("".join(shown), met) == ("a\nUser", "\nUser:")


def test_nothing_is_shown_after_a_stop_string():
    ours = tokenizer("llama")
    tail = Tail(ours, ("b",))
    assert [tail.push(3 + byte) for byte in b"abcab"] == ["a", "", "", "", ""]
    assert tail.flush() == ""
    assert tail.stopped == "b"


def test_a_near_miss_is_shown_at_the_end():
    ours = tokenizer("llama")
    shown, met = stream(ours, [3 + byte for byte in b"x\nUser"], ("\nUser:",))
    assert shown == ["x", "", "", "", "", "", "\nUser"]
    assert met is None


def test_a_stop_string_ends_inside_a_token():
    ours = tokenizer("gpt-2")
    token = next(i for i in range(ours.vocab_size) if ours.piece(i) == b"es")
    assert stream(ours, [token, token], ("se",)) == (["e", "", ""], "se")


def test_a_stop_string_of_two_bytes_is_not_met_by_one():
    ours = tokenizer("llama")
    assert stream(ours, [3 + 0xC3, 3 + 0xA8], ("é",)) == (["", "è", ""], None)
    assert stream(ours, [3 + 0xC3, 3 + 0xA9], ("é",)) == (["", "", ""], "é")


def test_the_first_stop_string_completed_counts_then_the_longest():
    assert first_stop("xabcd", ("abcd", "bc")) == (2, "bc")
    assert first_stop("xabc", ("bc", "abc")) == (1, "abc")
    assert first_stop("xyz", ("bc",)) is None


def test_the_longest_possible_head_is_held():
    assert longest_head("xaab", ("aabb", "bc")) == 3
    assert longest_head("xaab", ("ab",)) == 0
    assert longest_head("xaab", ()) == 0


def test_the_space_in_front_of_a_text_is_dropped_once():
    ours = tokenizer("llama")
    ids = ours.encode("ab  ab")
    assert ours.piece(ids[0]).startswith(b" ")
    assert "".join(stream(ours, ids)[0]) == "ab  ab"
    assert "".join(stream(ours, [1, *ids])[0]) == "ab  ab"


def test_a_continuation_keeps_its_space():
    ours = tokenizer("llama")
    ids = ours.encode("ab")
    assert "".join(stream(ours, ids, start=False)[0]) == " ab" == ours.decode(ids, start=False)
