"""The reference of the site, as Markdown made from the code: commands, samplers, routes, Python.

Called by assemble.py. Imports no model and starts nothing.
"""

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import click
import msgspec

import jaxllama
from jaxllama.cli.main import COMMANDS, main
from jaxllama.cli.plugins import as_markdown, presets_as_markdown, summary
from jaxllama.formats import PromptFormat
from jaxllama.limits import FRONT, LIMITS, Limit
from jaxllama.registry import FORMATS, PRESETS, SAMPLERS, load_plugins
from jaxllama.sampling import Preset, Sampler
from jaxllama.serve.dialect import Dialect
from jaxllama.serve.endpoints import Endpoint, RequestShape
from jaxllama.serve.installed import open_dialects
from jaxllama.serve.settings import Settings

WIDTH = 88  # columns of a help text
Json = Mapping[str, Any]


def pages() -> dict[str, str]:
    """Return the pages of the reference, by their names without folder."""
    return {
        "commands.md": "\n\n".join(commands()),
        "samplers.md": "\n\n".join(samplers()),
        "routes.md": "\n\n".join(routes()),
        "python.md": "\n\n".join(python()),
    }


def commands() -> Iterator[str]:
    """Yield the page of the command line: the help of every command."""
    yield "# Command line"
    yield "What `jaxllama COMMAND --help` prints, with the installed samplers' knobs."
    group = click.Context(main, info_name="jaxllama")
    for name in COMMANDS:
        command = main.get_command(group, name)
        assert command is not None
        context = click.Context(command, info_name=name, parent=group, terminal_width=WIDTH)
        yield f"## {name}"
        yield f"```text\n{command.get_help(context)}\n```"


def samplers() -> Iterator[str]:
    """Yield the page of knobs: the engine's own, those of all samplers, presets and formats."""
    yield "# Knobs, presets and prompt formats"
    yield (
        "A knob has the same name in a request, as an argument in Python and, with dashes, as an "
        "option of the command line."
    )
    yield "## Knobs of the engine"
    rows = [(f"`{name}`", bounds_of(limit), limit.help) for name, limit in LIMITS.items()]
    yield table(("knob", "accepts", "what it does"), rows)
    yield "## Knobs of the samplers, in running order"
    yield as_markdown(load_plugins(SAMPLERS, Sampler).loaded)
    yield "## Presets"
    yield presets_as_markdown(load_plugins(PRESETS, Preset).loaded)
    yield "## Prompt formats"
    formats = load_plugins(FORMATS, PromptFormat).loaded
    rows = [(f"`{name}`", summary(kind)) for name, kind in formats.items()]
    yield table(("format", "what it is"), rows)


def bounds_of(limit: Limit) -> str:
    """Return the values that a field of the limits table accepts, as text."""
    kind = {int: "whole number", float: "number", bool: "true or false", str: "text"}[limit.kind]
    parts = [kind]
    if limit.low is not None and limit.high is not None and limit.kind is not bool:
        parts.append(f"{limit.low:,} to {limit.high:,}")
    if limit.longest:
        parts.append(f"at most {limit.longest} characters")
    if limit.many:
        parts.append(f"or a list of at most {limit.most}")
    return ", ".join([*parts, *(f"or `{word}`" for word in limit.words)])


def routes() -> Iterator[str]:
    """Yield the page of the HTTP API: the routes of every dialect, and the fields of its bodies."""
    yield "# HTTP routes"
    yield (
        "The same facts are at `/openapi.json` of a running server, with the types of all answers, "
        "and at `/docs` with examples. Routes marked with * take the knobs as fields, too."
    )
    for dialect in open_dialects(Settings()):
        yield f"## {dialect.name}"
        yield summary(type(dialect))
        yield route_table(dialect)
        bodies = {each.body: None for each in dialect.endpoints if each.body is not None}
        for body in bodies:
            used = [each for each in dialect.endpoints if each.body is body]
            yield f"### {', '.join(f'{each.method} {each.plain_path}' for each in used)}"
            yield body_table(body)


def route_table(dialect: Dialect) -> str:
    """Return the routes of a dialect."""
    rows = [(route(each), each.summary, access(each)) for each in dialect.endpoints]
    return table(("route", "what it does", "note"), rows)


def route(endpoint: Endpoint) -> str:
    """Return method and path of an endpoint."""
    star = " *" if endpoint.takes_knobs else ""
    return f"`{endpoint.method} {endpoint.plain_path}`{star}"


def access(endpoint: Endpoint) -> str:
    """Say what is special about an endpoint."""
    notes = ["streams"] if endpoint.events else []
    return ", ".join([*notes, "needs no key"] if endpoint.is_open else notes)


def body_table(body: type[RequestShape]) -> str:
    """Return the fields of a request body."""
    (schema,), parts = msgspec.json.schema_components([body], ref_template="{name}")
    found = parts[schema["$ref"]]
    rows = []
    for name, field in found["properties"].items():
        if name in body.unsupported:
            help_ = f"not supported: {body.unsupported[name]}"
        elif name in body.unheeded:
            help_ = f"of no effect: {body.unheeded[name]}"
        else:
            help_ = FRONT[name].help if name in FRONT else ""
        needed = " (needed)" if name in found.get("required", ()) else ""
        rows.append((f"`{name}`{needed}", kind_of(field), help_))
    return table(("field", "accepts", "what it does"), rows)


def kind_of(schema: Json) -> str:
    """Return the values that a schema of msgspec accepts, as text."""
    if "anyOf" in schema:
        kinds = (kind_of(each) for each in schema["anyOf"])
        return " or ".join(dict.fromkeys(kind for kind in kinds if kind != "null"))
    if "$ref" in schema:
        return "object"
    if "enum" in schema:
        return " or ".join(f"`{each}`" for each in schema["enum"])
    if schema.get("type") == "array":
        items = schema.get("items")
        return f"list of ({kind_of(items)})" if items else "list"
    return {"integer": "whole number", "string": "text", "boolean": "true or false"}.get(
        schema.get("type", "anything"), schema.get("type", "anything")
    )


def python() -> Iterator[str]:
    """Yield the page of the Python API: everything that `import jaxllama` offers."""
    yield "# Python"
    for name in jaxllama.__all__:
        thing = getattr(jaxllama, name)
        yield f"## {name}"
        yield from described(thing)
        if not inspect.isclass(thing):
            continue
        for method, value in vars(thing).items():
            function = getattr(value, "__func__", value)
            if method.startswith("_") or not inspect.isfunction(function):
                continue
            yield f"### {name}.{method}"
            yield from described(function)


def described(thing: Any) -> Iterator[str]:
    """Yield the signature and the docstring of a class or function."""
    yield f"```text\n{signature(thing)}\n```"
    yield inspect.getdoc(thing) or ""


def signature(thing: Any) -> str:
    """Return the name and the arguments of a class or function; one a line if there are many."""
    try:
        found = inspect.signature(thing)
    except (TypeError, ValueError):  # an enumeration or an alias
        return str(thing.__qualname__)
    given = [each for name, each in found.parameters.items() if name not in ("self", "cls")]
    found = found.replace(parameters=given)
    whole = without_modules(f"{thing.__qualname__}{found}")
    if len(whole) <= WIDTH:
        return whole
    head, end = whole.split("(", 1)[0], whole.rpartition(")")[2]
    arguments = [without_modules(str(each)) for each in given]
    return "\n".join([f"{head}(", *(f"    {each}," for each in arguments), f"){end}"])


def without_modules(text: str) -> str:
    """Return a signature with the plain names of classes."""
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Z])", "", text)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    cells = [list(head), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(cells[0]), *lines[1:]])
