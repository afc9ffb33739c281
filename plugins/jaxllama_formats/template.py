"""The model's own chat template, a Jinja program that came with the checkpoint.

Built by `choose_format`, called by the service. The program is not trusted: see `sandbox.py`. Must
not know tokens. Texts of users should come guarded (`Tokenizer.guard`), roles included: here they
are only copied.
"""

import json
import re
import sys
from collections.abc import Sequence
from typing import Self

from jaxllama.errors import BadTokenizer
from jaxllama.formats import CallStyle, Message, ModelText, PromptFormat, Tool
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
        self.calls = call_style(model.template)
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
        return self.render_tools(messages, (), answer=answer)

    def render_tools(
        self, messages: Sequence[Message], tools: Sequence[Tool], *, answer: bool = True
    ) -> str:
        """Likewise, with tools."""
        turns = [message.as_json() for message in messages]
        size = sum(sys.getsizeof(message.content) for message in messages)
        calls = [each["tool_calls"] for each in turns if "tool_calls" in each]
        if tools or calls:
            size += sys.getsizeof(json.dumps([calls, tools], ensure_ascii=False))
        return render(
            self._code,
            {
                "messages": turns,
                "add_generation_prompt": answer,
                "bos_token": self._begin,
                "eos_token": self._end,
                "tools": list(tools) or None,
                "documents": None,
            },
            input_bytes=size,
        )


def call_style(template: str) -> CallStyle | None:
    """How a model with this template writes calls; None where it takes no tools or we cannot tell.

    A template shows calls of earlier turns as the model writes them.
    """
    if not re.search(r"\btools\b", template):
        return None
    if "<tool_call>" in template:
        return CallStyle.HERMES
    if re.search(r'"parameters": |<\|python_tag\|>', template):
        return CallStyle.LLAMA3
    return None
