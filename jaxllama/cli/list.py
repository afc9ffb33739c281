"""`jaxllama list`: list the models in the store."""

import dataclasses

import click

from jaxllama.cli.inspect import size_text
from jaxllama.cli.terminal import as_json, note
from jaxllama.weights.stock import stocked
from jaxllama.weights.store import store_folder


@click.command("list")
@click.option("--json", "wants_json", is_flag=True, help="Print one JSON object.")
def command(*, wants_json: bool) -> None:
    """List the models in the store with their size; a damaged one with the reason."""
    models = stocked()
    if wants_json:
        listed = [dataclasses.asdict(each) | {"path": str(each.path)} for each in models]
        click.echo(as_json({"folder": str(store_folder()), "models": listed}))
        return
    width = max((len(each.name) for each in models), default=0)
    for each in models:
        state = each.reader or f"damaged: {each.problem}"
        click.echo(f"{each.name:{width}}  {size_text(each.nbytes):>10}  {state}")
    note(f"{len(models)} models in {store_folder()}")
