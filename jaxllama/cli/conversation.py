"""A conversation: what was said so far, and how it is asked to go on.

Kept by `jaxllama chat`. Plain data that can be saved; knows no terminal.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxllama.errors import InvalidParameter
from jaxllama.formats import Message
from jaxllama.messages import as_message

if TYPE_CHECKING:
    from jaxllama.llm import LLM
    from jaxllama.streams import Stream

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class PlainText:
    """Continues one long text instead of answering messages."""

    prefix: str = ""  # before what the user says
    postfix: str = ""  # after it

    def render(self, messages: Sequence[Message]) -> str:
        """All that was said, in a row; a system message is what the text begins with."""
        return "".join(
            f"{self.prefix}{each.content}{self.postfix}" if each.role == "user" else each.content
            for each in messages
        )


@dataclass
class Conversation:
    """Messages, with the user's and the assistant's taking turns."""

    system: str | None = None
    turns: list[Message] = field(default_factory=list)
    plain_text: PlainText | None = None

    @property
    def messages(self) -> list[Message]:
        """Everything, the system message first."""
        begin = [] if self.system is None else [Message("system", self.system)]
        return [*begin, *self.turns]

    @property
    def question(self) -> str | None:
        """What the user said last."""
        said = [each.content for each in self.turns if each.role == "user"]
        return said[-1] if said else None

    def ask(self, text: str) -> None:
        """The user speaks."""
        self.turns.append(Message("user", text))

    def answer(self, text: str) -> None:
        """The assistant has spoken."""
        self.turns.append(Message("assistant", text))

    def undo(self) -> str | None:
        """Forget the last question and what followed; returns the question."""
        asked = self.question
        while self.turns and self.turns.pop().role != "user":
            pass
        return asked

    def stream(self, llm: "LLM", knobs: Mapping[str, Any]) -> "Stream":
        """The assistant's answer on its way."""
        if self.plain_text is not None:
            return llm.stream(self.plain_text.render(self.messages), **knobs)
        return llm.chat_stream(self.messages, **knobs)

    def ending(self, stop: str | None) -> str:
        """What the stop text that ended an answer adds to it: the model wrote it."""
        plain = self.plain_text
        return stop if plain and stop and not plain.prefix.startswith(stop) else ""

    def save(self, path: Path) -> None:
        """Write the messages as JSON, the whole file or nothing."""
        saved = {"messages": [message.as_json() for message in self.messages]}
        part = path.with_name(f"{path.name}.part")
        try:
            part.write_text(json.dumps(saved, ensure_ascii=False, indent=1), encoding="utf-8")
            part.replace(path)
        except (OSError, ValueError) as error:
            raise InvalidParameter(f"{path} cannot be written: {error}") from error

    def load(self, path: Path) -> None:
        """Replace everything by what was saved."""
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            messages = [as_message(each) for each in saved["messages"]]
        except InvalidParameter as error:
            raise InvalidParameter(f"{path}: {error}") from error
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise InvalidParameter(
                f"{path} is no saved conversation ({error}); expected what /save writes"
            ) from error
        for message in messages:
            if message.role not in ROLES:
                raise InvalidParameter(
                    f"{path} has a message of role {message.role!r}; expected {', '.join(ROLES)}"
                )
        begins = bool(messages) and messages[0].role == "system"
        self.system = messages[0].content if begins else None
        self.turns = messages[1:] if begins else messages
