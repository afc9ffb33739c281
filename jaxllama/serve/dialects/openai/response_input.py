"""Input of responses: items of OpenAI's newer API as messages of a conversation.

Part of the OpenAI dialect. An assistant's message, its calls and its thoughts are three items there
and one message here.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from jaxllama.errors import InvalidParameter
from jaxllama.serve.answering.constraints import (
    Function,
    NamedFunction,
    NamedTool,
    ToolChoice,
    ToolDefinition,
)
from jaxllama.serve.dialects.openai.response_shapes import (
    FunctionTool,
    InputItem,
    NamedFunctionTool,
    ResponseToolChoice,
)

Turn = dict[str, Any]


def turns_of(items: str | Sequence[InputItem]) -> list[Turn]:
    """Convert the input of a /v1/responses request to messages of a conversation, in order.

    A string becomes one message of the user. Items of the assistant that follow each other, such as
    text and tool calls, can become one message.
    """
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    turns: list[Turn] = []
    for index, item in enumerate(items):
        add_item(turns, item, f"input[{index}]")
    return turns


def add_item(turns: list[Turn], item: InputItem, where: str) -> None:
    """Append an input item to a conversation, as a new message or as part of the last one.

    An item of the assistant, such as a tool call, can extend the assistant's message at the end.
    `where` is the path of the item in the body, for errors.
    """
    match item.type:
        case "message":
            role = needed(item, "role", where)
            content = msgspec.to_builtins(needed(item, "content", where))
            if role == "assistant":
                turn = assistant_turn(turns)
                if turn["content"] or "tool_calls" in turn:
                    turns.append({"role": "assistant", "content": content})
                else:
                    turn["content"] = content
            else:
                role = "system" if role == "developer" else role
                turns.append({"role": role, "content": content})
        case "reasoning":
            parts = item.content if isinstance(item.content, list) else item.summary or []
            text = "".join(part.text or "" for part in parts)
            if text:
                turns.append({"role": "assistant", "content": "", "reasoning_content": text})
        case "function_call":
            function = {
                "name": needed(item, "name", where),
                "arguments": needed(item, "arguments", where),
            }
            call = {"id": needed(item, "call_id", where), "type": "function", "function": function}
            assistant_turn(turns).setdefault("tool_calls", []).append(call)
        case "function_call_output":
            content = msgspec.to_builtins(needed(item, "output", where))
            call_id = needed(item, "call_id", where)
            turns.append({"role": "tool", "tool_call_id": call_id, "content": content})


def assistant_turn(turns: list[Turn]) -> Turn:
    """Return the assistant's message at the end of a conversation; append one if there is none."""
    if not turns or turns[-1]["role"] != "assistant":
        turns.append({"role": "assistant", "content": ""})
    return turns[-1]


def needed(item: InputItem, name: str, where: str) -> Any:
    """Return the field `name` of an item; raise InvalidParameter if it is missing.

    `where` is the path of the item in the body, for the error.
    """
    value = getattr(item, name)
    if value is None:
        raise InvalidParameter(
            f"{where}.{name} is missing; an item of type {item.type} needs it", f"{where}.{name}"
        )
    return value


def tools_of(tools: Sequence[FunctionTool]) -> list[ToolDefinition]:
    """Convert tools to the form that all HTTP APIs of the server share.

    Raises InvalidParameter for tools that the server itself would have to run.
    """
    found = []
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        if tool.type != "function":
            raise InvalidParameter(
                f"{where}.type is {tool.type[:100]!r}; this server runs no tools itself: send "
                f"tools of type function",
                f"{where}.type",
            )
        if tool.name is None:
            raise InvalidParameter(f"{where}.name is missing", f"{where}.name")
        function = Function(tool.name, tool.description, tool.parameters, tool.strict)
        found.append(ToolDefinition(function))
    return found


def choice_of(choice: ResponseToolChoice | None) -> ToolChoice | None:
    """Convert a tool choice to the form that all HTTP APIs of the server share; None stays None."""
    if isinstance(choice, NamedFunctionTool):
        return NamedTool(NamedFunction(choice.name))
    return choice
