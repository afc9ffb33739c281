"""Conversations from their JSON form to a prompt's text."""

import json

import pytest

from jaxllama.errors import InvalidParameter, TemplateError
from jaxllama.formats import Message, ToolCall
from jaxllama.messages import (
    Ending,
    as_message,
    guard_json,
    guard_message,
    overflow_named,
    prune,
    render,
    rewind,
)
from jaxllama.testing import ByteTokenizer
from jaxllama.testing.formats import TOOL
from jaxllama_formats.chatml import ChatMl
from jaxllama_formats.plain import Plain

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}


def test_a_message_keeps_its_json_form():
    fields = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    message = as_message(fields)
    assert message.tool_calls == (ToolCall("f", {"x": 1}, "c1"),)
    assert as_message(message.as_json()) == message
    assert as_message({"role": "user", "content": "hi"}).as_json() == {
        "role": "user",
        "content": "hi",
    }


def test_parts_of_text_are_joined():
    parts = [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}]
    assert as_message({"role": "user", "content": parts}).content == "ab"


def test_calls_need_no_content():
    assert as_message({"role": "assistant", "content": None, "tool_calls": [CALL]}).content == ""


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"role": "user"}, "content None"),
        ({"role": "user", "content": 3}, "content 3"),
        ({"content": "x"}, "role None"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "'image_url'; this model reads"),
        ({"role": "user", "content": ["x"]}, "type None"),
        ({"role": "user", "content": [{"type": "text"}]}, "text None"),
        ({"role": "assistant", "content": "", "tool_calls": "x"}, "expected a list"),
        ({"role": "assistant", "content": "", "tool_calls": [{"id": "c"}]}, "expected {"),
        ({"role": "user", "content": "", "name": 1}, "name 1"),
    ],
)
def test_what_is_no_message_is_refused(fields, word):
    with pytest.raises(InvalidParameter, match=word):
        as_message(fields)


@pytest.mark.parametrize("arguments", ["{", "[1]", 3])
def test_arguments_are_an_object(arguments):
    call = {"function": {"name": "f", "arguments": arguments}}
    with pytest.raises(InvalidParameter, match="arguments"):
        as_message({"role": "assistant", "content": "", "tool_calls": [call]})


def test_no_part_of_a_message_or_tool_can_hold_a_control_token():
    tokenizer, bad = ByteTokenizer(), "<|im_end|>"
    message = Message(bad, bad, (ToolCall(bad, {bad: [bad, {"x": bad}]}, bad),), bad, bad)
    tool = {"type": "function", "function": {"name": bad, "description": bad, bad: [bad]}}
    safe = guard_message(message, tokenizer.guard).as_json()
    text = json.dumps([safe, guard_json(tool, tokenizer.guard)], ensure_ascii=False)
    assert text.count(bad) == 13
    ids = tokenizer.encode(text, special=True)
    assert max(ids) < 256
    assert tokenizer.decode(ids).count(bad) == 13


def test_the_last_message_is_continued_where_it_ends():
    messages = [Message("user", "Name a colour."), Message("assistant", "Blue")]
    text = render(ChatMl(), messages, (), Ending.LAST)
    assert text.endswith("<|im_start|>assistant\nBlue")


def test_an_empty_last_message_is_an_answer_not_begun():
    messages = [Message("user", "Name a colour."), Message("assistant", "")]
    text = render(ChatMl(), messages, (), Ending.LAST)
    assert text == ChatMl().render(messages[:1])


def test_a_closed_conversation_ends_behind_its_last_message():
    text = render(ChatMl(), [Message("user", "hi")], (), Ending.CLOSED)
    assert text.endswith("hi<|im_end|>\n")


class Shouting(Plain):
    def render(self, messages, *, answer=True):
        return super().render(messages, answer=answer).upper()


def test_a_message_that_is_not_shown_as_written_cannot_be_continued():
    with pytest.raises(TemplateError, match="cannot be continued"):
        render(Shouting(), [Message("assistant", "blue")], (), Ending.LAST)


@pytest.mark.parametrize(
    ("messages", "tools"),
    [
        ([Message("user", "hi")], [TOOL]),
        ([Message("tool", "hi")], []),
        ([Message("assistant", "", (ToolCall("f", {}),))], []),
    ],
)
def test_tools_are_never_left_out_silently(messages, tools):
    with pytest.raises(InvalidParameter, match="'plain' of this model knows none"):
        render(Plain(), messages, tools, Ending.ANSWER)


def test_an_empty_conversation_is_refused():
    with pytest.raises(InvalidParameter, match="messages is empty"):
        render(Plain(), [], (), Ending.ANSWER)


def spoken(text: str) -> list[Message]:
    """Messages of one letter each: s(ystem), u(ser), a(ssistant), t(ool)."""
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [Message(roles[letter], str(place)) for place, letter in enumerate(text)]


def places(messages: list[Message]) -> str:
    return "".join(message.content for message in messages)


@pytest.mark.parametrize(
    ("roles", "turns", "keep_first", "left"),
    [
        ("suauau", 0, False, "012345"),
        ("suauau", 1, False, "0345"),
        ("suauau", 2, False, "05"),
        ("suauau", 9, False, "05"),  # the last turn stays
        ("uauau", 1, True, "014"),
        ("ssuauauau", 1, True, "0123678"),
        ("ssuauauau", 9, True, "01238"),
        ("u", 3, True, "0"),
        ("sua", 3, False, "012"),
        ("uatatuau", 1, False, "567"),  # calls go with their results
        ("auau", 1, False, "123"),  # what comes before the first question is a turn, too
        ("usau", 1, False, "3"),  # only system messages at the beginning stay
    ],
)
def test_pruning_leaves_out_the_oldest_turns(roles, turns, keep_first, left):
    assert places(prune(spoken(roles), turns, keep_first=keep_first)) == left


@pytest.mark.parametrize(
    ("roles", "turns", "left"),
    [("suaua", 1, "012"), ("suaua", 2, "0"), ("suaua", 5, "0"), ("uau", 1, "01"), ("", 1, "")],
)
def test_rewinding_takes_back_the_last_turns(roles, turns, left):
    assert places(rewind(spoken(roles), turns)) == left


def test_an_unknown_way_out_of_a_full_context_is_refused():
    with pytest.raises(InvalidParameter, match="'drop'; expected one of error, drop_oldest"):
        overflow_named("drop")
