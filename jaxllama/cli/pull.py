"""`jaxllama pull`: a model in the local store, and its path as the last line."""

import click

from jaxllama.cli.terminal import note, progress_bars
from jaxllama.weights import store


@click.command("pull")
@click.argument("model", required=False)
def command(model: str | None) -> None:
    """Fetch a MODEL and print its path.

    MODEL is a name (default: smollm2-135m), hf:owner/name, hf:owner/name/file.gguf, an http
    address, or a path, which is only checked. A damaged model is fetched anew.
    """
    with progress_bars() as report:
        path = store.pull(model, progress=report)
    note("Checked and ready; use it with --model.")
    click.echo(path)
