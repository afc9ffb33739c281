"""Prompts, character for character."""

from pathlib import Path

import pytest

from jaxllama.errors import TemplateError
from jaxllama.formats import Message, ModelText, PromptFormat, choose_format
from jaxllama.registry import FORMATS as GROUP
from jaxllama.registry import load_plugins

HERE = Path(__file__).parent
SMOLLM2 = ModelText(
    template=(HERE / "smollm2.jinja").read_text(), begin="<|im_start|>", end="<|im_end|>"
)
INSTALLED = load_plugins(GROUP, PromptFormat).loaded
MODELS = {name: ModelText(begin="<s>", end="</s>") for name in INSTALLED} | {"template": SMOLLM2}
FORMATS = {name: kind.for_model(MODELS[name]) for name, kind in INSTALLED.items()}
CONVERSATIONS = {
    "question": [Message("user", "What is 2 + 2?")],
    "dialogue": [
        Message("system", "You are terse."),
        Message("user", "Name a colour.\nJust one."),
        Message("assistant", "Blue 🟦"),
        Message("user", "{{ 7 * 7 }} & <b>?"),
    ],
}
SPECIAL = {  # tokens by which a model without a template is known
    "chatml": {"<|im_start|>", "<|im_end|>"},
    "llama3": {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"},
    "gemma": {"<start_of_turn>", "<end_of_turn>"},
    "phi3": {"<|user|>", "<|assistant|>", "<|end|>"},
    "mistral": {"[INST]", "[/INST]"},
    "deepseek": {"<｜User｜>", "<｜Assistant｜>"},  # noqa: RUF001
}
NAMED = {
    "Llama-2-7b-chat-hf": "llama2",
    "Mistral-7B-Instruct-v0.1": "mistral",
    "TinyLlama 1.1B": "zephyr",
    "vicuna-7b-v1.5": "vicuna",
    "Alpaca native": "alpaca",
    "stories15M": "plain",
}


def transcript(prompt_format: PromptFormat) -> str:
    """All conversations, with and without the head of an answer."""
    return "".join(
        f"=== {name}, answer={answer}\n{prompt_format.render(messages, answer=answer)}⏎\n"
        for name, messages in CONVERSATIONS.items()
        for answer in (True, False)
    )


@pytest.mark.origin("LLaMbA: its prompt formats, and those of the others")
# Marked is plain but for two characters, which have a test of their own.
@pytest.mark.parametrize("name", sorted({*FORMATS} - {"marked"}))
def test_the_transcript_is_as_recorded(name):
    recorded = (HERE / "transcripts" / f"{name}.txt").read_text()
    assert transcript(FORMATS[name]) == recorded


def test_transcripts_differ_between_formats():
    texts = {(HERE / "transcripts" / f"{name}.txt").read_text() for name in {*FORMATS} - {"marked"}}
    assert len(texts) == len(FORMATS) - 1


@pytest.mark.parametrize("name", SPECIAL)
def test_a_models_tokens_choose_its_format(name):
    model = ModelText(special=frozenset(SPECIAL[name]) | {"<s>"})
    assert choose_format(INSTALLED, model).name == name


@pytest.mark.parametrize("model", NAMED)
def test_a_models_name_chooses_its_format(model):
    assert choose_format(INSTALLED, ModelText(name=model)).name == NAMED[model]


def test_a_template_is_trusted_more_than_a_name():
    named = ModelText(name="zephyr", template="{{ messages[0].content }}")
    assert choose_format(INSTALLED, named).name == "template"


def test_what_only_a_system_says_becomes_a_users_turn():
    assert FORMATS["gemma"].render([Message("system", "Rules.")]) == (
        "<start_of_turn>user\nRules.\n\n<end_of_turn>\n<start_of_turn>model\n"
    )


@pytest.mark.parametrize("name", ["llama2", "gemma", "vicuna"])
def test_an_unknown_role_is_refused_by_name(name):
    with pytest.raises(TemplateError, match="knows no role 'critic'; expected one of system, user"):
        FORMATS[name].render([Message("critic", "Hm.")])


def test_stx_and_etx_are_the_models_tokens_in_the_marked_format():
    messages = [Message("user", "\x02USER: Hi\nASSISTANT:\x03\x02")]
    assert FORMATS["marked"].render(messages) == "<s>USER: Hi\nASSISTANT:</s><s>"
    assert FORMATS["plain"].render(messages) == messages[0].content
