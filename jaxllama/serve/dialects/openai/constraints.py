"""Constraints: from `response_format` and `tool_choice` to knobs that hold an answer to them.

Asked by every endpoint that takes either; the one place where this dialect meets structured output.
"""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from jaxllama.errors import InvalidParameter
from jaxllama.formats import CallStyle, Tool
from jaxllama.text.calls import call_grammar


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
    tools: Sequence[ToolDefinition] = (),
    tool_choice: ToolChoice | None = None,
    style: CallStyle | None = None,
) -> dict[str, object]:
    """The knobs that hold an answer to what was asked."""
    found = of_format(response_format) if response_format is not None else {}
    if tool_choice == "required" or isinstance(tool_choice, NamedTool):
        return found | of_choice(tools, tool_choice, style)
    for index, tool in enumerate(tools):
        if tool.function.strict:
            name = f"tools[{index}].function.strict"
            raise InvalidParameter(
                f"{name} needs tool_choice to be 'required' or to name the tool: calls that a "
                f"model may make or not are not held to their schema",
                name,
            )
    return found


def of_format(wanted: ResponseFormat) -> dict[str, object]:
    """The knobs that hold an answer to a format."""
    match wanted.type:
        case "text":
            return {}
        case "json_object":
            return {"json_object": True}
        case _:
            schema = wanted.json_schema.schema if wanted.json_schema is not None else None
            if schema is None:
                name = "response_format.json_schema"
                raise InvalidParameter(f"{name} has no schema; send one", name)
            return {"json_schema": schema}


def of_choice(
    tools: Sequence[ToolDefinition], choice: ToolChoice, style: CallStyle | None
) -> dict[str, object]:
    """The knobs that make an answer a call."""
    name = choice.function.name if isinstance(choice, NamedTool) else None
    allowed = [as_tool(tool) for tool in tools if name in (None, tool.function.name)]
    if not allowed:
        raise InvalidParameter(
            f"tool_choice is {name or choice!r:.100}, but tools has none such; send it there",
            "tool_choice",
        )
    if style is None:
        raise InvalidParameter(
            "tool_choice asks for a call, but this model's prompt format knows no tools; choose "
            "another model or format, such as chatml",
            "tool_choice",
        )
    return {"grammar": call_grammar(style, allowed)}


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
