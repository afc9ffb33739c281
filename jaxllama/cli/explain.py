"""`jaxllama explain`: what each sampler did to each token, and what other numbers would do."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxllama.cli.options import GenerationCommand, check_knobs
from jaxllama.cli.terminal import CONTROLS, as_json, note, open_llm
from jaxllama.engine.choosing.knobs import catalogue
from jaxllama.engine.engine import finish
from jaxllama.errors import InvalidParameter
from jaxllama.explain import Position, replay
from jaxllama.llm import LLM
from jaxllama.recording import Recording, check_recordable, logits_behind, recording_of
from jaxllama.registry import SAMPLERS, load_plugins
from jaxllama.sampling import Sampler

TRUTH = {"true": True, "false": False}
FILE = click.Path(dir_okay=False, path_type=Path)


@click.command("explain", cls=GenerationCommand, slots=1)
@click.option("-p", "--prompt", help="The text to continue.")
@click.option("--load", "source", type=FILE, help="Explain a saved recording; needs no model.")
@click.option("--save", "target", type=FILE, help="Save the recording.")
@click.option(
    "--what-if", metavar="KNOB=NUMBER,...", help="Replay the same logits under other numbers."
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
    """Continue a prompt and show, per token, what each sampler kept, removed and made likelier.

    With --what-if the recorded logits are drawn from again under other numbers, without the model:
    every token follows the recorded ones, also where another would have been drawn before it.
    """
    if (prompt is None) == (source is None):
        raise click.UsageError("Give one of -p TEXT and --load FILE.")
    if source is not None and (loading.keys() - {"slots"} or knobs):
        raise click.UsageError("A recording has its own model and knobs; use --what-if to change.")
    samplers = load_plugins(SAMPLERS, Sampler).loaded
    changes = parse(what_if or "")
    check_knobs(changes, catalogue(samplers))
    if source is not None:
        recording = Recording.load(source)
    else:
        with open_llm(loading) as llm:
            recording = record(llm, prompt or "", **knobs)
    if target is not None:
        recording.save(target)
    positions = replay(recording, samplers, changes)
    if wants_json:
        click.echo(as_json({"seed": recording.seed, "positions": [asdict(p) for p in positions]}))
        return
    draw(positions)
    differ = sum(each.token != each.recorded for each in positions)
    if differ and not changes:
        note(f"{differ} tokens differ from the engine's by rounding")


def record(llm: LLM, prompt: str, **knobs: object) -> Recording:
    """Continue a prompt and keep the logits of every position."""
    request, tail = llm.intake.completion(prompt, knobs)
    check_recordable(request)
    stream = llm.streams.open((request, tail))
    tokens = [delta.token for delta in stream if delta.token is not None]
    logits = finish(logits_behind(llm.engine, request, tokens))
    return recording_of(llm.intake, request, tokens, logits)


def parse(text: str) -> dict[str, object]:
    """`top_p=0.9,min_p=0` as knobs."""
    changes: dict[str, object] = {}
    for item in filter(None, text.split(",")):
        name, equals, value = (part.strip() for part in item.partition("="))
        if not equals or name in changes:
            raise InvalidParameter(
                f"--what-if holds {item!r}; expected KNOB=NUMBER, separated by commas, each once"
            )
        changes[name.replace("-", "_")] = number(value)
    return changes


def number(text: str) -> object:
    """A number or a truth; anything else stays text, and is refused as such."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return TRUTH.get(text.lower(), text)


def draw(positions: list[Position]) -> None:
    """The same, for people."""
    table = Table("token", "drawn by", "stage", "kept", "removed", "rank", "probability")
    for each in positions:
        words = repr(each.text.translate(CONTROLS))
        changed = "" if each.token == each.recorded else f" (was {each.recorded})"
        first = (f"{each.token} {words}{changed}", f"{each.chance:.4f}")
        for stage in each.stages:
            rank = "dropped" if stage.rank is None else str(stage.rank + 1)
            figures = (str(stage.kept), f"{stage.removed:.4f}", rank, f"{stage.p:.4f}")
            table.add_row(*map(Text, (*first, stage.name, *figures)))
            first = ("", "")
        table.add_section()
    Console().print(table)
