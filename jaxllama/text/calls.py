"""Calls as a grammar: what an answer must look like that has to be a tool call.

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
SHAPES = {  # the name of the arguments, and a Lark rule around a call
    CallStyle.HERMES: ("arguments", r'start: "<tool_call>\n" call "\n</tool_call>"'),
    CallStyle.LLAMA3: ("parameters", "start: call"),
}


def call_grammar(style: CallStyle, tools: Sequence[Tool]) -> str:
    """Lark text: a call of one of the tools, the name before the arguments."""
    arguments, start = SHAPES[style]
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
    return f"{start}\ncall: %json {schema}"


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
