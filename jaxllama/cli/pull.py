"""`jaxllama pull`: download a model to the local store and print its path as the last line."""

import click

from jaxllama.cli.terminal import note, startup_shown
from jaxllama.weights import store


@click.command("pull")
@click.argument("model", required=False)
def command(model: str | None) -> None:
    """Download MODEL and print its path.

    MODEL is a name (`jaxllama list --names`; default: smollm2-135m), hf:owner/name,
    hf:owner/name/file.gguf or an http address; a damaged model is downloaded again. The size is
    shown before the download. A path on this machine is only checked.
    """
    with startup_shown(keeps_programs=True) as report:
        path = store.pull(model, progress=report)
    note("Checked and ready; use it with --model, an encoder with --embedding-model.")
    click.echo(path)
