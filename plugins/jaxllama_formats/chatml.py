"""ChatML: every turn between `<|im_start|>` and `<|im_end|>`.

For models that know its two tokens but bring no template of their own. Tools are shown, called and
answered the way Hermes and Qwen models were trained.
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
    """`<|im_start|>role`, a line break, the text, `<|im_end|>`."""

    name = "chatml"
    stop = (END,)
    calls = CallStyle.HERMES

    @classmethod
    def suits(cls, model: ModelText) -> bool:
        """Whether both tokens are known and no template says better."""
        return model.template is None and {BEGIN, END} <= model.special

    def render(self, messages: Sequence[Message], *, answer: bool = True) -> str:
        """One block per message, and the head of the assistant's."""
        turns = [f"{BEGIN}{message.role}\n{body(message)}{END}\n" for message in messages]
        return "".join((*turns, f"{BEGIN}assistant\n" if answer else ""))

    def render_tools(
        self, messages: Sequence[Message], tools: Sequence[Tool], *, answer: bool = True
    ) -> str:
        """Likewise, with the tools at the end of the system message, which is made if need be."""
        signatures = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        system, rest = Message("system", ""), messages
        if messages and messages[0].role == "system":
            system, rest = messages[0], messages[1:]
        said = f"{system.content}\n\n" if system.content else ""
        told = replace(system, content=said + TOOLS.format(signatures=signatures))
        return self.render([told, *rest], answer=answer)


def body(message: Message) -> str:
    """What a message says, with the calls it makes or as the result it is."""
    if message.role == "tool":
        return f"<tool_response>\n{message.content}\n</tool_response>"
    calls = [
        json.dumps({"name": call.name, "arguments": dict(call.arguments)}, ensure_ascii=False)
        for call in message.tool_calls
    ]
    blocks = [f"<tool_call>\n{call}\n</tool_call>" for call in calls]
    return "\n".join(([message.content] if message.content else []) + blocks)
