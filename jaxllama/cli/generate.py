"""`jaxllama generate`: continue one prompt and stream the text, or search its likeliest answers."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jaxllama.cli.colours import TokenColours, show_probabilities
from jaxllama.cli.figures import summary
from jaxllama.cli.options import GenerationCommand, need_slots, prompt_option
from jaxllama.cli.placeholders import fill, read_variables
from jaxllama.cli.terminal import (
    as_json,
    completion_fields,
    note,
    open_llm,
    quiet,
    rates,
    show,
)
from jaxllama.completion import Hypothesis
from jaxllama.errors import InvalidParameter
from jaxllama.limits import FRONT

if TYPE_CHECKING:
    from jaxllama.llm import LLM
    from jaxllama.streams import AnswerStream

BEAM_KNOBS = ("max_tokens", "stop_ids", "ignore_eos")  # the knobs that beam search accepts
EARLY: dict[str | None, Any] = {None: False, "true": True, "false": False, "never": "never"}

Search = dict[str, Any]  # arguments of LLM.beam_search


class GenerateCommand(GenerationCommand):
    """The command, with one slot for each beam."""

    def invoke(self, ctx: click.Context) -> Any:
        """Increase --slots to the number of beams, unless the user gave it; run the command."""
        need_slots(ctx, ctx.params["beams"] or 1)
        return super().invoke(ctx)


@click.command("generate", cls=GenerateCommand, slots=1)
@prompt_option("Continue this text, also given without -p; - reads standard input.")
@click.option(
    "--prompt-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Read the prompt from this file.",
)
@click.option(
    "--variable",
    "variables",
    multiple=True,
    metavar="NAME=VALUE",
    help="Replace {NAME} in the prompt. May be given again.",
)
@click.option("--chat", is_flag=True, help="Answer the prompt as a message of a conversation.")
@click.option("--system", help="With --chat: set the system message.")
@click.option("--echo", is_flag=True, help="Print the prompt before the answer.")
@show_probabilities
@quiet
@click.option(
    "--beams",
    type=click.IntRange(1, int(FRONT["width"].high or 1)),
    metavar="N",
    help="Search for the likeliest answers, keeping N prefixes at a time, instead of drawing.",
)
@click.option(
    "--length-penalty",
    type=float,
    help="With --beams: favour long answers (above 0) or short ones (below 0) [default: 1.0].",
)
@click.option(
    "--early-stopping",
    type=click.Choice([str(each) for each in EARLY if each]),
    is_flag=False,
    flag_value="true",
    help="With --beams: stop when N answers are complete (true), when a better one is unlikely "
    "(false) or when none is possible (never) [default: false].",
)
@click.option(
    "--beam-length",
    type=click.IntRange(1, int(FRONT["beam_length"].high or 1)),
    metavar="N",
    help="With --beams: look N tokens ahead and settle one after the other, as ExLlama does.",
)
@click.option("--json", "wants_json", is_flag=True, help="Print one JSON object at the end.")
def command(  # noqa: PLR0913 - an argument for each option
    *,
    prompt: str | None,
    prompt_file: Path | None,
    variables: Sequence[str],
    chat: bool,
    system: str | None,
    echo: bool,
    show_probabilities: str | None,
    beams: int | None,
    length_penalty: float | None,
    early_stopping: str | None,
    beam_length: int | None,
    wants_json: bool,
    loading: Mapping[str, Any],
    knobs: Mapping[str, Any],
) -> None:
    """Continue a prompt and print the text as it comes.

    A line with token counts and times follows on standard error. One line break at the end of a
    prompt from a file or from standard input is removed. With --beams the best answer is printed on
    standard output, and all answers with their scores on standard error. With --json one JSON
    object is printed at the end instead of the text. --show-probabilities colours each token by its
    probability.
    """
    for name, given in (("--format", "prompt_format" in loading), ("--system", system is not None)):
        if given and not chat:
            raise click.UsageError(f"{name} is for conversations; it needs --chat.")
    colours = TokenColours(show_probabilities)
    if wants_json and (echo or show_probabilities):
        raise click.UsageError("--json prints one object: without --echo, --show-probabilities.")
    if beams is not None and show_probabilities:
        raise click.UsageError("--beams prints no token alone: without --show-probabilities.")
    search = search_arguments(beams, length_penalty, early_stopping, beam_length, knobs)
    text = read_prompt(prompt, prompt_file)
    text = fill(text, read_variables(variables)) if variables else text
    messages = conversation(text, system) if chat else None
    colours.check()
    with open_llm(loading, is_short=True) as llm:
        if echo:
            colours.show_prompt(text)
        if search is not None:
            show_answers(
                llm.beam_search(prompt_ids(llm, text, messages), **search), wants_json=wants_json
            )
            return
        stream = start(llm, text, messages, colours.knobs(knobs))
        for delta in stream:
            if not wants_json:
                colours.show(delta)
        completion = stream.completion
    if wants_json:
        click.echo(as_json(completion_fields(completion) | {"timings": rates(completion.usage)}))
        return
    show("\n")
    note(summary(completion.usage))


def search_arguments(
    beams: int | None,
    length_penalty: float | None,
    early_stopping: str | None,
    beam_length: int | None,
    knobs: Mapping[str, Any],
) -> Search | None:
    """Return the arguments of `LLM.beam_search`, or None if --beams is not given.

    The parameters are the values of the options of the same name, None if not given; `knobs` are
    the other options for the answer. Raises UsageError for options that do not fit together.
    """
    ranks = length_penalty is not None or early_stopping is not None
    if beams is None:
        if ranks or beam_length is not None:
            raise click.UsageError(
                "--length-penalty, --early-stopping and --beam-length need --beams."
            )
        return None
    if ranks and beam_length is not None:
        raise click.UsageError(
            "--beam-length finds one answer: without --length-penalty and --early-stopping."
        )
    for name in knobs:
        if name not in BEAM_KNOBS:
            raise click.UsageError(
                f"--beams draws nothing and asks no sampler; it goes with --max-tokens, "
                f"--stop-ids and --ignore-eos, and not with --{name.replace('_', '-')}."
            )
    penalty = {} if length_penalty is None else {"length_penalty": length_penalty}
    settings = {"early_stopping": EARLY[early_stopping], "beam_length": beam_length}
    return {"width": beams, **settings, **penalty, **knobs}


def start(
    llm: "LLM", text: str, messages: list[dict[str, str]] | None, knobs: Mapping[str, Any]
) -> "AnswerStream":
    """Start a stream: an answer to `messages`, or, if they are None, a continuation of `text`.

    `knobs` are the options for the answer.
    """
    if messages is not None:
        return llm.chat_stream(messages, **knobs)
    return llm.stream(text, **knobs)


def conversation(text: str, system: str | None) -> list[dict[str, str]]:
    """Return the messages of a conversation: the system message, if any, and the question."""
    begin = [] if system is None else [{"role": "system", "content": system}]
    return [*begin, {"role": "user", "content": text}]


def prompt_ids(llm: "LLM", text: str, messages: list[dict[str, str]] | None) -> list[int]:
    """Return the token ids of a beam search's prompt: `messages`, or, if they are None, `text`.

    Raises InvalidParameter for `messages` if the model's prompt format ends answers at a stop text:
    a beam search ends at end tokens only.
    """
    if messages is None:
        return llm.intake.ids(text)
    if llm.prompt_format.stop:
        raise InvalidParameter(
            f"prompt format {llm.prompt_format.name!r} ends answers at a text, and beams end at "
            f"tokens alone; choose another --format or write the prompt without --chat",
            "beams",
        )
    return llm.intake.chat_ids(messages)


def show_answers(found: list[Hypothesis], *, wants_json: bool) -> None:
    """Print the best answer of a beam search, then all with their scores; or all as JSON.

    `found` are the answers; `wants_json`: --json is given.
    """
    if wants_json:
        click.echo(as_json({"hypotheses": [dataclasses.asdict(each) for each in found]}))
        return
    show(f"{found[0].text}\n")
    for each in found:
        note(f"{each.score:.4f} {each.text!r}")


def read_prompt(prompt: str | None, prompt_file: Path | None) -> str:
    """Return the given prompt, or that of standard input or a file; UsageError unless just one."""
    if (prompt is None) == (prompt_file is None):
        raise click.UsageError("Give one prompt: TEXT, -p TEXT, -p - or --prompt-file FILE.")
    if prompt_file is not None:
        return decode(prompt_file.read_bytes(), str(prompt_file))
    if prompt == "-":
        return decode(sys.stdin.buffer.read(), "standard input")
    assert prompt is not None
    return prompt


def decode(raw: bytes, where: str) -> str:
    """Decode UTF-8 text and remove the line break that editors and `echo` put at its end.

    `where` names the source in the error.
    """
    try:
        return raw.decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InvalidParameter(
            f"{where} is not UTF-8 text: byte {raw[error.start]:#04x} at {error.start}", "prompt"
        ) from error
