"""The model's own chat template, a Jinja program in the checkpoint.

Built by `choose_format`, called by the service. The program is not trusted: see `sandbox.py`. Must
not know tokens. The caller must guard texts of users, roles included (`Tokenizer.guard`): this
module only copies them.
"""

import json
import re
import sys
from collections.abc import Sequence
from typing import Self

from jaxllama.errors import BadTokenizer
from jaxllama.formats import CallStyle, Message, ModelText, PromptFormat, Tool
from jaxllama_formats.sandbox import compile_template, render, undefined_names

# The variables that published templates use.
VARIABLES = ("messages", "add_generation_prompt", "bos_token", "eos_token", "tools", "documents")


class Template(PromptFormat):
    """Renders with the chat template of the model."""

    name = "template"

    def __init__(self, model: ModelText) -> None:
        if model.template is None:
            raise BadTokenizer(
                "the model brings no chat template; choose another prompt format, such as chatml"
            )
        self._code = compile_template(model.template)
        # Published templates rely on undefined names being empty, so only a user's own file is
        # checked: an undefined name in it is a mistake that its author can correct.
        self._is_strict = model.is_users_template
        if self._is_strict:
            check_names(model.template)
        self.calls = call_style(model.template)
        self.thinks = "</think>" in model.template
        self._begin = model.begin
        self._end = model.end

    @classmethod
    def suits(cls, model: ModelText) -> bool:
        """Say whether the model has a chat template."""
        return model.template is not None

    @classmethod
    def for_model(cls, model: ModelText) -> Self:
        """Return the format with the model's chat template, compiled."""
        return cls(model)

    def render(self, messages: Sequence[Message], *, answer: bool = True) -> str:
        """Run the template with the variables that published templates expect; return the prompt.

        With `answer`, the template also begins the assistant's answer.
        """
        return self.render_tools(messages, (), answer=answer)

    def render_tools(
        self, messages: Sequence[Message], tools: Sequence[Tool], *, answer: bool = True
    ) -> str:
        """Run the template on a conversation with tools; return the prompt.

        With `answer`, the template also begins the assistant's answer.
        """
        turns = [message.as_json() for message in messages]
        size = sum(sys.getsizeof(message.content) for message in messages)
        calls = [each["tool_calls"] for each in turns if "tool_calls" in each]
        if tools or calls:
            size += sys.getsizeof(json.dumps([calls, tools], ensure_ascii=False))
        values = (turns, answer, self._begin, self._end, list(tools) or None, None)
        return render(
            self._code,
            dict(zip(VARIABLES, values, strict=True)),
            input_bytes=size,
            is_strict=self._is_strict,
        )


def check_names(template: str) -> None:
    """Raise BadTokenizer if a template uses names that are not defined."""
    missing = undefined_names(template, VARIABLES)
    if missing:
        raise BadTokenizer(
            f"the chat template uses {', '.join(map(repr, missing))}, which is not defined; it "
            f"may use {', '.join(VARIABLES)} (write `{{% if {missing[0]} is defined %}}` around "
            f"what may be missing)"
        )


def call_style(template: str) -> CallStyle | None:
    """Return the syntax of tool calls; None if the template has no tools or the syntax is unknown.

    A template writes the calls of earlier turns in the syntax that the model itself uses.
    """
    if not re.search(r"\btools\b", template):
        return None
    if "<tool_call>" in template:
        return CallStyle.HERMES
    if re.search(r'"parameters": |<\|python_tag\|>', template):
        return CallStyle.LLAMA3
    return None
