"""The model's own chat template, a Jinja program that came with the checkpoint.

Built by `choose_format`, called by the service. The program is not trusted: see `sandbox.py`. Must
not know tokens. Texts of users should come guarded (`Tokenizer.guard`), roles included: here they
are only copied.
"""

import sys
from collections.abc import Sequence
from typing import Self

from jaxllama.errors import BadTokenizer
from jaxllama.formats import Message, ModelText, PromptFormat
from jaxllama_formats.sandbox import compile_template, render


class Template(PromptFormat):
    """The chat template that came with the model."""

    name = "template"

    def __init__(self, model: ModelText) -> None:
        if model.template is None:
            raise BadTokenizer(
                "the model brings no chat template; choose another prompt format, such as chatml"
            )
        self._code = compile_template(model.template)
        self._begin = model.begin
        self._end = model.end

    @classmethod
    def suits(cls, model: ModelText) -> bool:
        """Whether the model brings a template."""
        return model.template is not None

    @classmethod
    def for_model(cls, model: ModelText) -> Self:
        """Compile the model's template."""
        return cls(model)

    def render(self, messages: Sequence[Message], *, answer: bool = True) -> str:
        """Run the template with the variables that published templates expect."""
        return render(
            self._code,
            {
                "messages": [
                    {"role": message.role, "content": message.content} for message in messages
                ],
                "add_generation_prompt": answer,
                "bos_token": self._begin,
                "eos_token": self._end,
                "tools": None,
                "documents": None,
            },
            input_bytes=sum(sys.getsizeof(message.content) for message in messages),
        )
