"""The messages of a conversation, and the request that continues it.

Kept by `jaxllama chat`. Plain data that can be saved; knows no terminal.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxllama.errors import InvalidParameter
from jaxllama.formats import Message
from jaxllama.messages import ContextOverflow, as_message

if TYPE_CHECKING:
    from jaxllama.llm import LLM
    from jaxllama.streams import AnswerStream

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class PlainText:
    """Settings for a conversation that is one plain text, which the model continues."""

    prefix: str = ""  # before each message of the user
    postfix: str = ""  # after each message of the user

    def render(self, messages: Sequence[Message]) -> str:
        """Join the contents of all messages into one text, the user's with prefix and postfix."""
        return "".join(
            f"{self.prefix}{each.content}{self.postfix}" if each.role == "user" else each.content
            for each in messages
        )

    def ending(self, stop: str | None) -> str:
        """Return the text to append to an answer that ended at `stop` (None: at no stop text).

        The model wrote the stop text itself, so it is kept, unless the prefix of the next message
        begins with it.
        """
        return stop if stop and not self.prefix.startswith(stop) else ""


@dataclass(frozen=True)
class NamedTurns:
    """Settings for a conversation that is one plain text with a line `Name: message` per turn."""

    user: str
    bot: str

    def render(self, messages: Sequence[Message]) -> str:
        """Return one text: a line `Name: message` for each message, then the bot's name.

        System messages have no name. The bot's name comes last because the bot speaks next.
        """
        lines = []
        for each in messages:
            if each.role == "system":
                lines.append(each.content.rstrip("\n"))
            else:
                name = self.user if each.role == "user" else self.bot
                lines.append(f"{name}: {each.content.strip()}")
        return "\n".join([*lines, f"{self.bot}:"])

    def ending(self, _: str | None) -> str:
        """Return "": `render` puts the line break after an answer."""
        return ""


@dataclass
class Conversation:
    """A system message, and the messages of user and assistant in turn."""

    system: str | None = None
    turns: list[Message] = field(default_factory=list)
    plain_text: PlainText | NamedTurns | None = None
    overflow: ContextOverflow = ContextOverflow.DROP_OLDEST  # when it fills the context

    @property
    def messages(self) -> list[Message]:
        """All messages, the system message first."""
        begin = [] if self.system is None else [Message("system", self.system)]
        return [*begin, *self.turns]

    @property
    def question(self) -> str | None:
        """The last message of the user; None if there is none."""
        questions = [each.content for each in self.turns if each.role == "user"]
        return questions[-1] if questions else None

    def ask(self, text: str) -> None:
        """Add a message of the user."""
        self.turns.append(Message("user", text))

    def answer(self, text: str) -> None:
        """Add a message of the assistant."""
        self.turns.append(Message("assistant", text))

    def undo(self) -> str | None:
        """Remove the last question and the messages after it; return the question or None."""
        asked = self.question
        while self.turns and self.turns.pop().role != "user":
            pass
        return asked

    def stream(self, llm: "LLM", knobs: Mapping[str, Any]) -> "AnswerStream":
        """Start generating the assistant's next message; return its stream.

        `knobs` are the parameters of the request.
        """
        if self.plain_text is not None:
            return llm.stream(self.plain_text.render(self.messages), **knobs)
        return llm.chat_stream(self.messages, context_overflow=self.overflow, **knobs)

    def ending(self, stop: str | None) -> str:
        """Return the text to append to an answer that ended at `stop` (None: at no stop text)."""
        return "" if self.plain_text is None else self.plain_text.ending(stop)

    def save(self, path: Path) -> None:
        """Write the messages to a file as JSON, completely or not at all.

        Raises InvalidParameter if the file cannot be written.
        """
        saved = {"messages": [message.as_json() for message in self.messages]}
        part = path.with_name(f"{path.name}.part")
        try:
            part.write_text(json.dumps(saved, ensure_ascii=False, indent=1), encoding="utf-8")
            part.replace(path)
        except (OSError, ValueError) as error:
            raise InvalidParameter(f"{path} cannot be written: {error}") from error

    def load(self, path: Path) -> None:
        """Replace all messages by the messages of a saved file.

        Raises InvalidParameter if the file is no saved conversation.
        """
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
