"""What the grammar of calls lets through."""

import pytest
from llguidance import LLMatcher, LLTokenizer

from jaxllama.constraints.wanted import read_form
from jaxllama.formats import CallStyle
from jaxllama.text.calls import call_grammar, open_grammar

LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {
            "type": "object",
            "properties": {"town": {"$ref": "#/$defs/town"}},
            "required": ["town"],
            "additionalProperties": False,
            "$defs": {"town": {"enum": ["Linz", "Wien"]}},
        },
    },
}
WAIT = {"type": "function", "function": {"name": "wait"}}
BYTES = LLTokenizer("byte")


def is_let_through(style: CallStyle, text: str, make=call_grammar) -> bool:
    form = read_form({"grammar": make(style, [LOOK, WAIT])})
    matcher = LLMatcher(BYTES, form.grammar)
    assert not matcher.get_error()
    tokens = BYTES.tokenize_str(text)
    return matcher.consume_tokens(tokens) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("call", "fits"),
    [
        ('{"name": "look", "arguments": {"town": "Linz"}}', True),
        ('{"name": "wait", "arguments": {}}', True),
        ('{"name": "wait", "arguments": {"x": [1]}}', True),
        ('{"name": "look", "arguments": {"town": "Rom"}}', False),
        ('{"name": "look", "arguments": {}}', False),
        ('{"name": "other", "arguments": {}}', False),
        ('{"arguments": {}, "name": "wait"}', False),
        ('{"name": "wait"}', False),
    ],
)
def test_only_a_call_of_a_tool_with_its_arguments(call, fits):
    assert is_let_through(CallStyle.HERMES, f"<tool_call>\n{call}\n</tool_call>") is fits
    assert is_let_through(CallStyle.LLAMA3, call.replace("arguments", "parameters")) is fits


def test_nothing_is_said_beside_the_call():
    call = '{"name": "wait", "arguments": {}}'
    assert not is_let_through(CallStyle.HERMES, f"Well: <tool_call>\n{call}\n</tool_call>")
    assert not is_let_through(CallStyle.HERMES, call)


@pytest.mark.parametrize("fits", [True, False])
def test_where_calls_are_free_text_is_and_a_call_is_held_to_its_tool(fits):
    def lets(style: CallStyle, text: str) -> bool:
        return is_let_through(style, text, open_grammar)

    look = f'{{"name": "look", "arguments": {{"town": "{"Linz" if fits else "Rom"}"}}}}'
    call = f"<tool_call>\n{look}\n</tool_call>"
    for text in (call, f"Well: {{\n{call}", f"{call}\nThen\n{call}", f"{call} <b>Done.</b>"):
        assert lets(CallStyle.HERMES, text) is fits
    assert lets(CallStyle.LLAMA3, look.replace("arguments", "parameters")) is fits
    for style in CallStyle:
        assert lets(style, "") and lets(style, "No {call}\n<tool> at all.")
    assert not lets(CallStyle.HERMES, "<tool_call>")
    assert not lets(CallStyle.LLAMA3, " {")
