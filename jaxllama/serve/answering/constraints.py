"""Constraints: converts `response_format` and `tool_choice` to knobs that constrain the answer.

Used by every endpoint that accepts either field; the only part of this dialect that knows
structured output.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec

from jaxllama.errors import InvalidParameter
from jaxllama.formats import CallStyle, Tool
from jaxllama.text.calls import call_grammar, open_grammar
from jaxllama.text.tools import FUNCTION_NAME

FunctionName = Annotated[str, msgspec.Meta(pattern=FUNCTION_NAME)]


class JsonSchema(msgspec.Struct, forbid_unknown_fields=True):
    """A JSON schema and its name."""

    name: str
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, forbid_unknown_fields=True):
    """Form that the answer must have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class NamedFunction(msgspec.Struct, forbid_unknown_fields=True):
    """The name of a function."""

    name: FunctionName


class NamedTool(msgspec.Struct, forbid_unknown_fields=True):
    """A tool choice: the name of the function to call."""

    function: NamedFunction
    type: Literal["function"] = "function"


class Function(msgspec.Struct, forbid_unknown_fields=True):
    """A function that the model may call."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolDefinition(msgspec.Struct, forbid_unknown_fields=True):
    """A tool that the model may call."""

    function: Function
    type: Literal["function"] = "function"


ToolChoice = Literal["none", "auto", "required"] | NamedTool


@dataclass(frozen=True)
class FormKnobs:
    """Knobs that constrain an answer, and the request fields that they were made of."""

    knobs: Mapping[str, object] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

    def merge(self, knobs: Mapping[str, object]) -> dict[str, object]:
        """Return the request's `knobs` (parameters) with the constraints of this object added.

        Raises InvalidParameter if `knobs` sets one of the same knobs already.
        """
        for name in self.knobs:
            if knobs.get(name) is not None:
                raise InvalidParameter(
                    f"{self.names[name]} and {name} are given together; an answer can have one "
                    f"form: send one of them",
                    name,
                )
        return {**knobs, **self.knobs}


def knobs_of_request(
    response_format: ResponseFormat | None,
    tools: Sequence[ToolDefinition] = (),
    tool_choice: ToolChoice | None = None,
    style: CallStyle | None = None,
) -> FormKnobs:
    """Return the knobs (request parameters) that constrain an answer to a form or to tool calls.

    `response_format` is the form. Tools constrain the answer if `tool_choice` demands a call, or if
    one of them is strict. `style` is the syntax of calls in the model's prompt format; None if it
    has none. Raises InvalidParameter if `response_format` and the tools both constrain the answer.
    """
    form = knobs_of_format(response_format) if response_format is not None else FormKnobs()
    if tool_choice == "required" or isinstance(tool_choice, NamedTool):
        calls = knobs_of_tool_choice(tools, tool_choice, style)
    elif any(tool.function.strict for tool in tools) and style is not None:
        calls = knobs_of_strict_tools(tools, style)
    else:
        return form
    if form.knobs:
        name = "tool_choice" if tool_choice not in (None, "auto") else "tools"
        raise InvalidParameter(
            f"response_format and {name} both say what the answer looks like; send one of them "
            f"(tools without strict leave it free)",
            "response_format",
        )
    return calls


def knobs_of_format(format_: ResponseFormat) -> FormKnobs:
    """Return the knobs (request parameters) that constrain an answer to a `response_format`."""
    schema = format_.json_schema.schema if format_.json_schema is not None else None
    return knobs_of_form(
        format_.type, schema, "response_format", "response_format.json_schema.schema"
    )


def knobs_of_form(
    kind: Literal["text", "json_object", "json_schema"],
    schema: Mapping[str, Any] | None,
    name: str,
    schema_name: str,
) -> FormKnobs:
    """Return the knobs that constrain an answer to plain text, any JSON object, or a JSON schema.

    Knobs are request parameters; `kind` says which form. For error messages, `name` is the
    request's field that chose the form and `schema_name` the path of the field that holds `schema`.
    """
    match kind:
        case "text":
            return FormKnobs()
        case "json_object":
            return FormKnobs({"json_object": True}, {"json_object": name})
        case "json_schema":
            if schema is None:
                raise InvalidParameter(f"{schema_name} is missing; send a schema", schema_name)
            return FormKnobs({"json_schema": schema}, {"json_schema": schema_name})


def knobs_of_tool_choice(
    tools: Sequence[ToolDefinition], choice: ToolChoice, style: CallStyle | None
) -> FormKnobs:
    """Return a grammar knob that makes the answer a call of the chosen tool.

    A knob is a request parameter. The choice "required" allows any of the tools. Raises
    InvalidParameter if `tools` lacks the tool, or if `style` is None: the prompt format has no
    syntax for calls.
    """
    name = choice.function.name if isinstance(choice, NamedTool) else None
    allowed = [i for i, tool in enumerate(tools) if name in (None, tool.function.name)]
    if not allowed:
        raise InvalidParameter(
            f"tool_choice is {name or choice!r:.100}, but tools has no such tool; add it to tools",
            "tool_choice",
        )
    if style is None:
        raise InvalidParameter(
            "tool_choice asks for a call, but this model's prompt format knows no tools; choose "
            "another model or format, such as chatml",
            "tool_choice",
        )
    grammar = call_grammar(style, [as_tool(tools[index]) for index in allowed])
    return FormKnobs({"grammar": grammar}, {"grammar": schema_path(allowed)})


def knobs_of_strict_tools(tools: Sequence[ToolDefinition], style: CallStyle) -> FormKnobs:
    """Return a grammar knob that allows any text, but only calls that fit strict tools' schemas.

    A knob is a request parameter. `style` is the syntax of calls in the prompt format.
    """
    strict = [index for index, tool in enumerate(tools) if tool.function.strict]
    shown = [as_tool(tool) for tool in tools]
    for index in set(range(len(tools))) - set(strict):
        shown[index]["function"].pop("parameters", None)
    return FormKnobs({"grammar": open_grammar(style, shown)}, {"grammar": schema_path(strict)})


def schema_path(tools: Sequence[int]) -> str:
    """Return the name of the request field that holds the schemas of some tools, for errors.

    `tools` are the tools' indexes in the request.
    """
    return f"tools[{tools[0]}].function.parameters" if len(tools) == 1 else "tools"


def as_tool(tool: ToolDefinition) -> Tool:
    """Convert a tool of a request to the dict that prompt formats take, without null fields."""
    function = tool.function
    fields = {
        "name": function.name,
        "description": function.description,
        "parameters": function.parameters,
    }
    given = {key: value for key, value in fields.items() if value is not None}
    return {"type": "function", "function": given}
