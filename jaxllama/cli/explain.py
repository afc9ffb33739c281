"""`jaxllama explain`: show what each sampler did to each token, and what other knobs would do."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxllama.cli.figures import drafts_text
from jaxllama.cli.options import GenerationCommand, check_knobs, prompt_option
from jaxllama.cli.terminal import CONTROLS, as_json, note, open_llm
from jaxllama.engine.choosing.knobs import catalogue
from jaxllama.engine.probes import finish
from jaxllama.errors import InvalidParameter
from jaxllama.explain import Position, replay
from jaxllama.llm import LLM
from jaxllama.recording import Recording, check_recordable, make_recording, peek_at_answer
from jaxllama.registry import SAMPLERS, load_plugins
from jaxllama.sampling import Sampler

BETWEEN_KNOBS = re.compile(r",(?=\s*[A-Za-z_-]+\s*=(?!=)|\s*$)")
TRUTH = {"true": True, "false": False}
LEGEND = {
    "token": "the token that was drawn; (was ...) is the recorded one",
    "chance": "the random number from 0 to 1 that decided the draw",
    "stage": "the model, then every sampler that is on, in running order",
    "tokens left": "how many tokens could be drawn after the stage",
    "removed": "the probability, before the stage, of the tokens that it dropped",
    "rank": "the place of the drawn token after the stage; 1 is the likeliest",
    "probability": "of the drawn token after the stage",
}
FILE = click.Path(dir_okay=False, path_type=Path)


@click.command("explain", cls=GenerationCommand, slots=1)
@prompt_option("Continue this text, also given without -p.")
@click.option("--load", "source", type=FILE, help="Explain a saved recording; needs no model.")
@click.option("--save", "target", type=FILE, help="Save the recording to this file.")
@click.option(
    "--what-if",
    metavar="KNOB=VALUE,...",
    help="Draw from the recorded logits again with these knobs.",
)
@click.option("--json", "wants_json", is_flag=True, help="Print one JSON object.")
def command(  # noqa: PLR0913 - an argument per option
    *,
    prompt: str | None,
    source: Path | None,
    target: Path | None,
    what_if: str | None,
    wants_json: bool,
    loading: Mapping[str, Any],
    knobs: Mapping[str, Any],
) -> None:
    """Continue a prompt and show what each sampler did to each token.

    For every token there is a line for the model and one for each sampler that is on; the legend
    below the table says what the columns mean. With --what-if the recorded logits are drawn from
    again with other knobs, without running the model: every token follows the recorded ones, even
    where another token would have been drawn before it. --save writes the recording to a file, from
    which --load explains it again without the model. With --json one JSON object is printed.
    """
    if (prompt is None) == (source is None):
        raise click.UsageError("Give one of TEXT, -p TEXT and --load FILE.")
    if source is not None and (loading.keys() - {"slots"} or knobs):
        raise click.UsageError("A recording has its own model and knobs; use --what-if to change.")
    samplers = load_plugins(SAMPLERS, Sampler).loaded
    changes = parse(what_if or "")
    check_knobs(changes, catalogue(samplers))
    if source is not None:
        recording = Recording.load(source)
    else:
        with open_llm(loading, is_short=True) as llm:
            recording = record(llm, prompt or "", **knobs)
    if target is not None:
        recording.save(target)
    positions = replay(recording, samplers, changes)
    if wants_json:
        click.echo(as_json({"seed": recording.seed, "positions": [asdict(p) for p in positions]}))
        return
    draw(positions, recording.texts)
    differ = sum(each.token != each.recorded for each in positions)
    if differ and not changes:
        note(f"{differ} tokens differ from the engine's by rounding")


def record(llm: LLM, prompt: str, **knobs: object) -> Recording:
    """Continue a prompt and return a recording with the logits of every generated token.

    `knobs` are the parameters of the request.
    """
    request, tail = llm.intake.completion(prompt, knobs)
    check_recordable(request)
    stream = llm.streams.open((request, tail))
    tokens = [delta.token for delta in stream if delta.token is not None]
    if drafts := drafts_text(stream.completion.usage):
        note(drafts)
    logits = finish(peek_at_answer(llm.engine, request, tokens))
    return make_recording(llm.intake, request, tokens, logits)


def parse(text: str) -> dict[str, object]:
    """Parse `top_p=0.9,min_p=0` to a mapping; raise InvalidParameter for a bad or repeated item.

    A comma ends a value only if KNOB= follows: a value that is an expression may contain commas.
    """
    changes: dict[str, object] = {}
    for item in filter(None, BETWEEN_KNOBS.split(text)):
        name, equals, value = (part.strip() for part in item.partition("="))
        if not equals or name in changes:
            raise InvalidParameter(
                f"--what-if holds {item!r}; expected KNOB=VALUE, separated by commas, each once"
            )
        changes[name.replace("-", "_")] = number(value)
    return changes


def number(text: str) -> object:
    """Convert text to a number or to true or false; return any other text unchanged.

    Such text is refused later, where it is no value for the request's parameter.
    """
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return TRUTH.get(text.lower(), text)


def draw(positions: Sequence[Position], texts: Sequence[str]) -> None:
    """Print a table of the tokens and of each sampler's effect on them, then a legend.

    `texts` holds the text of each token of the vocabulary.
    """
    table = Table("token", "chance", "stage", "tokens left", "removed", "rank", "probability")
    for each in positions:
        words = token_text(each.token, texts)
        if each.token != each.recorded:
            words += f" (was {token_text(each.recorded, texts)})"
        first = (words, f"{each.chance:.4f}")
        for stage in each.stages:
            rank = "dropped" if stage.rank is None else str(stage.rank + 1)
            figures = (str(stage.kept), f"{stage.removed:.4f}", rank, f"{stage.p:.4f}")
            table.add_row(*map(Text, (*first, stage.name, *figures)))
            first = ("", "")
        table.add_section()
    Console().print(table)
    for name, meaning in LEGEND.items():
        click.echo(f"{name:11}  {meaning}")


def token_text(token: int, texts: Sequence[str]) -> str:
    """Return the text of a token in quotes, or "token ID" if the token has no text.

    End tokens, for example, have none. `texts` holds the text of each token of the vocabulary.
    """
    text = texts[token] if token < len(texts) else ""
    return repr(text.translate(CONTROLS)) if text else f"token {token}"
