"""The documents agree with the project: links, headings, commands and the names of tests.

`make docs` builds a site of the same documents in an environment of its own; the pages that it
makes from the code are made here, too.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxllama import LLM
from jaxllama.cli.main import COMMANDS
from tests.cli.conftest import Scripted, shout
from tests.test_readme import ROOT, blocks, check_arguments, commands

FOLDERS = ("", "docs", "bench", "packaging", "plugins", "checkpoints")
DOCUMENTS = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.md"))]
FENCED = re.compile(r"^```.*?^```$|`[^`\n]+`", re.DOTALL | re.MULTILINE)
RECIPES = [ROOT / "docs/tutorial.md", ROOT / "docs/how-to.md"]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def links(text: str) -> list[tuple[str, str]]:
    """Every link to this project: its path, empty for the page itself, and its anchor."""
    found = re.findall(r"\]\(([^)\s#]*)(?:#([^)\s]*))?\)", FENCED.sub("", text))
    return [each for each in found if not re.match(r"[a-z]+:", each[0])]


def anchors(text: str) -> set[str]:
    """The anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M), re.M)
    plain = (re.sub(r"[^\w\- ]", "", each.lower()) for each in headings)
    return {each.replace(" ", "-") for each in plain}


def dead_links(path: Path, text: str) -> Iterator[str]:
    for target, anchor in links(text):
        there = (path.parent / target).resolve() if target else path
        if not there.exists():
            yield target
        elif anchor and there.suffix == ".md" and anchor not in anchors(there.read_text()):
            yield f"{target}#{anchor}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_no_link_is_dead(path: Path) -> None:
    assert list(dead_links(path, path.read_text())) == []


def test_a_dead_link_is_noticed() -> None:
    text = "# A b!\n[a](nowhere.md) [b](#a-b) [c](#c) [d](README.md#nothing) [e](https://x.y/)"
    path = ROOT / "README.md"
    assert anchors(text) == {"a-b"}
    assert links(text)[0] == ("nowhere.md", "")
    assert "nowhere.md" in list(dead_links(path, text))
    assert "README.md#nothing" in list(dead_links(path, text))


@pytest.mark.parametrize(
    "words",
    [each for path in RECIPES for each in commands("jaxllama", path.read_text())],
    ids=" ".join,
)
def test_commands_exist_with_their_options(words: list[str]) -> None:
    check_arguments(words)


def test_the_python_of_the_tutorial_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted = Scripted(shout)
    monkeypatch.setattr(LLM, "load", lambda: scripted.load(progress=None))
    values: dict[str, object] = {}
    (example,) = blocks("python", RECIPES[0].read_text())
    exec(compile(example, "tutorial.md", "exec"), values)
    assert values["hot"] != values["cold"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_tests_that_are_named_exist(path: Path) -> None:
    for file, name in re.findall(r"`(?:tests/)?([\w/]+\.py)::(\w+)`", path.read_text()):
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), f"{file}::{name}"


def test_every_document_is_a_page_of_the_site_and_the_reference_is_complete(tmp_path: Path) -> None:
    script = ROOT / "docs/site/assemble.py"
    subprocess.run([sys.executable, script, tmp_path], check=True)
    pages = {path.name: path.read_text() for path in tmp_path.glob("*.md")}
    assert {path.name for path in (ROOT / "docs").glob("*.md")} <= set(pages)
    listed = [re.sub(r".*<(.*)>", r"\1", line) for line in contents(pages["index.md"])]
    assert sorted(listed) == sorted(Path(each).stem for each in pages if each != "index.md")
    for name, text in pages.items():
        assert list(dead_links(tmp_path / name, text)) == [], name
    assert all(f"\n## {name}\n" in pages["commands.md"] for name in COMMANDS)
    assert "`min_p`" in pages["samplers.md"]
    assert "`POST /v1/chat/completions` *" in pages["routes.md"]
    assert "### LLM.generate" in pages["python.md"]


def contents(index: str) -> list[str]:
    """The pages that the first page lists."""
    lines = "\n".join(re.findall(r"^```{toctree}\n(.*?)^```$", index, re.S | re.M)).splitlines()
    return [line for line in lines if line and not line.startswith(":")]
