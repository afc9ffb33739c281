"""The prompt-format socket: the one file a format author reads.

A format renders messages as the prompt text that a model was trained to continue. A format never
tokenizes. It adds the begin-of-text token only if the model's template spells it out.

    class ChatMl(PromptFormat):
        '''<|im_start|>role ... <|im_end|>'''

        name = "chatml"
        stop = ("<|im_end|>",)

        def render(self, messages: Sequence[Message]) -> str: ...
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Self

from jaxllama.errors import BrokenPlugin, TemplateError

Tool = Mapping[str, Any]  # {"type": "function", "function": {"name", "description", "parameters"}}


class CallStyle(StrEnum):
    """The syntax in which a model writes tool calls; `text/tools.py` parses it."""

    HERMES = "hermes"  # <tool_call>{"name": ..., "arguments": {...}}</tool_call>
    LLAMA3 = "llama3"  # {"name": ..., "parameters": {...}} and nothing else


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool, as the assistant requested it."""

    name: str
    arguments: Mapping[str, Any]
    id: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the JSON form that templates expect: arguments as an object, not as text."""
        function = {"name": self.name, "arguments": dict(self.arguments)}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(frozen=True)
class Message:
    """One message of a conversation."""

    role: str  # system, user, assistant or tool
    content: str
    tool_calls: tuple[ToolCall, ...] = ()  # only for role assistant
    tool_call_id: str = ""  # only for role tool: the id of the call that this message answers
    name: str = ""  # name of the tool or of the speaker
    reasoning: str = ""  # only for role assistant: its thoughts before `content`

    def as_json(self) -> dict[str, Any]:
        """Return the message as JSON, as chat APIs exchange it; omit empty optional fields."""
        fields: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            fields["tool_calls"] = [call.as_json() for call in self.tool_calls]
        optional = {
            "tool_call_id": self.tool_call_id,
            "name": self.name,
            "reasoning_content": self.reasoning,
        }
        return fields | {key: value for key, value in optional.items() if value}


@dataclass(frozen=True)
class ModelText:
    """The facts in a checkpoint that a format is built from: chat template and control tokens."""

    template: str | None = None  # the Jinja chat template of the model, or of the user
    begin: str = ""  # text of the begin-of-text token, "" if the model has none
    end: str = ""  # text of the end-of-text token, "" if the model has none
    name: str = ""  # name of the model
    special: frozenset[str] = frozenset()  # texts of all control tokens
    is_users_template: bool = False  # True: `template` comes from a file of the user


class PromptFormat(ABC):
    """The base of prompt formats: renders messages as prompt text."""

    name: ClassVar[str]
    stop: ClassVar[tuple[str, ...]] = ()  # texts that end an answer, besides the end tokens
    last: ClassVar[bool] = False  # True: a fallback; `suits` is asked after all other formats
    calls: CallStyle | None = None  # syntax of tool calls; None: the format does not support tools
    thinks: bool = False  # True: answers may begin with thoughts, in <think> and </think>

    @classmethod
    def suits(cls, model: ModelText) -> bool:
        """Say whether this format is the right default for the model.

        Formats are asked in the order of their names, those with `last` after all others. A format
        should return False for a model that has its own template, unless it is certainly right for
        this model.
        """
        del model
        return False

    @classmethod
    def for_model(cls, model: ModelText) -> Self:
        """Build the format for a model; a format without options ignores `model`."""
        del model
        return cls()

    @abstractmethod
    def render(self, messages: Sequence[Message], *, answer: bool = True) -> str:
        """Return the prompt text of `messages`.

        With `answer`, the text ends where the assistant's next message starts.
        """

    def render_tools(
        self, messages: Sequence[Message], tools: Sequence[Tool], *, answer: bool = True
    ) -> str:
        """Return prompt text that has `messages` and describes the `tools` that the model may call.

        With `answer`, the text ends where the assistant's next message starts. Called only on
        formats that set `calls`; the `render` of these formats must also show tool calls and tool
        results.
        """
        del messages, tools, answer
        raise TemplateError(f"prompt format {self.name!r} knows no tools; send none")


def choose_format(formats: Mapping[str, type[PromptFormat]], model: ModelText) -> PromptFormat:
    """Build the first installed format that suits the model; raise BrokenPlugin if none does."""
    for name in sorted(formats, key=lambda name: (formats[name].last, name)):
        if formats[name].suits(model):
            return formats[name].for_model(model)
    raise BrokenPlugin(
        f"no prompt format suits this model; installed: {', '.join(sorted(formats)) or 'none'}"
    )
