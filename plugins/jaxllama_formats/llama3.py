"""Llama 3's chat format: a header with the role, the text, `<|eot_id|>`."""

from collections.abc import Sequence

from jaxllama.formats import Message, ModelText, PromptFormat

HEAD, NECK, END = "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"


class Llama3(PromptFormat):
    """Every role has a turn of its own, whatever it is called."""

    name = "llama3"
    stop = (END,)

    @classmethod
    def suits(cls, model: ModelText) -> bool:
        """Whether its tokens are known and no template says better."""
        return model.template is None and {HEAD, NECK, END} <= model.special

    def render(self, messages: Sequence[Message], *, answer: bool = True) -> str:
        """Turn after turn, and the assistant's header."""
        turns = [f"{HEAD}{each.role}{NECK}\n\n{each.content}{END}" for each in messages]
        return "".join((*turns, f"{HEAD}assistant{NECK}\n\n" if answer else ""))
