"""Conversations in the form that OpenAI's API gave them, and the prompt format they get.

Used by every dialect whose messages have this form.
"""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from aiohttp import web

from jaxllama.formats import Tool
from jaxllama.messages import Messages
from jaxllama.serve.answering.constraints import FunctionName
from jaxllama.serve.keys import CALLER
from jaxllama.service import Model


class TextPart(msgspec.Struct):
    """A part of a message; only text parts are supported."""

    type: str
    text: str | None = None


class PastFunction(msgspec.Struct, forbid_unknown_fields=True):
    """A called function, with its arguments as JSON text."""

    name: FunctionName
    arguments: str


class PastCall(msgspec.Struct, forbid_unknown_fields=True):
    """A tool call in an earlier message."""

    function: PastFunction
    id: str | None = None
    type: Literal["function"] = "function"
    index: int | None = None  # accepted because clients send back the calls of a stream


class Turn(msgspec.Struct, forbid_unknown_fields=True):
    """One message of the request's conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[PastCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None  # of an earlier answer, for templates that show it
    refusal: str | None = None  # this and the next two: clients send our answers back
    annotations: list[Any] | None = None
    audio: None = None


def chosen_format(
    request: web.Request,
    model: Model,
    name: str | None,
    messages: Messages,
    tools: Sequence[Tool],
) -> str | None:
    """Return the name of the prompt format for a conversation; None: the model's own format.

    The result is `name` if given. If the conversation needs tools and the model's own format has
    none, the result is another format, which is also named in the response headers.
    """
    chosen = model.intake.format_for(name, messages, tools)
    if chosen != name:
        request[CALLER].notes["format"] = str(chosen)
    return chosen


def as_turn(turn: Turn) -> dict[str, Any]:
    """Convert a message to the dict that chat templates take; the role developer becomes system."""
    fields: dict[str, Any] = msgspec.to_builtins(turn)
    return fields | {"role": "system" if turn.role == "developer" else turn.role}
