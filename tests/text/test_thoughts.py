"""Thoughts are split from answers, however the text comes in pieces."""

import pytest

from jaxllama.text.thoughts import (
    Thought,
    ThoughtParser,
    ThoughtStart,
    start_in,
    thought_start,
    without_thoughts,
)


def split(text: str, size: int, start: ThoughtStart) -> tuple[str, str]:
    """The thoughts and the text of an answer that comes in pieces of `size` characters."""
    parser = ThoughtParser(start)
    pieces = [
        each for at in range(0, len(text), size) for each in parser.push(text[at : at + size])
    ]
    pieces += parser.flush()
    thoughts = "".join(each.text for each in pieces if isinstance(each, Thought))
    return thoughts, "".join(each for each in pieces if isinstance(each, str))


CASES = [
    ("free", "<think>\nOne, two.\n</think>\n\nThree.\n", "One, two.", "Three.\n"),
    ("free", "\n<think>a</think>b", "a", "b"),
    ("free", "No thoughts.", "", "No thoughts."),
    ("free", " <thin air", "", " <thin air"),
    ("free", "<think>\n\n</think>\n\nAt once.", "", "At once."),
    ("free", "Text <think>no</think>", "", "Text <think>no</think>"),
    ("free", "<think>cut off", "cut off", ""),
    ("inside", "\nHm. </b> </thin </think>\nYes", "Hm. </b> </thin", "Yes"),
    ("inside", "a</think>b</think>c", "a", "b</think>c"),
    ("over", "<think>a</think>", "", "<think>a</think>"),
    ("free", "<thi", "", "<thi"),
]


@pytest.mark.parametrize(("start", "text", "thoughts", "rest"), CASES)
@pytest.mark.parametrize("size", [1, 3, 100])
def test_an_answer_is_split_alike_in_any_pieces(start, text, thoughts, rest, size):
    assert split(text, size, ThoughtStart(start)) == (thoughts, rest)


def test_a_prompt_tells_where_thoughts_start():
    assert thought_start("<|im_start|>assistant\n") is ThoughtStart.FREE
    assert thought_start("<|Assistant|><think>\n") is ThoughtStart.INSIDE
    assert thought_start("<think>\n\n</think>\n\n") is ThoughtStart.OVER
    assert start_in("<think>so") is ThoughtStart.INSIDE
    assert start_in("<think>so</think> it") is ThoughtStart.OVER


@pytest.mark.parametrize("prompt", ["A:", "A:<think>\n", "A:<think>\n\n</think>\n\n"])
def test_thoughts_are_closed_as_models_write_it(prompt):
    assert without_thoughts(prompt) == "A:<think>\n\n</think>\n\n"
