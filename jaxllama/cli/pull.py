"""`jaxllama pull`: download a model to the local store and print its path as the last line."""

import click

from jaxllama.cli.terminal import note, progress_bars
from jaxllama.weights import store


@click.command("pull")
@click.argument("model", required=False)
def command(model: str | None) -> None:
    """Download MODEL and print its path.

    MODEL is a name (default: smollm2-135m; minilm is an encoder), hf:owner/name,
    hf:owner/name/file.gguf or an http address; a damaged model is downloaded again. A path on this
    machine is only checked.
    """
    with progress_bars() as report:
        path = store.pull(model, progress=report)
    note("Checked and ready; use it with --model, an encoder with --embedding-model.")
    click.echo(path)
