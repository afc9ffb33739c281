"""Fixtures for the command line: the real LLM over a scripted engine, without weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from jaxllama.cli.main import main
from jaxllama.formats import Message, PromptFormat
from jaxllama.intake import Intake
from jaxllama.llm import LLM
from jaxllama.registry import SAMPLERS, load_plugins
from jaxllama.sampling import Sampler
from jaxllama.testing.byte_tokenizer import ByteTokenizer
from jaxllama.testing.models import TINY
from jaxllama.testing.scripted import SMALL, Said, ScriptedEngine


class Brackets(PromptFormat):
    """A prompt format that renders [role]content ... [assistant]."""

    name = "brackets"
    stop = ("[user]",)

    def render(self, messages: Sequence[Message], *, answer: bool = True) -> str:
        return "".join(f"[{each.role}]{each.content}" for each in messages) + (
            "[assistant]" if answer else ""
        )


@dataclass
class Scripted:
    """The model that the commands load in a test, and a record of loads and prompts."""

    answer: Callable[[str], Sequence[Said]]
    loaded: list[dict[str, Any]] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)

    def script(self, prompt: tuple[int, ...]) -> Sequence[Said]:
        text = bytes(token for token in prompt if token < 256).decode()
        if text not in self.prompts[-1:]:
            self.prompts.append(text)
        return self.answer(text)

    def load(self, model: str | None = None, **settings: Any) -> LLM:
        settings.pop("progress")
        settings.pop("compile_behind", None)
        self.loaded.append({"model": model, **settings})
        config = replace(SMALL, slots=settings.get("slots") or SMALL.slots)
        samplers = load_plugins(SAMPLERS, Sampler).loaded
        engine = ScriptedEngine(self.script, config=config, samplers=samplers)
        return LLM(engine, Intake(ByteTokenizer(), Brackets(), engine.bank, config), config=TINY)


def shout(prompt: str) -> bytes:
    """Return the last question, or the whole prompt, in capitals."""
    return prompt.rpartition("[user]")[2].removesuffix("[assistant]").upper().encode()


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    """Replace LLM.load by a scripted model; a test sets `answer` to change its answers."""
    scripted = Scripted(shout)
    monkeypatch.setattr(LLM, "load", scripted.load)
    return scripted


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Return a function that runs the program in an empty folder; a traceback fails the test."""
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: object, said: str | bytes | None = None) -> Result:
        result = CliRunner().invoke(main, [str(each) for each in arguments], input=said)
        if result.exc_info is not None and not isinstance(result.exception, SystemExit | None):
            raise result.exc_info[1]
        return result

    return invoke
