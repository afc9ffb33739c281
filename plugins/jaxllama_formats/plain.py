"""No format: the texts of the messages, one after the other.

For base models, which continue a text and know no turns.
"""

from collections.abc import Sequence
from typing import Self

from jaxllama.formats import Message, ModelText, PromptFormat


class Plain(PromptFormat):
    """The contents of the messages, joined."""

    name = "plain"
    last = True

    @classmethod
    def suits(cls, model: ModelText) -> bool:
        """Always, when nothing else does."""
        del model
        return True

    def render(self, messages: Sequence[Message], *, answer: bool = True) -> str:
        """The contents; where the assistant begins to speak nothing is added."""
        del answer
        return "".join(message.content for message in messages)


class Marked(Plain):
    """Plain, where the characters STX and ETX are the begin-of-text and end-of-text tokens.

    So whoever writes the messages decides where a text begins and ends; the prompt begins with the
    begin-of-text token only where the model wants it or an STX says so.
    """

    name = "marked"

    def __init__(self, begin: str = "", end: str = "") -> None:
        self._marks = str.maketrans({"\x02": begin, "\x03": end})

    @classmethod
    def suits(cls, model: ModelText) -> bool:
        """Never by itself: it has to be asked for."""
        del model
        return False

    @classmethod
    def for_model(cls, model: ModelText) -> Self:
        """With the model's begin-of-text and end-of-text tokens."""
        return cls(model.begin, model.end)

    def render(self, messages: Sequence[Message], *, answer: bool = True) -> str:
        """The contents, with the two characters replaced."""
        return super().render(messages, answer=answer).translate(self._marks)
