"""Tool calls are found in an answer however it falls into pieces."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxllama.formats import CallStyle
from jaxllama.text.tools import MAX_HEAD, CallDelta, ToolParser

HERMES, LLAMA3 = CallStyle.HERMES, CallStyle.LLAMA3


def parsed(style: CallStyle, *pieces: str) -> tuple[str, list[tuple[str, str]]]:
    """The text, and the calls as names and JSON text."""
    parser = ToolParser(style)
    told = [piece for part in pieces for piece in parser.push(part)] + parser.flush()
    calls: list[tuple[str, str]] = []
    for piece in told:
        if isinstance(piece, str):
            continue
        if piece.name is not None:
            assert piece.index == len(calls)
            calls.append((piece.name, piece.arguments))
        else:
            assert piece.index == len(calls) - 1
            calls[-1] = (calls[-1][0], calls[-1][1] + piece.arguments)
    assert parser.calls == len(calls)
    return "".join(piece for piece in told if isinstance(piece, str)), calls


CALL = '{"name": "f", "arguments": {"x": "}\\"{", "y": [1, {"z": null}]}}'
ARGUMENTS = '{"x": "}\\"{", "y": [1, {"z": null}]}'
ANSWERS = {
    "no call": (HERMES, "Just text < <tool", "Just text < <tool", []),
    "one call": (HERMES, f"<tool_call>\n{CALL}\n</tool_call>", "", [("f", ARGUMENTS)]),
    "not closed": (HERMES, f"<tool_call>{CALL}", "", [("f", ARGUMENTS)]),
    "text before": (
        HERMES,
        f"Let me see.\n\n<tool_call>{CALL}</tool_call>\n",
        "Let me see.",
        [("f", ARGUMENTS)],
    ),
    "two calls": (
        HERMES,
        f'<tool_call>{CALL}</tool_call>\n<tool_call>{{"name": "g", "arguments": {{}}}}</tool_call>',
        "",
        [("f", ARGUMENTS), ("g", "{}")],
    ),
    "text behind": (
        HERMES,
        f"<tool_call>{CALL}</tool_call>\nThere.",
        "\nThere.",
        [("f", ARGUMENTS)],
    ),
    "arguments first": (
        HERMES,
        '<tool_call>{"arguments": {"ü": 1}, "name": "f"}</tool_call>',
        "",
        [("f", '{"ü": 1}')],
    ),
    "no arguments": (HERMES, '<tool_call>{"name": "f"}</tool_call>', "", [("f", "{}")]),
    "no json": (HERMES, "<tool_call>f(1)</tool_call>!", "<tool_call>f(1)</tool_call>!", []),
    "no name": (
        HERMES,
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>',
        [],
    ),
    "cut in the head": (HERMES, '<tool_call>{"name": "f', '<tool_call>{"name": "f', []),
    "cut in the arguments": (
        HERMES,
        '<tool_call>{"name": "f", "arguments": {"x": "a',
        "",
        [("f", '{"x": "a')],
    ),
    "more keys": (
        HERMES,
        '<tool_call>{"name": "f", "arguments": {}, "id": 1}</tool_call>',
        ', "id": 1}</tool_call>',
        [("f", "{}")],
    ),
    "long head": (
        HERMES,
        '<tool_call>{"name": %s"f", "arguments": {}}</tool_call>' % (" " * 2 * MAX_HEAD),
        "",
        [("f", "{}")],
    ),
    "long name": (
        HERMES,
        '<tool_call>{"name": "%s", "arguments": {}}</tool_call>' % ("f" * 65),
        '<tool_call>{"name": "%s", "arguments": {}}</tool_call>' % ("f" * 65),
        [],
    ),
    "llama": (LLAMA3, '{"name": "f", "parameters": {"x": 1}}', "", [("f", '{"x": 1}')]),
    "llama with tag": (
        LLAMA3,
        '<|python_tag|>{"name": "f", "parameters": {}}',
        "",
        [("f", "{}")],
    ),
    "llama twice": (
        LLAMA3,
        '\n{"name": "f", "parameters": {}}; {"name": "g", "arguments": {}}\n',
        "",
        [("f", "{}"), ("g", "{}")],
    ),
    "llama typed": (
        LLAMA3,
        '{"type": "function", "name": "f", "parameters": {"x": "}"}}',
        "",
        [("f", '{"x": "}"}')],
    ),
    "llama says": (LLAMA3, ' Hi {"name": 1}', ' Hi {"name": 1}', []),
    "llama tells json": (LLAMA3, '{"colour": "blue"} ok', '{"colour": "blue"} ok', []),
    "llama tells more": (LLAMA3, '{"name": "Bo", "age": 3} ok', '{"name": "Bo", "age": 3} ok', []),
    "llama then text": (
        LLAMA3,
        '{"name": "f", "parameters": {}} ok',
        " ok",
        [("f", "{}")],
    ),
    "hermes in llama": (LLAMA3, "<tool_call>", "<tool_call>", []),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_split_into_text_and_calls(name):
    style, answer, text, calls = ANSWERS[name]
    assert parsed(style, answer) == (text, calls)


@pytest.mark.parametrize("name", ANSWERS)
def test_character_by_character_is_no_different(name):
    style, answer, text, calls = ANSWERS[name]
    assert parsed(style, *answer) == (text, calls)


CHUNKS = st.lists(
    st.sampled_from(
        [
            *(
                '{"name": "f", "arguments": {',
                '"x": "\\',
                '"}',
                "}",
                "{",
                "</tool_call>",
                " ",
                "\n",
            ),
            *("<tool_call>", "<tool", "_call>", '"', "\\", "text", ";", "<|python", "_tag|>"),
            *('"parameters"', ":", '"name"', ",", '{"', "[", "]", '"type"', "x" * MAX_HEAD),
        ]
    ),
    max_size=25,
)


@settings(deadline=None)
@given(CHUNKS, st.sampled_from(CallStyle))
@example(["<tool_call>", '{"name": "f", "arguments": {', '"x": "\\', '"}', "}"], HERMES)
def test_pieces_do_not_matter(chunks, style):
    whole = parsed(style, "".join(chunks))
    assert parsed(style, *chunks) == whole
    assert parsed(style, *"".join(chunks)) == whole


@settings(deadline=None)
@given(CHUNKS, st.sampled_from(CallStyle))
def test_without_a_call_no_character_is_lost(chunks, style):
    answer = "".join(chunks)
    text, calls = parsed(style, answer)
    if not calls:
        assert text == answer


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text(), st.recursive(st.none() | st.integers() | st.text(), st.lists), max_size=4
    ),
    st.from_regex(r"[a-zA-Z0-9_-]{1,64}", fullmatch=True),
)
def test_every_call_that_was_written_is_read(arguments, name):
    written = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    for style, answer in ((HERMES, f"<tool_call>\n{written}\n</tool_call>"), (LLAMA3, written)):
        text, calls = parsed(style, *answer)
        assert text == ""
        assert [(name, json.loads(text)) for name, text in calls] == [(name, arguments)]


def test_arguments_are_told_as_they_come():
    parser = ToolParser(HERMES)
    assert parser.push('<tool_call>{"name": "f", "arguments": ') == []
    assert parser.push('{"x": ') == [CallDelta(0, "f", ""), CallDelta(0, None, '{"x": ')]
    assert parser.push('"long') == [CallDelta(0, None, '"long')]


def test_text_is_told_at_once():
    assert ToolParser(HERMES).push("Hello") == ["Hello"]
    assert ToolParser(LLAMA3).push("Hello") == ["Hello"]


def test_a_long_answer_takes_time_in_proportion():
    """Counted in characters scanned, not in seconds."""
    scanned = 0

    parser = ToolParser(HERMES)
    parser.push('<tool_call>{"name": "f", "arguments": {"x": "')
    feed = parser._object.feed

    def counting(text: str):
        nonlocal scanned
        scanned += len(text)
        return feed(text)

    parser._object.feed = counting
    for _ in range(10_000):
        parser.push("x" * 10)
    assert scanned == 100_000
