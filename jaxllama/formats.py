"""The prompt-format socket: the one file a format author reads.

A format turns messages into the text a model was trained to continue. It never tokenizes and
never adds the begin-of-text token itself unless the model's template spells it out.

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
    """How a model writes down the tools it wants called; `text/tools.py` reads them."""

    HERMES = "hermes"  # <tool_call>{"name": ..., "arguments": {...}}</tool_call>
    LLAMA3 = "llama3"  # {"name": ..., "parameters": {...}} and nothing else


@dataclass(frozen=True)
class ToolCall:
    """A tool the assistant wanted called."""

    name: str
    arguments: Mapping[str, Any]
    id: str = ""

    def as_json(self) -> dict[str, Any]:
        """The form templates expect: arguments as an object, not as text."""
        function = {"name": self.name, "arguments": dict(self.arguments)}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str  # system, user, assistant or tool
    content: str
    tool_calls: tuple[ToolCall, ...] = ()  # of the assistant
    tool_call_id: str = ""  # of a tool: which call this is the result of
    name: str = ""  # of the tool, or of who speaks

    def as_json(self) -> dict[str, Any]:
        """The form in which programs exchange messages; what does not apply is left out."""
        fields: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            fields["tool_calls"] = [call.as_json() for call in self.tool_calls]
        optional = {"tool_call_id": self.tool_call_id, "name": self.name}
        return fields | {key: value for key, value in optional.items() if value}


@dataclass(frozen=True)
class ModelText:
    """What a checkpoint says about its text: what a format is built from."""

    template: str | None = None  # the Jinja chat template that came with the model
    begin: str = ""  # text of the begin-of-text token, "" if the model has none
    end: str = ""  # text of the end-of-text token, "" if the model has none
    name: str = ""
    special: frozenset[str] = frozenset()  # texts of all control tokens
    is_users_template: bool = False  # the template is not the model's own, but a file of the user


class PromptFormat(ABC):
    """Messages in, prompt text out."""

    name: ClassVar[str]
    stop: ClassVar[tuple[str, ...]] = ()  # text that ends an answer, besides the end tokens
    last: ClassVar[bool] = False  # fits anything a little: asked after all formats that are not
    calls: CallStyle | None = None  # how the model calls tools; None: the format knows no tools

    @classmethod
    def suits(cls, model: ModelText) -> bool:
        """Whether this format is the right default for the model; asked in order of name.

        Leave models that bring a template to the template, unless they are yours for certain.
        """
        del model
        return False

    @classmethod
    def for_model(cls, model: ModelText) -> Self:
        """Build the format for a model; formats without options ignore it."""
        del model
        return cls()

    @abstractmethod
    def render(self, messages: Sequence[Message], *, answer: bool = True) -> str:
        """The prompt text; with `answer` it ends where the assistant must begin to speak."""

    def render_tools(
        self, messages: Sequence[Message], tools: Sequence[Tool], *, answer: bool = True
    ) -> str:
        """Like `render`, and tells the model which tools it may call.

        Asked only of formats that set `calls`; their `render` also shows calls and results.
        """
        del messages, tools, answer
        raise TemplateError(f"prompt format {self.name!r} knows no tools; send none")


def choose_format(formats: Mapping[str, type[PromptFormat]], model: ModelText) -> PromptFormat:
    """The first of the installed formats that suits the model, built for it."""
    for name in sorted(formats, key=lambda name: (formats[name].last, name)):
        if formats[name].suits(model):
            return formats[name].for_model(model)
    raise BrokenPlugin(
        f"no prompt format suits this model; installed: {', '.join(sorted(formats)) or 'none'}"
    )
