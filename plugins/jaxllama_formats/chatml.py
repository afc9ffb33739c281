"""ChatML: every turn between `<|im_start|>` and `<|im_end|>`.

For models that know its two tokens but bring no template of their own.
"""

from collections.abc import Sequence

from jaxllama.formats import Message, ModelText, PromptFormat

BEGIN, END = "<|im_start|>", "<|im_end|>"


class ChatMl(PromptFormat):
    """`<|im_start|>role`, a line break, the text, `<|im_end|>`."""

    name = "chatml"
    stop = (END,)

    @classmethod
    def suits(cls, model: ModelText) -> bool:
        """Whether both tokens are known and no template says better."""
        return model.template is None and {BEGIN, END} <= model.special

    def render(self, messages: Sequence[Message], *, answer: bool = True) -> str:
        """One block per message, and the head of the assistant's."""
        turns = [f"{BEGIN}{message.role}\n{message.content}{END}\n" for message in messages]
        return "".join((*turns, f"{BEGIN}assistant\n" if answer else ""))
