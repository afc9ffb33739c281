"""`jaxllama list`: list the models in the store."""

import dataclasses

import click

from jaxllama.cli.inspect import size_text
from jaxllama.cli.terminal import as_json, note
from jaxllama.weights.named import MODELS
from jaxllama.weights.sentence_transformers import SentenceFolder
from jaxllama.weights.stock import stocked
from jaxllama.weights.store import store_folder


@click.command("list")
@click.option("--names", "wants_names", is_flag=True, help="List the names that can be fetched.")
@click.option("--json", "wants_json", is_flag=True, help="Print one JSON object.")
def command(*, wants_names: bool, wants_json: bool) -> None:
    """List the models in the store with their size; a damaged one with the reason.

    With --names, lists the names of models that can be fetched. With --json one JSON object is
    printed.
    """
    if wants_names:
        list_names(wants_json=wants_json)
        return
    models = stocked()
    if wants_json:
        listed = [dataclasses.asdict(each) | {"path": str(each.path)} for each in models]
        click.echo(as_json({"folder": str(store_folder()), "models": listed}))
        return
    width = max((len(each.name) for each in models), default=0)
    for each in models:
        use = ", for --embedding-model" if each.reader == SentenceFolder.__name__ else ""
        state = f"{each.reader}{use}" if each.reader else f"damaged: {each.problem}"
        click.echo(f"{each.name:{width}}  {size_text(each.nbytes):>10}  {state}")
    note(f"{len(models)} models in {store_folder()}")


def list_names(*, wants_json: bool) -> None:
    """List the names of models and where each comes from; with `wants_json` as JSON."""
    origins = {name: source.origin for name, source in MODELS.items()}
    if wants_json:
        click.echo(as_json(origins))
        return
    width = max(map(len, origins))
    for name, origin in origins.items():
        click.echo(f"{name:{width}}  {origin}")
    note("Fetch one with `jaxllama pull NAME`; other spellings of a name are understood.")
