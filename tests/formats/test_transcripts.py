"""Prompts, character for character."""

from pathlib import Path

import pytest

from jaxllama.formats import Message, ModelText, PromptFormat
from jaxllama_formats.chatml import ChatMl
from jaxllama_formats.plain import Plain
from jaxllama_formats.template import Template

HERE = Path(__file__).parent
SMOLLM2 = ModelText(
    template=(HERE / "smollm2.jinja").read_text(), begin="<|im_start|>", end="<|im_end|>"
)
FORMATS: dict[str, PromptFormat] = {
    "template": Template.for_model(SMOLLM2),
    "chatml": ChatMl(),
    "plain": Plain(),
}
CONVERSATIONS = {
    "question": [Message("user", "What is 2 + 2?")],
    "dialogue": [
        Message("system", "You are terse."),
        Message("user", "Name a colour.\nJust one."),
        Message("assistant", "Blue 🟦"),
        Message("user", "{{ 7 * 7 }} & <b>?"),
    ],
}


def transcript(prompt_format: PromptFormat) -> str:
    """All conversations, with and without the head of an answer."""
    return "".join(
        f"=== {name}, answer={answer}\n{prompt_format.render(messages, answer=answer)}⏎\n"
        for name, messages in CONVERSATIONS.items()
        for answer in (True, False)
    )


@pytest.mark.parametrize("name", FORMATS)
def test_the_transcript_is_as_recorded(name):
    recorded = (HERE / "transcripts" / f"{name}.txt").read_text()
    assert transcript(FORMATS[name]) == recorded


def test_transcripts_differ_between_formats():
    texts = {(HERE / "transcripts" / f"{name}.txt").read_text() for name in FORMATS}
    assert len(texts) == len(FORMATS)
