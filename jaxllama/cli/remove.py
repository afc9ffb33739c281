"""`jaxllama remove`: delete a model from the store."""

import click

from jaxllama.cli.inspect import size_text
from jaxllama.cli.terminal import note
from jaxllama.weights.stock import discard


@click.command("remove")
@click.argument("name")
def command(name: str) -> None:
    """Delete the model NAME from the store; `jaxllama list` shows the names.

    Only files in the store are deleted. A link is deleted, and its target stays.
    """
    model = discard(name)
    note(f"Removed {model.name} ({size_text(model.nbytes)}).")
    click.echo(model.path)
