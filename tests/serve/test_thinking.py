"""Thoughts before an answer: apart from the text, bounded, and in every dialect that shows them."""

import json

import openai
import pytest

from jaxllama.errors import InvalidParameter
from jaxllama.intake import Intake
from jaxllama.serve.dialects.anthropic import Anthropic
from jaxllama.serve.dialects.ollama import Ollama
from jaxllama.testing import ByteTokenizer, ScriptedEngine
from jaxllama_formats.template import Template
from tests.serve.clients import DIALECTS, HI, MODEL, client_of, post
from tests.serve.conftest import config, events_of, running, scenario
from tests.support import installed_samplers

QWEN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{# the model writes <think> and </think> and <tool_call>, see tools #}"
)
DEEPSEEK = QWEN.replace("<|im_start|>assistant\n{%", "<|im_start|>assistant\n<think>\n{%")
ANSWER = b"<think>\nTwo and two.\n</think>\n\nFour."
CALLING = (
    b'<think>\nLook.\n</think>\n\n<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'
)
LOOK = {"type": "function", "function": {"name": "look"}}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {"name": "n", "schema": {"type": "integer", "minimum": 7, "maximum": 7}},
}


class Thinker:
    """An engine that thinks unless the prompt has closed the thoughts; it notes its prompts."""

    def __init__(self, answer: bytes = ANSWER, template: str = QWEN) -> None:
        self.prompts: list[str] = []
        self._answer = answer
        size = config(context=2048, candidates=32)
        self.engine = ScriptedEngine(self.script, config=size, samplers=installed_samplers())
        tokenizer = ByteTokenizer(template=template)
        own = Template.for_model(tokenizer.text)
        self.intake = Intake(tokenizer, own, self.engine.bank, size)

    def script(self, prompt: tuple[int, ...]) -> bytes:
        text = bytes(id_ for id_ in prompt if id_ < 256).decode()
        self.prompts.append(text)
        begun = self._answer.partition(b"<think>\n")[2]
        if text.endswith("</think>\n\n"):
            return begun.partition(b"</think>\n\n")[2]
        return begun if text.endswith("<think>\n") else self._answer

    def running(self, **settings):
        dialects = [*DIALECTS, Anthropic(), Ollama()]
        return running(self.engine, intake=self.intake, dialects=dialects, **settings)


def with_chat(test, *thinker, **settings):
    """Run a test with an OpenAI client of a server that thinks."""

    async def body():
        think = Thinker(*thinker)
        async with think.running(**settings) as live, client_of(live) as client:

            def ask(**more):
                more = {"model": MODEL, "messages": HI, "extra_body": more.pop("extra", {})} | more
                return client.chat.completions.create(**more)

            await test(think, ask)

    scenario(body)


@pytest.mark.parametrize("template", [QWEN, DEEPSEEK])
def test_thoughts_are_apart_from_the_text_whole_and_streamed(template):
    async def test(_, ask):
        answer = await ask()
        message = answer.choices[0].message
        assert (message.content, message.reasoning_content) == ("Four.", "Two and two.")
        counted = ">\n" if template is QWEN else ""  # from the byte that completes the opener
        tokens = answer.usage.completion_tokens_details.reasoning_tokens
        assert tokens == len(f"{counted}Two and two.\n</think>")
        texts, thoughts = "", ""
        async for chunk in await ask(stream=True):
            for choice in chunk.choices:
                texts += choice.delta.content or ""
                thoughts += getattr(choice.delta, "reasoning_content", None) or ""
        assert (texts, thoughts) == (message.content, message.reasoning_content)

    with_chat(test, ANSWER, template)


def test_thoughts_stay_in_the_text_if_asked():
    async def test(_, ask):
        message = (await ask(extra={"reasoning_format": "none"})).choices[0].message
        assert message.content == ANSWER.decode()
        assert not hasattr(message, "reasoning_content")

    with_chat(test)


@pytest.mark.parametrize("template", [QWEN, DEEPSEEK])
@pytest.mark.parametrize(
    "more", [{"reasoning_effort": "none"}, {"extra": {"reasoning_budget": 0}}], ids=str
)
def test_without_a_budget_the_prompt_closes_the_thoughts(template, more):
    async def test(think, ask):
        message = (await ask(**more)).choices[0].message
        assert message.content == "Four."
        assert not hasattr(message, "reasoning_content")
        assert think.prompts[-1].endswith("\nassistant\n<think>\n\n</think>\n\n")

    with_chat(test, ANSWER, template)


@pytest.mark.parametrize("template", [QWEN, DEEPSEEK])
def test_a_budget_ends_the_thoughts_in_time(template):
    async def test(_, ask):
        message = (await ask(extra={"reasoning_budget": 7}, max_tokens=60)).choices[0].message
        assert message.reasoning_content == "Two and"

    with_chat(test, ANSWER, template)


def test_a_form_begins_after_the_thoughts():
    async def test(_, ask):
        message = (await ask(response_format=SCHEMA)).choices[0].message
        assert (message.content, message.reasoning_content) == ("7", "Two and two.")
        message = (await ask(response_format=SCHEMA, reasoning_effort="none")).choices[0].message
        assert message.content == "7"

    with_chat(test, b"<think>\nTwo and two.\n</think>\n\n7")


def test_calls_come_after_thoughts():
    async def test(_, ask):
        message = (await ask(tools=[LOOK])).choices[0].message
        assert message.reasoning_content == "Look."
        assert message.tool_calls[0].function.name == "look"
        assert message.content is None

    with_chat(test, CALLING)


def test_earlier_thoughts_reach_the_template():
    async def test(think, ask):
        turns = [*HI, {"role": "assistant", "content": "b", "reasoning_content": "a"}, *HI]
        await ask(messages=turns)
        assert "<think>a</think>b\n" in think.prompts[-1]

    with_chat(test)


def test_two_bounds_of_the_thoughts_are_refused():
    async def test(_, ask):
        with pytest.raises(openai.BadRequestError, match="both bound the thoughts") as found:
            await ask(reasoning_effort="low", extra={"reasoning_budget": 1})
        assert found.value.param == "reasoning_effort"

    with_chat(test)


def test_a_text_to_continue_has_no_budget():
    intake = Thinker().intake
    with pytest.raises(InvalidParameter, match="it is for conversations"):
        intake.completion("a", {"reasoning_budget": 5})


def test_a_model_that_does_not_think_says_so():
    async def body():
        async with running(dialects=DIALECTS) as live:
            path, sent = "/v1/chat/completions", {"messages": HI}
            error = await post(live, path, sent | {"reasoning_budget": 5}, 400)
            assert error["error"]["param"] == "reasoning_budget"
            assert "do not think" in error["error"]["message"]
            url, more = f"{live.url}{path}", {"reasoning_effort": "low"}
            async with live.http.post(url, json=sent | more) as response:
                assert response.headers["X-Ignored-Fields"] == "reasoning_effort"
            async with live.http.post(url, json=sent | {"reasoning_effort": "none"}) as response:
                assert "X-Ignored-Fields" not in response.headers

    scenario(body)


def test_anthropic_thinks_when_asked():
    async def body():
        async with Thinker().running() as live:
            sent = {"model": MODEL, "messages": HI, "max_tokens": 1000}
            (block,) = (await post(live, "/v1/messages", sent))["content"]
            assert block == {"type": "text", "text": "Four."}
            enabled = sent | {"thinking": {"type": "enabled", "budget_tokens": 500}}
            content = (await post(live, "/v1/messages", enabled))["content"]
            thoughts = {"type": "thinking", "thinking": "Two and two.", "signature": ""}
            assert content == [thoughts, block]
            omitted = sent | {"thinking": {"type": "adaptive", "display": "omitted"}}
            content = (await post(live, "/v1/messages", omitted))["content"]
            assert content == [thoughts | {"thinking": ""}, block]
            async with live.http.post(
                f"{live.url}/v1/messages", json=enabled | {"stream": True}
            ) as response:
                events = events_of(await response.text())
            deltas = [each["delta"] for each in events if each["type"] == "content_block_delta"]
            assert "".join(each.get("thinking", "") for each in deltas) == "Two and two."
            assert "".join(each.get("text", "") for each in deltas) == "Four."
            kinds = [each["type"] for each in events if "block" in each["type"]]
            assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 2
            much = sent | {"thinking": {"type": "enabled", "budget_tokens": 1000}}
            error = (await post(live, "/v1/messages", much, 400))["error"]
            assert error["message"].startswith("thinking.budget_tokens is 1000")

    scenario(body)


def test_ollama_shows_thoughts():
    async def body():
        async with Thinker().running() as live:
            sent = {"model": MODEL, "messages": HI, "stream": False}
            for more in ({}, {"think": True}, {"think": "high"}):
                message = (await post(live, "/api/chat", sent | more))["message"]
                assert (message["content"], message["thinking"]) == ("Four.", "Two and two.")
            message = (await post(live, "/api/chat", sent | {"think": False}))["message"]
            assert (message["content"], message.get("thinking")) == ("Four.", None)
            async with live.http.post(
                f"{live.url}/api/generate", json={"model": MODEL, "prompt": "hi"}
            ) as response:
                lines = [json.loads(line) for line in (await response.text()).splitlines()]
            assert "".join(each["response"] for each in lines) == "Four."
            assert "".join(each.get("thinking", "") for each in lines) == "Two and two."
            shown = await post(live, "/api/show", {"model": MODEL})
            assert "thinking" in shown["capabilities"]

    scenario(body)
