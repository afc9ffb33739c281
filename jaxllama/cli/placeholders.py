"""Texts with placeholders: {name} stands for a value.

Used by the commands that read prompts from templates. A name in two pairs of braces is not replaced
but loses one pair; any other brace stays as it is, so JSON needs no care.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxllama.cli.terminal import as_json
from jaxllama.errors import InvalidParameter

NAME = r"[^\W\d][\w -]*"
PLACEHOLDER = re.compile(rf"\{{(?P<literal>\{{{NAME}\}})\}}|\{{(?P<name>{NAME})\}}")
FILE = "@"  # an option's value that begins so names a file with the text


def fill(template: str, values: Mapping[str, object]) -> str:
    """Replace each {name} in the template by the value of that name, and {{name}} by {name}.

    Raises InvalidParameter if a name is not in `values`. A value that is no text becomes JSON.
    """

    def value_of(found: re.Match[str]) -> str:
        name = found["name"]
        if name is None:
            return found["literal"]
        if name not in values:
            raise InvalidParameter(f"the template has {{{name}}}; {expected(name, values)}")
        value = values[name]
        return value if isinstance(value, str) else as_json(value)

    return PLACEHOLDER.sub(value_of, template)


def expected(name: str, values: Mapping[str, object]) -> str:
    """Return a hint for an unknown placeholder: the nearest known name, or all names."""
    near = difflib.get_close_matches(name, values, n=1)
    if near:
        return f"did you mean {{{near[0]}}}?"
    return f"expected one of {', '.join(f'{{{each}}}' for each in values) or 'none'}"


def text_or_file(value: str, what: str) -> str:
    """Return the text of an option; if it is @FILE, the text of that file.

    `what` is the name of the option, for the error.
    """
    if not value.startswith(FILE):
        return value
    path = Path(value.removeprefix(FILE))
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InvalidParameter(f"{what}: {path} cannot be read: {error}") from error


def read_variables(given: Sequence[str]) -> dict[str, str]:
    """Parse texts NAME=VALUE to a mapping; raise InvalidParameter for any other text."""
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not re.fullmatch(NAME, name):
            raise InvalidParameter(f"--variable is {text!r}; expected NAME=VALUE")
        found[name] = value
    return found
