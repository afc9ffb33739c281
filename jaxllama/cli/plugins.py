"""`jaxllama plugins`: list the installed plugins, and the reasons why others do not load."""

import shutil
import textwrap
from collections.abc import Mapping
from typing import Any

import click

from jaxllama.cli.options import bounds
from jaxllama.cli.terminal import as_json
from jaxllama.engine.choosing.knobs import catalogue
from jaxllama.formats import PromptFormat
from jaxllama.registry import (
    DIALECTS,
    FORMATS,
    PRESETS,
    SAMPLERS,
    TOKENIZERS,
    WEIGHTS,
    load_plugins,
)
from jaxllama.sampling import Adjuster, Filter, KnobSpec, Preset, Sampler, Shaper, knobs_of
from jaxllama.serve.dialect import Dialect
from jaxllama.text.reader import TokenizerReader
from jaxllama.weights.base import Checkpoint

STEP = "  "
WIDEST = 100  # columns

IndentedLines = list[tuple[int, str]]  # the indentation in steps, and the text


@click.command("plugins")
@click.option("--json", "wants_json", is_flag=True, help="Print one JSON object.")
@click.option("--markdown", is_flag=True, help="Print samplers and presets as Markdown tables.")
def command(*, wants_json: bool, markdown: bool) -> None:
    """List the installed samplers with their knobs, presets, prompt formats, readers, dialects.

    With --json one JSON object is printed, with --markdown tables of samplers and presets.
    """
    samplers = load_plugins(SAMPLERS, Sampler)
    formats = load_plugins(FORMATS, PromptFormat)  # type: ignore[type-abstract]
    weights = load_plugins(WEIGHTS, Checkpoint)  # type: ignore[type-abstract]
    tokenizers = load_plugins(TOKENIZERS, TokenizerReader)  # type: ignore[type-abstract]
    dialects = load_plugins(DIALECTS, Dialect)  # type: ignore[type-abstract]
    presets = load_plugins(PRESETS, Preset)
    broken = {
        f"{each.group} {name}": str(error)
        for each in (samplers, presets, formats, weights, tokenizers, dialects)
        for name, error in each.broken.items()
    }
    found = {
        "samplers": {name: describe_sampler(kind) for name, kind in in_order(samplers.loaded)},
        "presets": {name: describe_preset(kind) for name, kind in presets.loaded.items()},
        "formats": {name: summary(kind) for name, kind in formats.loaded.items()},
        "weights": {name: summary(kind) for name, kind in weights.loaded.items()},
        "tokenizers": {name: summary(kind) for name, kind in tokenizers.loaded.items()},
        "dialects": {name: summary(kind) for name, kind in dialects.loaded.items()},
        "broken": broken,
    }
    if wants_json:
        click.echo(as_json(found))
    elif markdown:
        click.echo(f"{as_markdown(samplers.loaded)}\n\n{presets_as_markdown(presets.loaded)}")
    else:
        draw(found)
    catalogue(samplers.loaded)  # raises if two samplers have the same knob


def describe_sampler(kind: type[Sampler]) -> dict[str, Any]:
    """Return a sampler as a JSON object."""
    knobs = {name: describe_knob(spec) for name, spec in knobs_of(kind).items()}
    return {"kind": kind_of(kind), "order": kind.order, "help": summary(kind), "knobs": knobs}


def describe_knob(spec: KnobSpec) -> dict[str, Any]:
    """Return a knob, a parameter of a sampler, as a JSON object."""
    found = {**vars(spec), "type": spec.kind.__name__}
    if spec.text is not None:
        text = {"longest": spec.text.longest, "examples": spec.text.examples}
        found |= {"type": "str", "off": None, "width": None, "text": text}
    return found


def describe_preset(kind: type[Preset]) -> dict[str, Any]:
    """Return a preset as a JSON object."""
    return {"help": summary(kind), "knobs": dict(kind.knobs)}


def summary(kind: type) -> str:
    """Return the first line of a class's docstring."""
    return (kind.__doc__ or "").strip().partition("\n")[0]


def accepts(knob: Mapping[str, Any]) -> str:
    """Return in words the values that a sampler's parameter accepts.

    `knob` describes the parameter: a JSON object with its type, bounds and so on.
    """
    if knob["text"]:
        return f"text; at most {knob['text']['longest']} characters"
    if knob["phrases"]:
        return f"texts or lists of token ids; at most {knob['width']} tokens"
    if knob["tokens"]:
        return f"token ids; at most {knob['width']}"
    word = {"int": "whole number", "bool": "true or false"}.get(knob["type"], "number")
    if knob["low"] is not None or knob["high"] is not None:
        word = f"{word}, {bounds(knob['low'], knob['high'])}"
    if knob["width"] is None:
        return word
    return f"{word}; {'a mapping of tokens, ' if knob['by_token'] else ''}at most {knob['width']}"


def settings_text(knobs: Mapping[str, object]) -> str:
    """Return as text the values that a preset sets, such as "top_p 0.9, min_p 0"."""
    return ", ".join(f"{name} {value}" for name, value in knobs.items())


def as_markdown(samplers: Mapping[str, type[Sampler]]) -> str:
    """Return a Markdown table of the knobs (parameters) of all samplers, in running order."""
    lines = ["| sampler | knob | accepts | when not given | |", "|---|---|---|---|---|"]
    for name, kind in in_order(samplers):
        first = name
        for knob, spec in describe_sampler(kind)["knobs"].items():
            cells = (first, f"`{knob}`", accepts(spec), default_text(spec), spec["help"])
            lines.append(f"| {' | '.join(cells)} |")
            first = ""
    return "\n".join(lines)


def presets_as_markdown(presets: Mapping[str, type[Preset]]) -> str:
    """Return a Markdown table of all presets."""
    lines = ["| preset | | sets |", "|---|---|---|"]
    for name, kind in presets.items():
        lines.append(f"| `{name}` | {summary(kind)} | {settings_text(kind.knobs)} |")
    return "\n".join(lines)


def kind_of(sampler: type[Sampler]) -> str:
    """Return "adjuster", "shaper" or "filter": the base class of a sampler."""
    kinds = {"adjuster": Adjuster, "shaper": Shaper, "filter": Filter}
    return next(word for word, kind in kinds.items() if issubclass(sampler, kind))


def in_order(samplers: Mapping[str, type[Sampler]]) -> list[tuple[str, type[Sampler]]]:
    """Return (name, sampler) pairs in the order in which the samplers run."""
    return sorted(samplers.items(), key=lambda item: running_order(*item))


def running_order(name: str, kind: type[Sampler]) -> tuple[int, int, str]:
    """Return the key that sorts the sampler `kind`, called `name`, into running order.

    Adjusters run first, then shapers, filters, and shapers with `last` set; samplers of one kind
    run by their attribute `order`, then by name.
    """
    if issubclass(kind, Shaper):
        return (3 if kind.last else 1, kind.order, name)
    return (0 if issubclass(kind, Adjuster) else 2, kind.order, name)


def default_text(knob: Mapping[str, Any]) -> str:
    """Return as text the value that a sampler's parameter has if a request does not set it.

    `knob` describes the parameter: a JSON object with its type, bounds and so on.
    """
    return "nothing" if knob["width"] is not None or knob["text"] else str(knob["off"]).lower()


def draw(found: Mapping[str, Any]) -> None:
    """Print the descriptions of all plugins in `found`, in lines no wider than the terminal."""
    width = min(shutil.get_terminal_size().columns, WIDEST)
    for title, entries in listing(found).items():
        if entries:
            click.secho(title, bold=True)
            for entry in entries:
                for depth, text in entry:
                    click.echo(wrapped(text, depth, width))
            click.echo()


def listing(found: Mapping[str, Any]) -> dict[str, list[IndentedLines]]:
    """Return the plugins by section title; each is a list of (indentation, line) pairs.

    `found` has the descriptions of all plugins.
    """
    return {
        "Samplers, in the order in which they run": [
            lines_of_sampler(name, sampler) for name, sampler in found["samplers"].items()
        ],
        "Presets": [
            [(1, f"{name}: {preset['help']}"), (2, settings_text(preset["knobs"]))]
            for name, preset in found["presets"].items()
        ],
        "Prompt formats": [[(1, f"{name}: {text}")] for name, text in found["formats"].items()],
        "Weight readers": [[(1, f"{name}: {text}")] for name, text in found["weights"].items()],
        "Tokenizer readers": [
            [(1, f"{name}: {text}")] for name, text in found["tokenizers"].items()
        ],
        "Dialects": [[(1, f"{name}: {text}")] for name, text in found["dialects"].items()],
        "Broken": [[(1, f"{name}: {text}")] for name, text in found["broken"].items()],
    }


def lines_of_sampler(name: str, sampler: Mapping[str, Any]) -> IndentedLines:
    """Return the lines about one sampler: its purpose, then two lines for each parameter.

    `sampler` is its description as a JSON object. The result has (indentation, line) pairs.
    """
    lines = [(1, f"{name} ({sampler['kind']}): {sampler['help']}")]
    for knob, spec in sampler["knobs"].items():
        lines += [
            (2, f"{knob}: {accepts(spec)} [default: {default_text(spec)}]"),
            (3, spec["help"]),
        ]
    return lines


def wrapped(text: str, depth: int, width: int) -> str:
    """Wrap a text to `width` columns, indented `depth` steps; further lines one step more."""
    return textwrap.fill(
        text,
        width,
        initial_indent=STEP * depth,
        subsequent_indent=STEP * (depth + 1),
        break_long_words=False,
        break_on_hyphens=False,
    )
