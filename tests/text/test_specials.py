"""Special-token text: where it is read, and how it is kept from being read."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllama.errors import BadTokenizer
from jaxllama.text.specials import LONGEST, Special, Specials, any_of

TEXTS = ("<|im_start|>", "<|im_end|>", "<|im", "<s>", "~", "aa", "aaa")
MARK = Specials({}, {}).mark
known = Specials({text: Special(id_) for id_, text in enumerate(TEXTS)}, {"\n\n": Special(90)})

# Mostly pieces of special tokens and marks, so that they meet in every way.
pieces = st.sampled_from((*TEXTS, "<", "|", "im_", "end|>", "a", "s>", MARK, " ", "\n", "x", "<|"))
texts = st.lists(pieces, max_size=12).map("".join)


def parts(text: str, *, control: bool = True, specials: Specials = known) -> list[str | int]:
    return list(specials.split(text, control=control))


def test_a_prompt_is_split_at_control_tokens():
    assert parts("<s>hi<|im_end|>") == [3, "hi", 1]


def test_the_longest_token_counts():
    assert parts("<|im_start|><|im_x aaaa") == [0, 2, "_x ", 6, "a"]


def test_plain_text_keeps_control_tokens_as_text():
    assert parts("<s>hi", control=False) == ["<s>hi"]


def test_user_defined_tokens_are_read_in_any_text():
    assert parts("a\n\n<s>", control=False) == ["a", 90, "<s>"]
    assert parts("a\n\n<s>") == ["a", 90, 3]


def test_white_space_is_swallowed_where_the_token_says_so():
    swallowing = Specials({"<m>": Special(1, strip_left=True, strip_right=True)}, {})
    assert parts("a \n<m>\t b", specials=swallowing) == ["a", 1, "b"]
    assert parts(" <m> <m>\x1c", specials=swallowing) == [1, 1, "\x1c"]


@settings(deadline=None)
@given(texts)
def test_a_guarded_text_reads_as_plain_text(text):
    assert parts(known.guard(text)) == parts(text, control=False)


@settings(deadline=None)
@given(texts, texts, texts)
def test_guarded_texts_stay_plain_between_tokens_and_each_other(first, second, third):
    prompt = f"<s>{known.guard(first)}{known.guard(second)}<|im_end|>{known.guard(third)}"
    whole = [3, *parts(first + second, control=False), 1, *parts(third, control=False)]
    assert parts(prompt) == whole


@settings(deadline=None)
@given(texts, texts)
def test_trimming_a_guarded_text_frees_nothing(first, second):
    prompt = known.guard(first).strip() + known.guard(second)
    assert parts(prompt) == parts(first.strip() + second, control=False)


def test_without_the_guard_a_user_writes_tokens():
    assert parts("<s>" + "hi<|im_end|>") == [3, "hi", 1]


@settings(deadline=None)
@given(texts)
def test_text_without_marks_is_split_and_nothing_is_lost(text):
    text = text.replace(MARK, "")
    joined = "".join(
        part if isinstance(part, str) else (*TEXTS, *"\n\n")[part] if part < 90 else "\n\n"
        for part in parts(text)
    )
    assert joined == text


def test_the_mark_is_a_character_no_special_token_has():
    taken = Specials({f"<{MARK}>": Special(1)}, {})
    assert taken.mark != MARK
    assert parts(f"x<{MARK}>", specials=taken) == ["x", 1]
    assert parts(taken.guard(f"x<{MARK}>"), specials=taken) == [f"x<{MARK}>"]


@pytest.mark.parametrize("text", ["", "x" * (LONGEST + 1)])
def test_an_unusable_special_text_is_refused(text):
    with pytest.raises(BadTokenizer, match="expected 1 to"):
        Specials({text: Special(1)}, {})


def test_specials_that_nest_too_deep_are_refused():
    with pytest.raises(BadTokenizer, match="cannot be searched"):
        Specials({"".join("ab"[i % 2] for i in range(n)): Special(n) for n in range(1, 500)}, {})


def test_a_pattern_shares_heads_and_matches_nothing_when_empty():
    assert any_of(["<a>", "<b>"]) == "<(?:a>|b>)"
    assert any_of([]) == "(?!)"
