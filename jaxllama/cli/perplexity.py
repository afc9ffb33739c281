"""`jaxllama perplexity`: measure the perplexity of a model on a text."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from jaxllama.cli.generate import decode
from jaxllama.cli.options import ModelCommand
from jaxllama.cli.terminal import as_json, open_llm, progress_bars

NOT_USED = ("load_prompt_format", "load_sampling_defaults")


@click.command("perplexity", cls=ModelCommand, slots=1, leave_out=NOT_USED)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--json", "wants_json", is_flag=True, help="Print one JSON object.")
def command(*, file: Path, wants_json: bool, loading: Mapping[str, Any]) -> None:
    """Measure the perplexity of a model on the text in FILE; lower is better.

    The text is cut into windows of --context tokens, and no window sees the tokens before it. With
    --json one JSON object is printed.
    """
    text = decode(file.read_bytes(), str(file))
    with open_llm(loading, is_short=True) as llm, progress_bars() as report:
        found = llm.perplexity(text, progress=report)
    if wants_json:
        fields = {"perplexity": found.value, "tokens": found.tokens, "seconds": found.seconds}
        click.echo(as_json(fields))
        return
    speed = found.tokens / found.seconds
    click.echo(f"perplexity {found.value:.4f} over {found.tokens} tokens ({speed:.0f} tok/s)")
