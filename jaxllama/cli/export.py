"""`jaxllama export`: write a model as a GGUF file or a Hugging Face folder."""

from pathlib import Path

import click

from jaxllama.cli.terminal import note, startup_shown
from jaxllama.weights.export import TARGETS, export
from jaxllama.weights.store import resolve


@click.command("export")
@click.argument("model")
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--to", type=click.Choice(list(TARGETS)), required=True, help="The format to write.")
@click.option("--force", is_flag=True, help="Replace TARGET if it exists.")
def command(model: str, target: Path, to: str, *, force: bool) -> None:
    """Write MODEL to TARGET in another format: a GGUF file, or a Hugging Face folder.

    --to names the format; an existing TARGET is replaced only with --force. Matrices that MODEL
    keeps in the type asked for keep their bits. Vectors are float32 in GGUF files. The plain
    `safetensors` keeps each dense weight's dtype and makes packed ones float32.
    """
    with startup_shown(keeps_programs=True) as report:
        path = resolve(model, progress=report)

        def show(done: int, total: int) -> None:
            if report is not None:
                report("writing tensors", done, total)

        export(path, target, to, replaces=force, progress=show)
    note("Written and read back; use it with --model.")
    click.echo(target)
