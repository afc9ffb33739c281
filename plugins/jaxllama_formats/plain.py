"""No format: the texts of the messages, one after the other.

For base models, which continue a text and know no turns.
"""

from collections.abc import Sequence

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
