"""Conversion of Anthropic's conversations and tools to the forms of the intake.

A message of blocks becomes several: results of tools have a role of their own.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from jaxllama.errors import InvalidParameter
from jaxllama.messages import Ending
from jaxllama.serve.answering.constraints import (
    Function,
    NamedFunction,
    NamedTool,
    ToolChoice,
    ToolDefinition,
)
from jaxllama.serve.dialects.anthropic.shapes import (
    ConversationParams,
    CustomTool,
    DocumentBlock,
    ImageBlock,
    MessageBlock,
    MessageParam,
    TextBlock,
    ThinkingBlock,
    ToolChoiceParam,
    ToolResultBlock,
    ToolUseBlock,
)

Json = dict[str, Any]


def messages_of(body: ConversationParams) -> list[Json]:
    """Return the system prompt and the conversation as a list of dicts that chat templates take."""
    system = text_of(body.system or "", "system")
    found: list[Json] = [{"role": "system", "content": system}] if system else []
    for index, message in enumerate(body.messages):
        found += turns_of(message, f"messages[{index}]")
    return found


def ending_of(body: ConversationParams) -> Ending:
    """Return how the prompt ends: Ending.LAST if the last message is the assistant's, else ANSWER.

    With LAST, the model continues that message; with ANSWER, it begins a new one.
    """
    if body.messages and body.messages[-1].role == "assistant":
        return Ending.LAST
    return Ending.ANSWER


def turns_of(message: MessageParam, where: str) -> Iterator[Json]:
    """Convert one of Anthropic's messages to chat messages: each tool result, then the rest.

    Every tool result becomes a message of its own. `where` is the path of the message in the body,
    for errors.
    """
    if isinstance(message.content, str):
        yield {"role": message.role, "content": message.content}
        return
    texts: list[str] = []
    calls: list[Json] = []
    thoughts: list[str] = []
    for index, block in enumerate(message.content):
        place = f"{where}.content[{index}]"
        if isinstance(block, ToolResultBlock):
            yield result_of(block, place)
        elif isinstance(block, ToolUseBlock):
            function = {"name": block.name, "arguments": block.input}
            calls.append({"id": block.id, "type": "function", "function": function})
        elif isinstance(block, ThinkingBlock):
            thoughts.append(block.thinking)
        else:
            texts += readable(block, place)
    if texts or calls:
        turn: Json = {"role": message.role, "content": "\n\n".join(texts)}
        if any(thoughts):
            turn["reasoning_content"] = "\n\n".join(thoughts)
        yield turn | ({"tool_calls": calls} if calls else {})


def result_of(block: ToolResultBlock, where: str) -> Json:
    """Convert a tool's result to a chat message; `where` is its path in the body, for errors."""
    text = text_of(block.content or "", f"{where}.content")
    content = f"Error: {text}" if block.is_error else text
    return {"role": "tool", "tool_call_id": block.tool_use_id, "content": content}


def text_of(content: str | Sequence[MessageBlock], where: str) -> str:
    """Return the text of a message: a string as it is, or blocks joined by empty lines.

    `where` is the path of `content` in the body, for errors. Raises InvalidParameter for an image.
    """
    if isinstance(content, str):
        return content
    parts = [readable(block, f"{where}[{index}]") for index, block in enumerate(content)]
    return "\n\n".join(text for part in parts for text in part)


def readable(block: MessageBlock, where: str) -> list[str]:
    """Return the texts of a content block; [] for thoughts; raise InvalidParameter for an image.

    `where` is the path of the block in the body, for errors.
    """
    match block:
        case TextBlock():
            return [block.text]
        case ImageBlock():
            raise InvalidParameter(f"{where} is an image; this model reads text only", where)
        case DocumentBlock():
            if block.source.type != "text" or block.source.data is None:
                raise InvalidParameter(
                    f"{where} is a document of type {block.source.type[:100]!r}; this model reads "
                    f"text only: send a source of type text",
                    where,
                )
            heads = [each for each in (block.title, block.context) if each]
            return ["\n".join([*heads, block.source.data])]
        case _:
            return []


def tools_of(tools: Sequence[CustomTool]) -> list[ToolDefinition]:
    """Convert Anthropic's tools to the form that all HTTP APIs of the server share.

    Raises InvalidParameter for tools that the server itself would have to run.
    """
    found = []
    for index, tool in enumerate(tools):
        if tool.type not in (None, "custom"):
            raise InvalidParameter(
                f"tools[{index}].type is {tool.type!r}; this server runs no tools itself: send "
                f"tools of type custom, with an input_schema",
                f"tools[{index}].type",
            )
        schema = tool.input_schema
        found.append(
            ToolDefinition(Function(tool.name, tool.description, schema, strict=tool.strict))
        )
    return found


def choice_of(choice: ToolChoiceParam | None) -> ToolChoice | None:
    """Convert Anthropic's tool choice to the form that all HTTP APIs of the server share.

    None stays None: the request has no tool choice.
    """
    if choice is None:
        return None
    match choice.type:
        case "any":
            return "required"
        case "tool":
            if choice.name is None:
                raise InvalidParameter(
                    "tool_choice.name is missing; name the tool to call", "tool_choice.name"
                )
            return NamedTool(NamedFunction(choice.name))
        case "auto" | "none":
            return choice.type
