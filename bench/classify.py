"""Classify: many questions about one text, compared with separate prompts that each have a text."""

from collections.abc import Iterator
from itertools import count

import click
from crowd import random_prompt
from harness import Board, Measure, Peer, how_often, in_turn, repeated, script, seconds
from subject import Subject, subject_options

from jaxllama import LLM

CHOICES = (" yes", " no")
NOUNS = (
    *("price", "weather", "food", "service", "room", "view", "music", "crowd", "wine", "street"),
    *("staff", "bread", "garden", "coffee", "chair", "door", "train", "night", "fish", "harbour"),
)
WORDS = ("mentioned", "praised", "good", "bad", "cheap", "loud", "late", "new", "old", "local")


@click.command()
@script("classify")
@repeated
@subject_options
@click.option(
    "--questions",
    type=click.IntRange(min=1),
    default=200,
    show_default=True,
    help="Questions about the text.",
)
@click.option(
    "--tokens",
    type=click.IntRange(min=2),
    default=400,
    show_default=True,
    help="Length of the text.",
)
def main(
    *, board: Board, repetitions: int | None, subject: Subject, questions: int, tokens: int
) -> None:
    """Measure classifications of a text that is new each time, with two choices per question.

    The comparison measures one in fifty of the questions, each after its own text, times fifty.
    """
    case = f"{subject.name}, {questions} questions, {tokens} tokens"
    with board.doing(case), subject.load(slots=4, length=tokens + 64) as llm:
        asked = [question(index) for index in range(questions)]
        texts = (random_prompt(llm.config.vocab_size, tokens, seed) for seed in count())
        together, apart = measures(llm, texts, asked)
        ours, theirs = in_turn(how_often(board, repetitions), together, apart)
    board.add(case, "s", ours, theirs, Peer("separate prompts"))


def question(index: int) -> str:
    """Return one of many short questions that start with the same words."""
    word = WORDS[index // len(NOUNS) % len(WORDS)]
    return f" Is the {NOUNS[index % len(NOUNS)]} {word}?"


def measures(llm: LLM, texts: Iterator[list[int]], asked: list[str]) -> tuple[Measure, Measure]:
    """Return measures of the seconds of all questions about one text, and with a text for each."""
    few = asked[: max(1, len(asked) // 50)]

    def apart() -> None:
        for each in few:
            llm.classify(next(texts), each, CHOICES)

    def together() -> None:
        llm.classify(next(texts), asked, CHOICES)

    return lambda: seconds(together), lambda: seconds(apart) * len(asked) / len(few)


if __name__ == "__main__":
    main()
