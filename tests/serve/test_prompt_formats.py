"""Prompt formats by request: any installed one, each confined like the model's own."""

from dataclasses import replace

import pytest

from jaxllama.config import EngineConfig
from jaxllama.confined import Confined
from jaxllama.engine.engine import Engine
from jaxllama.errors import InvalidParameter
from jaxllama.intake import Intake
from jaxllama.service.model import confine
from jaxllama.testing import ByteTokenizer, ScriptedEngine
from jaxllama_formats.chatml import ChatMl
from jaxllama_formats.plain import Plain
from jaxllama_formats.template import Template
from tests.serve.clients import asked, post
from tests.serve.conftest import config, scenario

TURNS = [{"role": "user", "content": "Hi"}]


CALL = b'<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'
LOOK = {"type": "function", "function": {"name": "look"}}
NO_TOOLS = "{% for m in messages %}{{ m.role + ': ' + m.content + '; ' }}{% endfor %}"
RESULT = [
    *TURNS,
    {"role": "assistant", "tool_calls": [{"function": {"name": "look", "arguments": "{}"}}]},
    {"role": "tool", "content": "rain"},
]


def intake_without_tools(engine: Engine, special: frozenset[str]) -> Intake:
    """Of a model like SmolLM2: its template knows no tools, chatml suits its control tokens."""
    tokenizer = ByteTokenizer(template=NO_TOOLS)
    tokenizer.text = replace(tokenizer.text, special=special)
    own = Template.for_model(tokenizer.text)
    others = [ChatMl(), Plain()]
    return Intake(tokenizer, own, engine.bank, engine.config, other_formats=others)


def intake_with_both(**tokenizer: str) -> Intake:
    config = EngineConfig(slots=1, context=64, steps_per_sync=1)
    engine = ScriptedEngine(lambda _: b"", config=config)
    return Intake(
        ByteTokenizer(**tokenizer), ChatMl(), engine.bank, config, other_formats=[Plain()]
    )


def test_a_named_format_is_used_and_the_models_own_without_a_name():
    intake = intake_with_both()
    assert intake.with_format("plain").chat_text(TURNS) == "Hi"
    assert intake.with_format(None).chat_text(TURNS) == intake.chat_text(TURNS)
    assert intake.chat_text(TURNS).startswith("<|im_start|>user")


def test_an_unknown_format_is_refused_with_the_names_there_are():
    with pytest.raises(InvalidParameter, match=r"'plane'; expected one of chatml, plain") as found:
        intake_with_both().with_format("plane")
    assert found.value.field == "format"


def test_every_format_of_a_model_with_a_template_is_confined():
    intake = confine(intake_with_both(template="{{ messages }}"), seconds=30.0)
    try:
        assert all(isinstance(each, Confined) for each in intake.formats.values())
        assert intake.format is intake.formats["chatml"]
        assert intake.with_format("plain").chat_text(TURNS) == "Hi"
    finally:
        for each in intake.formats.values():
            assert isinstance(each, Confined)
            each.close()


@pytest.mark.parametrize("stream", [False, True])
def test_tools_fall_back_to_a_format_that_knows_them_and_the_answer_says_so(stream, caplog):
    prompts = []

    def script(prompt):
        prompts.append(bytes(id_ for id_ in prompt if id_ < 256).decode())
        return CALL

    async def body():
        engine = ScriptedEngine(script, config=config(context=2048))
        intake = intake_without_tools(engine, frozenset({"<|im_start|>", "<|im_end|>"}))
        async with asked(engine, intake=intake) as (live, _):
            url, sent = f"{live.url}/v1/chat/completions", {"messages": TURNS, "stream": stream}
            async with live.http.post(url, json=sent) as response:
                assert "X-Prompt-Format" not in response.headers
                await response.read()
            assert prompts[-1] == "user: Hi; "
            async with live.http.post(url, json=sent | {"tools": [LOOK]}) as response:
                assert response.headers["X-Prompt-Format"] == "chatml"
                assert '"tool_calls"' in await response.text()
            assert '<tools>\n{"type": "function", "function": {"name": "look"}}' in prompts[-1]
            async with live.http.post(url, json=sent | {"messages": RESULT}) as response:
                assert response.headers["X-Prompt-Format"] == "chatml"
                await response.read()
            assert "<tool_response>\nrain\n</tool_response>" in prompts[-1]
            shown = await post(live, "/apply-template", {"messages": TURNS, "tools": [LOOK]})
            assert "# Tools" in shown["prompt"]

    caplog.set_level("INFO")
    scenario(body)
    facts = [each.facts for each in caplog.records if hasattr(each, "facts")]
    assert [each.get("format") for each in facts] == [None, "chatml", "chatml"]


def test_a_model_that_no_format_with_tools_suits_refuses_them():
    async def body():
        engine = ScriptedEngine(lambda _: b"", config=config())
        async with asked(engine, intake=intake_without_tools(engine, frozenset())) as (live, _):
            for sent, name in (
                ({"messages": TURNS, "tools": [LOOK]}, "tools"),
                ({"messages": RESULT}, "messages"),
                ({"messages": TURNS, "tools": [LOOK], "format": "plain"}, "tools"),
            ):
                error = (await post(live, "/v1/chat/completions", sent, 400))["error"]
                assert error["param"] == name
                assert "knows none" in error["message"]

    scenario(body)
