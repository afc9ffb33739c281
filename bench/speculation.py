"""Speculation: tokens per second with drafts and without, on texts that quote their prompt or not.

The tasks are in speculation.json: code to edit, texts to summarise with quotes, free prose, and
answers with the fields of a JSON schema, whose names are forced tokens. Drafts are looked up in the
text, or come from a draft model as well.
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path

import click
from crowd import tokens_of
from harness import Board, Measure, Peer, how_often, in_turn, repeated, script
from subject import Subject, subject_options
from write_gguf import FILES, model_file

from jaxllama import LLM
from jaxllama.request import GenerationRequest

TASKS = Path(__file__).with_suffix(".json")
FIELDS = "fields"
KINDS = ("editing", "quoting", "prose", FIELDS)
SLOTS = (1, 16)
LENGTH = 1024  # tokens of a slot
SHORT = 2  # tasks of each kind with --short


@click.command()
@script("speculation")
@repeated
@subject_options
@click.option("--slots", multiple=True, type=click.IntRange(min=1), help="Slots; repeatable.")
@click.option("--kind", multiple=True, type=click.Choice(KINDS), help="Tasks; repeatable.")
@click.option(
    "--tokens",
    type=click.IntRange(min=2),
    default=128,
    show_default=True,
    help="Most tokens of an answer.",
)
@click.option(
    "--draft-tokens",
    "drafts",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Most tokens that a step drafts for an answer.",
)
@click.option(
    "--draft-model",
    help=f"Draft model: a name, file, or one of {', '.join(FILES)} [default: none].",
)
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True)
def main(  # noqa: PLR0913 - one argument for each option
    *,
    board: Board,
    repetitions: int | None,
    subject: Subject,
    slots: tuple[int, ...],
    kind: tuple[str, ...],
    tokens: int,
    drafts: int,
    draft_model: str | None,
    temperature: float,
) -> None:
    """Measure `speculate: auto` and `off` against an engine that was started without drafts.

    Each task is a conversation of one message, and an answer ends where the model ends it. The
    prompts are in the prompt cache, so the time is that of the answers. With a draft model, also
    `speculate: N`, which drafts whether it pays or not, and the share of its drafts that was
    accepted. Answers with a schema draft nothing, so these settings make no difference to them.
    """
    path = None if draft_model is None else model_file(draft_model)
    choices = {"auto": None, "off": 0} | ({} if path is None else {"always": drafts})
    times, knobs = how_often(board, repetitions), {"temperature": temperature, "seed": 1}
    tasks = json.loads(TASKS.read_text(encoding="utf-8"))
    for count in slots or SLOTS:
        with (
            subject.load(slots=count, length=LENGTH, draft_tokens=drafts, draft_model=path) as llm,
            subject.load(slots=count, length=LENGTH) as plain,
        ):
            for name in kind or KINDS:
                chosen = tasks[name][:SHORT] if board.short else tasks[name]
                requests = [
                    request_of(llm, task, {**knobs, "max_tokens": tokens}) for task in chosen
                ]
                own = {"auto": None} if name == FIELDS else choices
                case = f"{subject.name}, {count} slot{'s' * (count > 1)}, {name}"
                with board.doing(case):
                    *rates, without = in_turn(
                        times,
                        *(rate_of(llm, requests, draft) for draft in own.values()),
                        rate_of(plain, requests, 0),
                    )
                for choice, rate in zip(own, rates, strict=True):
                    peer = Peer("--draft-tokens 0")
                    board.add(f"{case}, {choice}", "tokens/s", rate, without, peer)
                if path is not None and name != FIELDS:
                    board.add(f"{case}, accepted", "%", [accepted(llm, requests, drafts)])


def request_of(
    llm: LLM, task: str | dict[str, object], knobs: dict[str, object]
) -> GenerationRequest:
    """Return the request of a task: a text, or a dict with the text and the schema of the answer.

    `knobs` are the fields of all tasks.
    """
    fields = {"text": task} if isinstance(task, str) else task
    more = {name: value for name, value in fields.items() if name != "text"}
    return llm.intake.chat([{"role": "user", "content": fields["text"]}], {**knobs, **more})[0]


def rate_of(llm: LLM, requests: Sequence[GenerationRequest], draft: int | None) -> Measure:
    """Return a measure of the tokens per second of all answers, with or without drafts."""
    own = [dataclasses.replace(each, draft=draft) for each in requests]

    def rate() -> float:
        started, count = time.perf_counter(), 0
        for each in own:
            llm.engine.submit(each)
        while not llm.engine.idle:
            count += len(tokens_of(llm.engine.step()))
        return count / (time.perf_counter() - started)

    return rate


def accepted(llm: LLM, requests: Sequence[GenerationRequest], draft: int) -> float:
    """Return the percentage of `draft` drafted tokens of each step that were accepted."""
    before = llm.engine.drafts.copy()
    rate_of(llm, requests, draft)()
    found = llm.engine.drafts - before
    return 100 * found["accepted"] / max(found["drafted"], 1)


if __name__ == "__main__":
    main()
