"""Constraints: from `response_format` and `tool_choice` to knobs that hold an answer to them.

Asked by every endpoint that takes either; the one place where this dialect meets structured output.
"""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from jaxllama.errors import InvalidParameter
from jaxllama.formats import Tool


class JsonSchema(msgspec.Struct, forbid_unknown_fields=True):
    """A JSON schema, and what it is called."""

    name: str
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, forbid_unknown_fields=True):
    """What an answer has to look like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class NamedFunction(msgspec.Struct, forbid_unknown_fields=True):
    """A function by its name."""

    name: str


class NamedTool(msgspec.Struct, forbid_unknown_fields=True):
    """A tool by its name."""

    function: NamedFunction
    type: Literal["function"] = "function"


class Function(msgspec.Struct, forbid_unknown_fields=True):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolDefinition(msgspec.Struct, forbid_unknown_fields=True):
    """A tool that the model may call."""

    function: Function
    type: Literal["function"] = "function"


ToolChoice = Literal["none", "auto", "required"] | NamedTool


def knobs_for(
    response_format: ResponseFormat | None,
    tools: Sequence[ToolDefinition],
    tool_choice: ToolChoice | None,
) -> dict[str, object]:
    """The knobs that hold an answer to what was asked."""
    if response_format is not None and response_format.type != "text":
        raise InvalidParameter(
            f"response_format {response_format.type!r} is not supported yet; expected 'text'",
            "response_format",
        )
    if tool_choice == "required" or isinstance(tool_choice, NamedTool):
        raise InvalidParameter(
            "tool_choice cannot force a call yet; expected 'auto' or 'none'", "tool_choice"
        )
    for index, tool in enumerate(tools):
        if tool.function.strict:
            name = f"tools[{index}].function.strict"
            raise InvalidParameter(f"{name} is not supported yet; leave it out", name)
    return {}


def as_tool(tool: ToolDefinition) -> Tool:
    """A tool as prompt formats show it: as it was written, without what is left out."""
    function = tool.function
    fields = {
        "name": function.name,
        "description": function.description,
        "parameters": function.parameters,
    }
    given = {key: value for key, value in fields.items() if value is not None}
    return {"type": "function", "function": given}
