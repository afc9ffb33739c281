"""`jaxllama new`: write a package with one plugin in it, ready to install.

The package installs and passes its test as written; the author changes it from there.
"""

import keyword
import re
from pathlib import Path
from string import Template

import click

from jaxllama.cli.templates import (
    DIALECT,
    DIALECT_TEST,
    FORMAT,
    FORMAT_TEST,
    PROJECT,
    README,
    SAMPLER,
    SAMPLER_TEST,
    TOKENIZER_READER,
    TOKENIZER_TEST,
    USES,
    WEIGHTS_READER,
    WEIGHTS_TEST,
)
from jaxllama.errors import ConfigError, InvalidParameter
from jaxllama.formats import PromptFormat
from jaxllama.limits import LIMITS
from jaxllama.registry import DIALECTS, FORMATS, SAMPLERS, TOKENIZERS, WEIGHTS, load_plugins
from jaxllama.sampling import Sampler, knobs_of
from jaxllama.serve.dialect import Dialect
from jaxllama.text.reader import TokenizerReader
from jaxllama.weights.base import Checkpoint
from jaxllama.weights.binary import reason

NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
LONGEST = 40

WORDS = {
    "sampler": "sampler",
    "format": "prompt format",
    "weights": "weight format",
    "tokenizer": "tokenizer reader",
    "dialect": "dialect",
}
PARTS = {
    "sampler": (SAMPLER, SAMPLER_TEST, SAMPLERS),
    "format": (FORMAT, FORMAT_TEST, FORMATS),
    "weights": (WEIGHTS_READER, WEIGHTS_TEST, WEIGHTS),
    "tokenizer": (TOKENIZER_READER, TOKENIZER_TEST, TOKENIZERS),
    "dialect": (DIALECT, DIALECT_TEST, DIALECTS),
}
CHECKS = {
    "weights": "jaxllama pull path/to/model",
    "tokenizer": "jaxllama inspect path/to/model --tokenizer path/to/file",
}


@click.command("new")
@click.argument("what", type=click.Choice(list(PARTS)), metavar="|".join(PARTS))
@click.argument("name")
@click.option(
    "--into",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Create the package in this folder [default: the current one].",
)
def command(*, what: str, name: str, into: Path) -> None:
    """Write a package with a sampler, prompt format, reader of files or dialect called NAME.

    `weights` reads models, `tokenizer` tokenizers; a dialect is an HTTP API. The package is a new
    folder in the current one, or in that of --into. It can be installed as it is and passes its own
    test; change it from there.
    """
    check_name(what, name)
    project = f"jaxllama-{name.replace('_', '-')}"
    folder = into / project
    write(folder, files(what, name, project))
    click.echo(f"{folder}: a {WORDS[what]} called {name}")
    click.echo(f"next: cd {folder} && pip install -e . && python -m pytest")


def check_name(what: str, name: str) -> None:
    """Raise InvalidParameter if a name cannot be a plugin's name, or is already used.

    `what` is the kind of plugin.
    """
    fits = NAME.fullmatch(name) and len(name) <= LONGEST and not keyword.iskeyword(name)
    if not fits:
        raise InvalidParameter(
            f"{name[:100]!r} cannot be the name of a {WORDS[what]}; expected a lower-case word "
            f"of at most {LONGEST} letters, digits and single underscores, such as warm_start",
            "name",
        )
    if name in used_names(what):
        raise InvalidParameter(
            f"{name!r} is taken by what is installed; choose another name, or see "
            f"`jaxllama plugins`",
            "name",
        )


def used_names(what: str) -> set[str]:
    """Return the names in use, which a new plugin of the kind `what` cannot have."""
    if what == "format":
        formats = load_plugins(FORMATS, PromptFormat)  # type: ignore[type-abstract]
        return {*formats.loaded, *formats.broken}
    if what == "weights":
        readers = load_plugins(WEIGHTS, Checkpoint)  # type: ignore[type-abstract]
        return {*readers.loaded, *readers.broken}
    if what == "tokenizer":
        tokenizers = load_plugins(TOKENIZERS, TokenizerReader)  # type: ignore[type-abstract]
        return {*tokenizers.loaded, *tokenizers.broken}
    if what == "dialect":
        dialects = load_plugins(DIALECTS, Dialect)  # type: ignore[type-abstract]
        return {*dialects.loaded, *dialects.broken}
    samplers = load_plugins(SAMPLERS, Sampler)
    knobs = (name for kind in samplers.loaded.values() for name in knobs_of(kind))
    return {*samplers.loaded, *samplers.broken, *knobs, *LIMITS}


def files(what: str, name: str, project: str) -> dict[str, str]:
    """Return the text of every file of the new package, by path.

    `what` is the kind of plugin, `name` its name, and `project` the name of the package.
    """
    source, test, group = PARTS[what]
    words = {
        "what": WORDS[what],
        "check": CHECKS.get(what, f"jaxllama check {name}"),
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
    """Make the folder and write the files; raise ConfigError if the folder already exists.

    `texts` has the content of each file, by path.
    """
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
