"""No format: the texts of the messages, one after the other.

For base models, which continue a text and were not trained on turns.
"""

from collections.abc import Sequence
from typing import Self

from jaxllama.formats import Message, ModelText, PromptFormat


class Plain(PromptFormat):
    """The contents of the messages, joined without separators."""

    name = "plain"
    last = True

    @classmethod
    def suits(cls, model: ModelText) -> bool:
        """Return True: this format fits every model, and is asked last."""
        del model
        return True

    def render(self, messages: Sequence[Message], *, answer: bool = True) -> str:
        """Join the contents; nothing marks the beginning of the answer."""
        del answer
        return "".join(message.content for message in messages)


class Marked(Plain):
    """Plain, where the characters STX and ETX are the begin-of-text and end-of-text tokens.

    The client thus decides where a text begins and ends. The prompt begins with the begin-of-text
    token only if the model adds it to every prompt or the messages begin with STX.
    """

    name = "marked"

    def __init__(self, begin: str = "", end: str = "") -> None:
        self._marks = str.maketrans({"\x02": begin, "\x03": end})

    @classmethod
    def suits(cls, model: ModelText) -> bool:
        """Return False: this format is used only if the user names it."""
        del model
        return False

    @classmethod
    def for_model(cls, model: ModelText) -> Self:
        """Create the format with the model's begin-of-text and end-of-text tokens."""
        return cls(model.begin, model.end)

    def render(self, messages: Sequence[Message], *, answer: bool = True) -> str:
        """Join the contents and replace STX and ETX by the tokens."""
        return super().render(messages, answer=answer).translate(self._marks)
