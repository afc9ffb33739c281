"""ChatML: every turn between `<|im_start|>` and `<|im_end|>`.

For models that have its two control tokens but no chat template. Tools, tool calls and tool results
are written as Hermes and Qwen models were trained to read them.
"""

import json
from collections.abc import Sequence
from dataclasses import replace

from jaxllama.formats import CallStyle, Message, ModelText, PromptFormat, Tool

BEGIN, END = "<|im_start|>", "<|im_end|>"
TOOLS = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{signatures}
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


class ChatMl(PromptFormat):
    """ChatML: `<|im_start|>role`, a line break, the text, `<|im_end|>`."""

    name = "chatml"
    stop = (END,)
    calls = CallStyle.HERMES

    @classmethod
    def suits(cls, model: ModelText) -> bool:
        """Say whether the model has both control tokens and no chat template."""
        return model.template is None and {BEGIN, END} <= model.special

    def render(self, messages: Sequence[Message], *, answer: bool = True) -> str:
        """Write one block per message; with `answer` also begin the assistant's block."""
        turns = [f"{BEGIN}{message.role}\n{render_content(message)}{END}\n" for message in messages]
        return "".join((*turns, f"{BEGIN}assistant\n" if answer else ""))

    def render_tools(
        self, messages: Sequence[Message], tools: Sequence[Tool], *, answer: bool = True
    ) -> str:
        """Render with the tools at the end of the system message; add that message if missing."""
        signatures = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        system, rest = Message("system", ""), messages
        if messages and messages[0].role == "system":
            system, rest = messages[0], messages[1:]
        text = f"{system.content}\n\n" if system.content else ""
        with_tools = replace(system, content=text + TOOLS.format(signatures=signatures))
        return self.render([with_tools, *rest], answer=answer)


def render_content(message: Message) -> str:
    """Return a message's content followed by its tool calls, or a tool result in its tags."""
    if message.role == "tool":
        return f"<tool_response>\n{message.content}\n</tool_response>"
    calls = [
        json.dumps({"name": call.name, "arguments": dict(call.arguments)}, ensure_ascii=False)
        for call in message.tool_calls
    ]
    blocks = [f"<tool_call>\n{call}\n</tool_call>" for call in calls]
    return "\n".join(([message.content] if message.content else []) + blocks)
