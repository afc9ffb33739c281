"""Speculation: tokens per second with drafts and without, on texts that quote their prompt or not.

The tasks are in speculation.json: code to edit, texts to summarise with quotes, and free prose.
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

from jaxllama import LLM
from jaxllama.request import GenerationRequest

TASKS = Path(__file__).with_suffix(".json")
KINDS = ("editing", "quoting", "prose")
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
    temperature: float,
) -> None:
    """Measure `speculate: auto` and `off` against an engine that was started without drafts.

    Each task is a conversation of one message, and an answer ends where the model ends it. The
    prompts are in the prompt cache, so the time is that of the answers.
    """
    times, knobs = how_often(board, repetitions), {"temperature": temperature, "seed": 1}
    tasks = json.loads(TASKS.read_text(encoding="utf-8"))
    for count in slots or SLOTS:
        with (
            subject.load(slots=count, length=LENGTH, draft_tokens=drafts) as llm,
            subject.load(slots=count, length=LENGTH) as plain,
        ):
            for name in kind or KINDS:
                chosen = tasks[name][:SHORT] if board.short else tasks[name]
                requests = [
                    llm.intake.chat(
                        [{"role": "user", "content": text}], {**knobs, "max_tokens": tokens}
                    )[0]
                    for text in chosen
                ]
                case = f"{subject.name}, {count} slot{'s' * (count > 1)}, {name}"
                with board.doing(case):
                    auto, off, without = in_turn(
                        times,
                        rate_of(llm, requests, None),
                        rate_of(llm, requests, 0),
                        rate_of(plain, requests, 0),
                    )
                board.add(f"{case}, auto", "tokens/s", auto, without, Peer("--draft-tokens 0"))
                board.add(f"{case}, off", "tokens/s", off, without, Peer("--draft-tokens 0"))


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


if __name__ == "__main__":
    main()
