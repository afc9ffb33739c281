"""`jaxllama convert`: write a model as a checkpoint of our own, quantised if asked."""

import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import click

from jaxllama.cli.generate import decode
from jaxllama.cli.terminal import as_json, note, open_llm, progress_bars, startup_shown
from jaxllama.weights.convert import DTYPES, STORED, Recipe, WeightError, convert
from jaxllama.weights.store import resolve

FileOption = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("convert")
@click.argument("model")
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default=STORED,
    show_default=True,
    help="Form of the matrices; stored: as MODEL has them (float8 as float32).",
)
@click.option(
    "--group", default=32, show_default=True, help="Inputs that share a scale in int8 and int4."
)
@click.option(
    "--minimise-error", is_flag=True, help="Choose scales with the least squared error; slower."
)
@click.option(
    "--perplexity", "text", type=FileOption, help="Measure on this text, before and after."
)
@click.option("--force", is_flag=True, help="Replace TARGET if it exists.")
@click.option("--json", "wants_json", is_flag=True, help="Print one JSON object.")
def command(  # noqa: PLR0913 - one for each option
    *,
    model: str,
    target: Path,
    dtype: str,
    group: int,
    minimise_error: bool,
    text: Path | None,
    force: bool,
    wants_json: bool,
) -> None:
    """Write MODEL to the folder TARGET as a checkpoint that opens without conversion.

    Prints the error of each block: root mean square, relative to the weights; with --perplexity
    also how well the model predicts a text, before and after. With --json one JSON object is
    printed.
    """
    recipe = Recipe(dtype, group, minimise_error)
    with startup_shown(keeps_programs=True) as report:
        path = resolve(model, progress=report)

        def show(done: int, total: int) -> None:
            if report is not None:
                report("writing weights", done, total)

        errors = convert(path, target, recipe, replaces=force, progress=show)
    measured = {} if text is None else measure(text, {"before": path, "after": target})
    if wants_json:
        listed = {each.path: {"form": each.form, "error": each.relative} for each in errors}
        click.echo(as_json({"path": str(target), "weights": listed, "perplexity": measured}))
        return
    for name, relative in by_block(errors):
        click.echo(f"{name:12} error {relative:.5f}")
    for when, value in measured.items():
        click.echo(f"perplexity {when:6} {value:.4f}")
    note("Written; use it with --model.")
    click.echo(target)


def by_block(errors: Sequence[WeightError]) -> list[tuple[str, float]]:
    """Return (name, error) for each transformer block, and each module outside of blocks, in order.

    The error is the root mean square error of the weights, divided by their root mean square.
    """
    found = []
    for name, group in groupby(errors, key=lambda each: block_of(each.path)):
        members = list(group)
        square = sum(each.square for each in members)
        difference = sum(each.difference for each in members)
        found.append((name, math.sqrt(difference / square) if square else 0.0))
    return found


def block_of(path: str) -> str:
    """Return the name of a weight's transformer block, such as "blocks.3", or else of its module.

    `path` is the weight's parameter path.
    """
    first, second, *_ = path.split(".")
    return f"{first}.{second}" if first == "blocks" else first


def measure(text: Path, models: dict[str, Path]) -> dict[str, float]:
    """Return the perplexity of each model on the text in a file.

    `models` maps names to the models' paths; the results have the same names.
    """
    content = decode(text.read_bytes(), str(text))
    found = {}
    for when, path in models.items():
        settings = {"slots": 1, "prompt_format": None, "sampling_defaults": "none"}
        with open_llm({"model": path, **settings}) as llm, progress_bars() as report:
            found[when] = llm.perplexity(content, progress=report).value
    return found
