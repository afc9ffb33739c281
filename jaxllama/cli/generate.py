"""`jaxllama generate`: one prompt continued, printed as it comes."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from jaxllama.cli.options import GenerationCommand
from jaxllama.cli.terminal import as_json, completion_fields, note, open_llm, rates, show, summary
from jaxllama.errors import InvalidParameter


@click.command("generate", cls=GenerationCommand, slots=1)
@click.option("-p", "--prompt", help="The text to continue; - reads standard input.")
@click.option(
    "--prompt-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Read the prompt from a file.",
)
@click.option("--chat", is_flag=True, help="The prompt is a question: answer it.")
@click.option("--json", "wants_json", is_flag=True, help="Print one JSON object, at the end.")
def command(
    *,
    prompt: str | None,
    prompt_file: Path | None,
    chat: bool,
    wants_json: bool,
    loading: Mapping[str, Any],
    knobs: Mapping[str, Any],
) -> None:
    """Continue a prompt: print the text as it comes, then how fast it came.

    Of a prompt from a file or from standard input, one final line break is dropped.
    """
    if "prompt_format" in loading and not chat:
        raise click.UsageError("--format is for conversations; it needs --chat.")
    text = read_prompt(prompt, prompt_file)
    with open_llm(loading) as llm:
        if chat:
            stream = llm.chat_stream([{"role": "user", "content": text}], **knobs)
        else:
            stream = llm.stream(text, **knobs)
        for delta in stream:
            if not wants_json:
                show(delta.text)
        completion = stream.completion
    if wants_json:
        click.echo(as_json(completion_fields(completion) | {"timings": rates(completion.usage)}))
        return
    show("\n")
    note(summary(completion.usage))


def read_prompt(prompt: str | None, prompt_file: Path | None) -> str:
    """The prompt, from wherever it was said to be."""
    if (prompt is None) == (prompt_file is None):
        raise click.UsageError("Give one prompt: -p TEXT, -p - or --prompt-file FILE.")
    if prompt_file is not None:
        return decode(prompt_file.read_bytes(), str(prompt_file))
    if prompt == "-":
        return decode(sys.stdin.buffer.read(), "standard input")
    assert prompt is not None
    return prompt


def decode(raw: bytes, where: str) -> str:
    """A prompt's text, without the line break that editors and echo put at its end."""
    try:
        return raw.decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InvalidParameter(
            f"{where} is not UTF-8 text: byte {raw[error.start]:#04x} at {error.start}", "prompt"
        ) from error
