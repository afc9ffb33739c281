"""The README is true: its commands exist, its Python runs. ARCHITECTURE maps the whole tree."""

import contextlib
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from unittest import mock

import click
import numpy as np
import pytest

import jaxllama
from jaxllama.cli.main import main
from jaxllama.errors import JaxLlamaError
from jaxllama.sampling import Sampler
from jaxllama.testing import check_sampler
from tests.cli.conftest import Scripted, shout

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()


def blocks(language: str, document: str = README) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", document, re.DOTALL | re.MULTILINE)
    return [text for name, text in fenced if name == language]


def commands(program: str, document: str = README) -> list[list[str]]:
    lines = [line for block in blocks("sh", document) for line in block.splitlines()]
    inline = re.findall(rf"`({program}[^`]*)`", document)
    found = [shlex.split(line, comments=True) for line in (*lines, *inline)]
    return [words[1:] for words in found if words[1:] and words[0] == program]


def check_arguments(words: list[str]) -> None:
    """Let click parse a command line, without running it."""
    group = click.Context(main, info_name="jaxllama")
    name, *arguments = words
    command = main.get_command(group, name)
    assert command is not None, f"there is no command {name}"
    with contextlib.ExitStack() as patches:  # files of the documentation need not exist
        for parameter in command.get_params(click.Context(command)):
            if isinstance(parameter.type, click.Path):
                patches.enter_context(mock.patch.object(parameter.type, "exists", new=False))
        command.make_context(name, arguments, parent=group)


@pytest.mark.parametrize("words", commands("jaxllama"), ids=" ".join)
def test_commands_exist_with_their_options(words):
    if words[1:] in ([], ["--help"]):  # only named
        assert main.get_command(click.Context(main), words[0]) is not None
    else:
        check_arguments(words)


@pytest.mark.parametrize("words", [["generate", "--no-such"], ["pull", "a", "b"], ["batch", "a"]])
def test_a_command_that_is_wrong_would_be_noticed(words):
    with pytest.raises(click.UsageError):
        check_arguments(words)


def test_every_command_is_shown():
    shown = {words[0] for words in commands("jaxllama") if words}
    assert {"generate", "chat", "batch", "perplexity", "pull", "inspect", "plugins"} <= shown


@pytest.mark.parametrize("words", commands("make"), ids=" ".join)
def test_make_has_the_targets(words):
    (target,) = words
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0


def test_python_examples_run(monkeypatch, capsys):
    scripted = Scripted(shout)
    monkeypatch.setattr(
        jaxllama.LLM, "load", lambda **settings: scripted.load(None, progress=None, **settings)
    )
    example = blocks("python")[0].replace("range(1000)", "range(20)")
    values = {}
    exec(compile(example, "README.md", "exec"), values)
    assert "THE CAPITAL OF FRANC" in capsys.readouterr().out
    assert len(values["many"]) == 20 and values["best"].tokens


def test_a_document_is_filled_in_field_by_field(monkeypatch):
    scripted = Scripted(shout)
    monkeypatch.setattr(
        jaxllama.LLM, "load", lambda **settings: scripted.load(None, progress=None, **settings)
    )
    values = {}
    exec(compile(blocks("python")[2], "README.md", "exec"), values)
    assert set(values["person"]) == set(values["fields"])
    assert values["person"]["mood"] in ("cheerful", "grumpy")
    assert 18 <= values["person"]["age"] <= 99


class FewVectors:
    """Stands in for an encoder."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def encode(self, texts):
        assert len(texts) == 3
        return np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])


def test_vectors_tell_how_alike_texts_are(monkeypatch, capsys):
    monkeypatch.setattr(jaxllama.Encoder, "load", {"minilm": FewVectors()}.get)
    exec(compile(blocks("python")[3], "README.md", "exec"), {})
    assert capsys.readouterr().out == "True\n"


def sampler(source: str, monkeypatch: pytest.MonkeyPatch) -> type[Sampler]:
    """The class a plugin author would have written to my_package.py."""
    module = ModuleType("my_package")
    monkeypatch.setitem(sys.modules, "my_package", module)
    exec(compile(source, "README.md", "exec"), vars(module))
    return module.TopSquare


def test_the_sampler_is_ten_lines_and_sound(monkeypatch):
    source = blocks("python")[1]
    assert len([line for line in source.splitlines() if line.strip()]) <= 10
    check_sampler(sampler(source, monkeypatch))


def test_an_unsound_sampler_would_be_noticed(monkeypatch):
    source = blocks("python")[1].replace(">= self.top_square", "* self.top_square")
    with pytest.raises((AssertionError, JaxLlamaError)):
        check_sampler(sampler(source, monkeypatch))


def tree() -> list[str]:
    """List the paths in the map of ARCHITECTURE."""
    maps = blocks("", ARCHITECTURE)
    (block,) = [block for block in maps if block.startswith("jaxllama/")]
    found, folder = [], ""
    for line in block.splitlines():
        name = line.split()[0]
        if line.startswith(" "):
            found.append(folder + name)
        else:
            folder = name
            found.append(name)
    return found


def test_the_map_is_the_tree():
    paths = tree()
    assert [path for path in paths if not (ROOT / path).exists()] == []
    for folder in ("jaxllama", "plugins"):
        there = {
            f"{folder}/{each.name}{'/' if each.is_dir() else ''}"
            for each in (ROOT / folder).iterdir()
            if not each.name.startswith(("__", "."))
        }
        assert {path for path in paths if path.startswith(f"{folder}/")} - {f"{folder}/"} == {
            each for each in there if each.endswith(("/", ".py"))
        }


@pytest.mark.parametrize("document", [README, ARCHITECTURE], ids=["README", "ARCHITECTURE"])
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", document):
        assert (ROOT / target).exists(), target


def test_the_changelog_has_its_form():
    assert CHANGELOG.startswith("# Changelog")
    sections = re.findall(r"^## (.+)$", CHANGELOG, re.MULTILINE)
    assert sections
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", CHANGELOG, re.MULTILINE)) <= kinds
