"""Tool-call grammars: the form of an answer that must be a tool call, or may contain one.

Used by the server's dialects. The opposite of `tools.py`, which parses calls. Knows how models
write calls and how tools are described; compiles nothing.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jaxllama.formats import CallStyle, Tool

# `x-guidance` of the grammar: spacing as `json.dumps` writes it, and unsupported keywords fail.
SPACING = {
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,
    "lenient": False,
}
HERMES_CALL = r'"\n" call "\n</tool_call>"'
SHAPES = {  # the name of the arguments, and a Lark rule around a call
    CallStyle.HERMES: ("arguments", rf'start: "<tool_call>" {HERMES_CALL}'),
    CallStyle.LLAMA3: ("parameters", "start: call"),
}
OPEN = {  # the rules for answers that may be text, or text with calls
    CallStyle.HERMES: rf"""start: called* TEXT
called: opener {HERMES_CALL}
opener[lazy]: TEXT "<tool_call>"
TEXT: /(.|\n)*/""",
    CallStyle.LLAMA3: r"""start: call | TEXT
TEXT: /([ \t\r\n]*[^{ \t\r\n](.|\n)*)?/""",
}


def call_grammar(style: CallStyle, tools: Sequence[Tool]) -> str:
    """Return a Lark grammar for exactly one call of one of `tools`, written in `style`.

    In the JSON of the call, the name comes before the arguments.
    """
    _, start = SHAPES[style]
    return f"{start}\n{call_rule(style, tools)}"


def open_grammar(style: CallStyle, tools: Sequence[Tool]) -> str:
    """Return a Lark grammar for an answer that is free text, calls of `tools`, or both.

    Text that starts like a call in `style` must be a complete, valid call.
    """
    return f"{OPEN[style]}\n{call_rule(style, tools)}"


def call_rule(style: CallStyle, tools: Sequence[Tool]) -> str:
    """Return the Lark rule `call`: the JSON object of a call of a tool in `tools`, in `style`."""
    arguments, _ = SHAPES[style]
    calls = []
    for index, tool in enumerate(tools):
        function = tool["function"]
        place = f"#/anyOf/{index}/properties/{arguments}"
        schema = move_references(function.get("parameters") or {"type": "object"}, place)
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": function["name"]}, arguments: schema},
                "required": ["name", arguments],
                "additionalProperties": False,
            }
        )
    schema = json.dumps({"anyOf": calls, "x-guidance": SPACING}, ensure_ascii=False)
    return f"call: %json {schema}"


def move_references(schema: Any, place: str) -> Any:
    """Return a copy of a JSON schema for use inside another schema, at JSON pointer `place`.

    Every local `$ref` in the copy gets `place` in front of its path.
    """
    if isinstance(schema, list):
        return [move_references(each, place) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    found = {key: move_references(value, place) for key, value in schema.items()}
    reference = found.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        found["$ref"] = place + reference[1:]
    return found
