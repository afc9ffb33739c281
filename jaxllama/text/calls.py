"""Calls as a grammar: what an answer must look like that has to be a tool call, or may be one.

Asked by the server's dialects; the other direction of `tools.py`, which reads calls. Knows how
models spell calls and what tools look like; compiles nothing.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jaxllama.formats import CallStyle, Tool

# The grammar's `x-guidance`: as `json.dumps` writes, and a keyword that cannot be kept is refused.
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
OPEN = {  # the same where an answer may be text, or call between texts
    CallStyle.HERMES: rf"""start: called* TEXT
called: opener {HERMES_CALL}
opener[lazy]: TEXT "<tool_call>"
TEXT: /(.|\n)*/""",
    CallStyle.LLAMA3: r"""start: call | TEXT
TEXT: /([ \t\r\n]*[^{ \t\r\n](.|\n)*)?/""",
}


def call_grammar(style: CallStyle, tools: Sequence[Tool]) -> str:
    """Lark text: a call of one of the tools, the name before the arguments."""
    _, start = SHAPES[style]
    return f"{start}\n{call_rule(style, tools)}"


def open_grammar(style: CallStyle, tools: Sequence[Tool]) -> str:
    """Lark text: any text, but whatever begins like a call is one of one of the tools."""
    return f"{OPEN[style]}\n{call_rule(style, tools)}"


def call_rule(style: CallStyle, tools: Sequence[Tool]) -> str:
    """The rule `call`."""
    arguments, _ = SHAPES[style]
    calls = []
    for index, tool in enumerate(tools):
        function = tool["function"]
        place = f"#/anyOf/{index}/properties/{arguments}"
        schema = moved(function.get("parameters") or {"type": "object"}, place)
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


def moved(schema: Any, place: str) -> Any:
    """A schema whose references hold at another place of a larger one."""
    if isinstance(schema, list):
        return [moved(each, place) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    found = {key: moved(value, place) for key, value in schema.items()}
    reference = found.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        found["$ref"] = place + reference[1:]
    return found
