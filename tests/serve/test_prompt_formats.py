"""Prompt formats by request: any installed one, each confined like the model's own."""

import pytest

from jaxllama.config import EngineConfig
from jaxllama.confined import Confined
from jaxllama.errors import InvalidParameter
from jaxllama.intake import Intake
from jaxllama.service.model import confine
from jaxllama.testing import ByteTokenizer, ScriptedEngine
from jaxllama_formats.chatml import ChatMl
from jaxllama_formats.plain import Plain

TURNS = [{"role": "user", "content": "Hi"}]


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
