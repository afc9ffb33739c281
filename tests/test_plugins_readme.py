"""The plugins' README is true: its tutorial runs, its table is the installed samplers'."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from jaxllama.cli.plugins import as_markdown, presets_as_markdown
from jaxllama.registry import PRESETS, SAMPLERS, load_plugins
from jaxllama.sampling import Preset, Sampler

ROOT = Path(__file__).parents[1]
README = (ROOT / "plugins/README.md").read_text()
TUTORIAL = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def first_party(group: str = SAMPLERS, base: type = Sampler) -> dict[str, type]:
    installed = load_plugins(group, base).loaded
    return {
        name: kind
        for name, kind in installed.items()
        if kind.__module__.startswith("jaxllama_samplers.")
    }


def test_a_useful_sampler_is_under_fifteen_lines():
    assert len([line for line in TUTORIAL[0].splitlines() if line.strip()]) < 15


def test_the_tutorial_runs_and_does_what_it_says(monkeypatch: pytest.MonkeyPatch, capsys):
    module = ModuleType("my_package")
    monkeypatch.setitem(sys.modules, "my_package", module)
    for block in TUTORIAL:
        exec(compile(block, "plugins/README.md", "exec"), vars(module))
        shown = re.findall(r"^# (.+)$", block, re.MULTILINE)  # what it says that it prints
        assert capsys.readouterr().out.splitlines() == shown


def test_the_tutorial_has_examples_of_state_and_of_candidates():
    text = "\n".join(TUTORIAL)
    for word in ("observe", "state(start=", "dataclasses.replace", "best.size", "candidates=2"):
        assert word in text
    printed = re.findall(r"^# (.+)$", text, re.MULTILINE)
    assert len(printed) == 5


def test_the_table_is_what_the_code_declares():
    start, end = "<!-- jaxllama plugins --markdown -->\n", "\n<!-- end -->"
    table = README.partition(start)[2].partition(end)[0]
    assert table == as_markdown(first_party()), "write the table anew: jaxllama plugins --markdown"


def test_the_presets_are_what_the_code_declares():
    table = README.partition("<!-- presets -->\n")[2].partition("\n<!-- end of presets -->")[0]
    assert table == presets_as_markdown(first_party(PRESETS, Preset))


def test_every_sampler_of_the_package_has_an_entry_point():
    folder = ROOT / "plugins/jaxllama_samplers"
    declares = re.compile(r"^class \w+\((Adjuster|Filter|Shaper)\):$", re.MULTILINE)
    files = {path.stem for path in folder.glob("*.py") if declares.search(path.read_text())}
    assert files == {kind.__module__.rpartition(".")[2] for kind in first_party().values()}
