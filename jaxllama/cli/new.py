"""`jaxllama new`: write a package with one sampler or prompt format in it, ready to install.

The package installs and passes its test as written; the author changes it from there.
"""

import keyword
import re
from pathlib import Path
from string import Template

import click

from jaxllama.errors import ConfigError, InvalidParameter
from jaxllama.formats import PromptFormat
from jaxllama.limits import LIMITS
from jaxllama.registry import FORMATS, SAMPLERS, load_plugins
from jaxllama.sampling import Sampler, knobs_of
from jaxllama.weights.binary import reason

NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
LONGEST = 40

SAMPLER = '''\
"""$name: a sampler for jaxllama."""

from jaxllama.sampling import Candidates, Context, Filter, Knob, knob
from jaxllama.shapes import Array, Bool


class $kind(Filter):
    """Draw among tokens at least `$name` times as likely as the likeliest."""

    $name: Knob = knob(off=0.0, low=0.0, high=1.0, help="smallest share of the top probability")

    def __call__(self, best: Candidates, context: Context) -> Bool[Array, " C"]:
        """True where a candidate may be drawn."""
        return best.p >= self.$name * best.p[0]
'''

SAMPLER_TEST = '''\
"""Tests of $name; run with `python -m pytest`."""

from $module import $kind
from jaxllama.testing import check_sampler
from jaxllama.testing.tryout import Tryout, survivors

LOGITS = [[2.0, 1.9, 0.0, -3.0]]


def test_it_keeps_the_contract_of_samplers():
    check_sampler($kind)


def test_only_tokens_close_to_the_likeliest_are_drawn():
    tryout = Tryout({"$name": $kind}, vocab=4, slots=1)
    assert survivors(tryout.choose(LOGITS, {"$name": 0.5})) == [0, 1]
    assert survivors(tryout.choose(LOGITS, {"$name": 0.0})) == [0, 1, 2, 3]
'''

FORMAT = '''\
"""$name: a prompt format for jaxllama."""

from collections.abc import Sequence

from jaxllama.formats import Message, PromptFormat


class $kind(PromptFormat):
    """[user] ... [end] [assistant] ..."""

    name = "$name"
    stop = ("[end]",)

    def render(self, messages: Sequence[Message], *, answer: bool = True) -> str:
        """Every message in its brackets, and where the assistant begins to speak."""
        turns = [f"[{message.role}]\\n{message.content}\\n[end]\\n" for message in messages]
        return "".join(turns) + ("[assistant]\\n" if answer else "")
'''

FORMAT_TEST = '''\
"""What $name renders; run with `python -m pytest`."""

from $module import $kind
from jaxllama.formats import Message
from jaxllama.testing import check_format


def test_it_keeps_the_contract_of_formats():
    check_format($kind)


def test_a_question_is_followed_by_the_head_of_the_answer():
    text = $kind().render([Message("user", "Hello")])
    assert text == "[user]\\nHello\\n[end]\\n[assistant]\\n"
'''

PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "$project"
version = "0.1.0"
description = "The $what $name for jaxllama"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["jaxllama"]

[project.optional-dependencies]
test = ["pytest"]

[project.entry-points."$group"]
$name = "$module:$kind"

[tool.hatch.build.targets.wheel]
only-include = ["$module.py"]
"""

README = """\
# $project

The $what `$name` for jaxllama. It is all in `$module.py`.

    pip install -e .
    python -m pytest
    jaxllama check $name
    jaxllama plugins

$use
"""

USES = {
    "sampler": "Once it is installed, `$name` is an option of the command line, an argument of\n"
    "`LLM.generate` and a field of every request:\n\n"
    '    jaxllama generate -p "Once upon a time" --$option 0.1',
    "format": "Once it is installed, it can be asked for by name:\n\n"
    "    jaxllama chat --format $name",
}
PARTS = {"sampler": (SAMPLER, SAMPLER_TEST, SAMPLERS), "format": (FORMAT, FORMAT_TEST, FORMATS)}


@click.command("new")
@click.argument("what", type=click.Choice(list(PARTS)), metavar="sampler|format")
@click.argument("name")
@click.option(
    "--into",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Create the package in this folder [default: the current one].",
)
def command(*, what: str, name: str, into: Path) -> None:
    """Write a package with a sampler or prompt format called NAME.

    The package can be installed as it is and passes its own test; change it from there.
    """
    check_name(what, name)
    project = f"jaxllama-{name.replace('_', '-')}"
    folder = into / project
    write(folder, files(what, name, project))
    click.echo(f"{folder}: a {what} called {name}")
    click.echo(f"next: cd {folder} && pip install -e . && python -m pytest")


def check_name(what: str, name: str) -> None:
    """Raise InvalidParameter if a name cannot be a plugin's name, or is already used."""
    fits = NAME.fullmatch(name) and len(name) <= LONGEST and not keyword.iskeyword(name)
    if not fits:
        raise InvalidParameter(
            f"{name[:100]!r} cannot be the name of a {what}; expected a lower-case word of at most "
            f"{LONGEST} letters, digits and single underscores, such as warm_start",
            "name",
        )
    if name in used_names(what):
        raise InvalidParameter(
            f"{name!r} is taken by what is installed; choose another name, or see "
            f"`jaxllama plugins`",
            "name",
        )


def used_names(what: str) -> set[str]:
    """Return the names that are already used by plugins or knobs."""
    if what == "format":
        formats = load_plugins(FORMATS, PromptFormat)  # type: ignore[type-abstract]
        return {*formats.loaded, *formats.broken}
    samplers = load_plugins(SAMPLERS, Sampler)
    knobs = (name for kind in samplers.loaded.values() for name in knobs_of(kind))
    return {*samplers.loaded, *samplers.broken, *knobs, *LIMITS}


def files(what: str, name: str, project: str) -> dict[str, str]:
    """Return the text of every file of the package, by its path."""
    source, test, group = PARTS[what]
    words = {
        "what": what if what == "sampler" else "prompt format",
        "name": name,
        "option": name.replace("_", "-"),
        "kind": "".join(part.capitalize() for part in name.split("_")),
        "module": f"jaxllama_{name}",
        "project": project,
        "group": group,
    }
    words["use"] = Template(USES[what]).substitute(words)
    texts = {
        f"{words['module']}.py": source,
        f"test_{words['module']}.py": test,
        "pyproject.toml": PROJECT,
        "README.md": README,
    }
    return {path: Template(text).substitute(words) for path, text in texts.items()}


def write(folder: Path, texts: dict[str, str]) -> None:
    """Make the folder and write the files; raise ConfigError if the folder already exists."""
    try:
        folder.mkdir(parents=True)
        for path, text in texts.items():
            (folder / path).write_text(text, encoding="utf-8")
    except FileExistsError as error:
        raise ConfigError(
            f"{folder} exists already; nothing is overwritten: remove it, or choose another name "
            f"or --into another folder"
        ) from error
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {reason(error)}") from error
