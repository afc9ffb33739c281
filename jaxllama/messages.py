"""Messages: conversations as Message objects or JSON, checked and rendered as prompt text.

Used by the intake, the CLI and the server, so that all accept the same input. Knows roles, texts
and tools; must not know tokens or HTTP.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from itertools import chain, takewhile
from typing import Any

from jaxllama.errors import InvalidParameter, TemplateError
from jaxllama.formats import Message, PromptFormat, Tool, ToolCall

Messages = Sequence[Message | Mapping[str, Any]]
GuardText = Callable[[str], str]


class ContextOverflow(StrEnum):
    """The treatment of a conversation that is longer than the context."""

    ERROR = "error"  # it is refused
    DROP_OLDEST = "drop_oldest"  # its oldest turns are left out; the system message stays
    KEEP_FIXED = "keep_fixed"  # the same, but its first turn stays as well


class Ending(StrEnum):
    """The place where the rendered text of a conversation ends."""

    ANSWER = "answer"  # where the assistant's next message starts
    LAST = "last"  # inside the last message, which the model continues
    CLOSED = "closed"  # after the last message


def render(
    prompt_format: PromptFormat, messages: Sequence[Message], tools: Sequence[Tool], ending: Ending
) -> str:
    """Render a conversation as prompt text that ends where `ending` says.

    It ends where the assistant's answer begins, inside the last message, or after the last message.
    `tools` are those that the model may call. Raises InvalidParameter for an empty conversation, or
    for tools that the format cannot show.
    """
    if not messages:
        raise InvalidParameter("messages is empty; expected at least one message", "messages")
    if prompt_format.calls is None:
        refuse_tools(prompt_format, messages, tools)
    shown = messages
    if ending is Ending.LAST and not messages[-1].content:
        shown, ending = messages[:-1], Ending.ANSWER
    answer = ending is Ending.ANSWER
    if tools:
        text = prompt_format.render_tools(shown, tools, answer=answer)
    else:
        text = prompt_format.render(shown, answer=answer)
    return cut_after(text, messages[-1].content) if ending is Ending.LAST else text


def refuse_tools(
    prompt_format: PromptFormat, messages: Sequence[Message], tools: Sequence[Tool]
) -> None:
    """Raise InvalidParameter if the conversation has tools, tool calls or tool results.

    For a `prompt_format` that cannot show them; the error names it.
    """
    what = "tools" if tools else "messages"
    if needs_tools(messages, tools):
        raise InvalidParameter(
            f"{what} has tools, but prompt format {prompt_format.name!r} of this model knows none; "
            f"choose a model or a format that does, such as chatml",
            what,
        )


def needs_tools(messages: Messages, tools: Sequence[Tool]) -> bool:
    """Say whether a conversation has tools, tool calls or tool results."""
    return bool(tools) or any(
        message.tool_calls or message.role == "tool"
        if isinstance(message, Message)
        else message.get("tool_calls") or message.get("role") == "tool"
        for message in messages
    )


def cut_after(text: str, content: str) -> str:
    """Cut a rendered conversation after the last message's `content`, and return it.

    Raises TemplateError if `text` does not contain the content as written.
    """
    for last in (content, content.rstrip(), content.strip()):  # templates trim
        place = text.rfind(last) if last else -1
        if place >= 0:
            return text[: place + len(last)]
    raise TemplateError(
        "the last message cannot be continued: the prompt format does not show it as written"
    )


def guard_message(message: Message, guard: GuardText) -> Message:
    """Return a copy of the message with `guard` applied to every text in it.

    `guard` changes a text so that no part of it is read as a control token.
    """
    return Message(
        role=guard(message.role),
        content=guard(message.content),
        tool_calls=tuple(
            ToolCall(guard(call.name), guard_json(call.arguments, guard), guard(call.id))
            for call in message.tool_calls
        ),
        tool_call_id=guard(message.tool_call_id),
        name=guard(message.name),
        reasoning=guard(message.reasoning),
    )


def guard_json(value: Any, guard: GuardText) -> Any:
    """Return a copy of a JSON value with `guard` applied to every text in it, keys included."""
    if isinstance(value, str):
        return guard(value)
    if isinstance(value, Mapping):
        return {guard(key): guard_json(item, guard) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [guard_json(item, guard) for item in value]
    return value


def as_messages(messages: Messages) -> list[Message]:
    """Convert a conversation from its JSON form; raise InvalidParameter if it is malformed."""
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence):
        raise InvalidParameter(
            f"messages is {messages!r:.100}; expected a list of "
            f'{{"role": "user", "content": TEXT}}',
            "messages",
        )
    return [as_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def with_system(messages: Messages, text: str) -> list[Message]:
    """Return the conversation with the system message `text` at its start.

    If the conversation starts with a system message, that one is replaced.
    """
    turns = as_messages(messages)
    begins = bool(turns) and turns[0].role == "system"
    return [Message("system", text), *turns[begins:]]


def overflow_named(name: str) -> ContextOverflow:
    """Return the ContextOverflow with this name; raise InvalidParameter if there is none."""
    try:
        return ContextOverflow(name)
    except ValueError as error:
        raise InvalidParameter(
            f"context_overflow is {name!r:.100}; expected one of {', '.join(ContextOverflow)}",
            "context_overflow",
        ) from error


def split_turns(messages: Messages) -> tuple[list[Message], list[list[Message]]]:
    """Split a conversation into its system messages and its turns.

    A turn is a message of the user with all messages after it, up to the user's next one.
    """
    rest = as_messages(messages)
    system = list(takewhile(lambda message: message.role == "system", rest))
    turns: list[list[Message]] = []
    for message in rest[len(system) :]:
        if message.role == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    return system, turns


def prune(messages: Messages, turns: int, *, keep_first: bool = False) -> list[Message]:
    """Return the conversation without its oldest `turns` turns; the last one always stays.

    The system messages stay, too, and with `keep_first` also the first turn.
    """
    system, every = split_turns(messages)
    fixed = every[:keep_first]
    left = every[keep_first:]
    left = left[min(turns, max(0, len(left) - 1)) :]
    return [*system, *chain.from_iterable((*fixed, *left))]


def rewind(messages: Messages, turns: int = 1) -> list[Message]:
    """Return the conversation without its last `turns` turns; the system messages stay."""
    system, every = split_turns(messages)
    return [*system, *chain.from_iterable(every[: max(0, len(every) - turns)])]


def as_message(message: Message | Mapping[str, Any], where: str = "messages") -> Message:
    """Convert one message from its JSON form; its content may be a list of text parts.

    `where` names the message in errors.
    """
    if isinstance(message, Message):
        return message
    if not isinstance(message, Mapping):
        raise InvalidParameter(
            f'{where} is {message!r:.100}; expected {{"role": "user", "content": TEXT}}', where
        )
    calls = message.get("tool_calls") or ()
    if not isinstance(calls, list | tuple):
        raise InvalidParameter(f"{where} has tool_calls {calls!r:.100}; expected a list", where)
    return Message(
        role=text_of(message, "role", where),
        content=content_of(message.get("content"), where, optional=bool(calls)),
        tool_calls=tuple(as_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)),
        tool_call_id=text_of(message, "tool_call_id", where, optional=True),
        name=text_of(message, "name", where, optional=True),
        reasoning=text_of(message, "reasoning_content", where, optional=True),
    )


def content_of(content: object, where: str, *, optional: bool) -> str:
    """Return the content of a message as one string; join a list of text parts.

    `optional`: None is accepted and gives "". `where` names the message in errors.
    """
    if content is None and optional:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise InvalidParameter(f"{where} has content {content!r:.100}; expected text", where)
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in ("text", "input_text", "output_text"):
            raise InvalidParameter(
                f"{where} has a content part of type {kind!r:.100}; this model reads text only",
                where,
            )
        texts.append(text_of(part, "text", f"{where}.content"))
    return "".join(texts)


def as_call(call: object, where: str) -> ToolCall:
    """Convert a tool call from its JSON form; `arguments` may be an object or its JSON text.

    `where` names the call in errors.
    """
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        raise InvalidParameter(f'{where} is {call!r:.100}; expected {{"id", "function"}}', where)
    name = text_of(function, "name", f"{where}.function")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise InvalidParameter(
                f"{where} has arguments that are no JSON: {error}", where
            ) from error
    if not isinstance(arguments, Mapping):
        raise InvalidParameter(
            f"{where} has arguments {arguments!r:.100}; expected an object", where
        )
    return ToolCall(name, arguments, text_of(call, "id", where, optional=True))


def text_of(fields: Mapping[str, Any], name: str, where: str, *, optional: bool = False) -> str:
    """Return the text in the field `name`; "" if it is missing and `optional`.

    Raises InvalidParameter if it is no text; `where` names the object in the error.
    """
    value = fields.get(name)
    if value is None and optional:
        return ""
    if not isinstance(value, str):
        raise InvalidParameter(f"{where} has {name} {value!r:.100}; expected text", where)
    return value
