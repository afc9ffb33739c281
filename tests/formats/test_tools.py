"""Tools in prompts: shown, called and answered as the models were trained."""

import pytest

from jaxllama.errors import TemplateError
from jaxllama.formats import CallStyle, Message, ModelText, PromptFormat, ToolCall
from jaxllama.testing import check_format
from jaxllama.testing.formats import CALLING, TOOL
from jaxllama_formats.chatml import ChatMl
from jaxllama_formats.plain import Plain
from jaxllama_formats.template import Template

HERMES = (
    "{% if tools %}{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% for call in m.tool_calls or [] %}"
    "<tool_call>{{ call.function.name }} {{ call.function.arguments | tojson }}</tool_call>"
    "{% endfor %}\n{% endfor %}"
)
LLAMA3 = (
    "{% for tool in tools or [] %}{{ tool | tojson(indent=4) }}{% endfor %}{% for m in messages %}"
    "{% if 'tool_calls' in m %}{% set call = m.tool_calls[0].function %}"
    '{{ \'{"name": "\' + call.name + \'", "parameters": \' }}{{ call.arguments | tojson }}}'
    "{% else %}{{ m.role }}: {{ m.content }}{% endif %}\n{% endfor %}"
)


def template(source: str) -> Template:
    return Template.for_model(ModelText(template=source))


def test_chatml_shows_tools_calls_and_results():
    text = ChatMl().render_tools([Message("system", "Be brief."), *CALLING], [TOOL])
    assert text.startswith("<|im_start|>system\nBe brief.\n\n# Tools\n")
    assert '"name": "look_up_weather"' in text
    assert (
        '<|im_start|>assistant\n<tool_call>\n{"name": "ask_the_sky", "arguments": '
        '{"town": "Linz"}}\n</tool_call><|im_end|>\n'
    ) in text
    assert "<tool_response>\nPouring, 9 degrees.\n</tool_response><|im_end|>\n" in text


def test_chatml_without_a_system_message_makes_one_for_its_tools():
    text = ChatMl().render_tools([Message("user", "hi")], [TOOL])
    assert text.startswith("<|im_start|>system\n# Tools\n")
    assert text.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("source", "style"),
    [
        (HERMES, CallStyle.HERMES),
        (LLAMA3, CallStyle.LLAMA3),
        ("{{ messages }}", None),
        ("{{ tools }}{{ messages }}", None),  # how its calls look cannot be told
        ("<tool_call>{{ messages }}", None),
    ],
)
def test_a_template_tells_how_its_model_calls(source, style):
    assert template(source).calls is style


@pytest.mark.parametrize("source", [HERMES, LLAMA3])
def test_a_template_shows_tools_calls_and_results(source):
    text = template(source).render_tools(CALLING, [TOOL])
    assert "look_up_weather" in text
    assert '{"town": "Linz"}' in text
    assert "Pouring" in text


def test_a_template_sees_only_the_fields_that_apply():
    seen = template("{% for m in messages %}{{ m | tojson }}\n{% endfor %}").render(CALLING)
    assert seen.splitlines()[0] == '{"role": "user", "content": "Is it raining in Linz?"}'
    assert '"arguments": {"town": "Linz"}' in seen.splitlines()[1]
    assert '"tool_call_id": "call_1"' in seen.splitlines()[2]


def test_a_format_without_tools_refuses_them():
    assert Plain().calls is None
    with pytest.raises(TemplateError, match="'plain' knows no tools"):
        Plain().render_tools([Message("user", "hi")], [TOOL])


class Silent(PromptFormat):
    """Says that it knows tools, and shows none."""

    name = "silent"
    calls = CallStyle.HERMES

    def render(self, messages, *, answer=True):
        return "".join(f"{m.role}: {m.content}\n" for m in messages) + "assistant:" * answer

    def render_tools(self, messages, tools, *, answer=True):
        del tools
        return self.render(messages, answer=answer)


class Unspoken(Silent):
    calls = "xml"


@pytest.mark.parametrize(
    ("planted", "word"), [(Silent, "does not show"), (Unspoken, "expected a CallStyle")]
)
def test_the_check_notices_a_format_that_hides_tools(planted, word):
    with pytest.raises(AssertionError, match=word):
        check_format(planted)


def test_a_huge_tool_is_paid_for_by_its_size():
    big = {"type": "function", "function": {"name": "f", "description": "x" * 500_000}}
    call = Message("assistant", "", (ToolCall("f", {"x": "y" * 500_000}),))
    assert len(template(HERMES).render_tools([call], [big])) > 1_000_000
