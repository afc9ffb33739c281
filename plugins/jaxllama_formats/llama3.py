"""Llama 3's chat format: a header with the role, the text, `<|eot_id|>`."""

from collections.abc import Sequence

from jaxllama.formats import Message, ModelText, PromptFormat

HEAD, NECK, END = "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"


class Llama3(PromptFormat):
    """One turn per message; the header names the role, and any role name is allowed."""

    name = "llama3"
    stop = (END,)

    @classmethod
    def suits(cls, model: ModelText) -> bool:
        """Say whether the model has the control tokens of this format and no chat template."""
        return model.template is None and {HEAD, NECK, END} <= model.special

    def render(self, messages: Sequence[Message], *, answer: bool = True) -> str:
        """Write every turn; with `answer` also the header of the assistant's turn."""
        turns = [f"{HEAD}{each.role}{NECK}\n\n{each.content}{END}" for each in messages]
        return "".join((*turns, f"{HEAD}assistant{NECK}\n\n" if answer else ""))
