"""The prompt cache: what it costs to bring a prompt back, beside computing it again."""

import time
from itertools import count

import click
from crowd import random_prompt, request, tokens_of
from harness import Board, Peer, how_often, in_turn, repeated, script
from subject import Subject, subject_options

from jaxllama import LLM
from jaxllama.engine.engine import Engine
from jaxllama.request import Finished

TOKENS = 2000
MIB = 1024  # room for the prompt and for those that take its slot
COMPUTED = Peer("computed again")


@click.command()
@script("prompt_cache")
@repeated
@subject_options
@click.option(
    "--tokens",
    type=click.IntRange(min=64),
    default=TOKENS,
    show_default=True,
    help="Tokens of the prompt.",
)
def main(*, board: Board, subject: Subject, repetitions: int | None, tokens: int) -> None:
    """Time a prompt until its first token: from the prompt cache, and computed.

    The one slot is taken by another prompt in between. A decode step is part of both times.
    """
    context = tokens + 64
    llm = LLM.load(
        subject.path, slots=1, context=context, prompt_cache_mib=MIB, **subject.loading.arguments
    )
    with board.doing(subject.name), llm:
        llm.engine.programs.finish()  # nothing is compiled beside a measurement
        vocab, seeds = llm.config.vocab_size, count(1)
        kept = random_prompt(vocab, tokens, 0)
        first_token(llm.engine, kept)

        def restored() -> float:
            first_token(llm.engine, random_prompt(vocab, 8, next(seeds)))  # takes the slot
            seconds, reused = first_token(llm.engine, kept)
            if reused < tokens - 1:
                raise click.ClickException(f"{reused} of {tokens} tokens came from the cache")
            return seconds * 1000

        def computed() -> float:
            seconds, reused = first_token(llm.engine, random_prompt(vocab, tokens, next(seeds)))
            if reused:
                raise click.ClickException(f"{reused} tokens came from the cache")
            return seconds * 1000

        ours, theirs = in_turn(how_often(board, repetitions), restored, computed)
    board.add(f"{subject.name}, {tokens} tokens restored", "ms", ours, theirs, COMPUTED)


def first_token(engine: Engine, prompt: list[int]) -> tuple[float, int]:
    """Return the seconds to the first token of a prompt, and its tokens that were cached."""
    started = time.perf_counter()
    engine.submit(request(prompt, 1, {}))
    first, reused = 0.0, 0
    while not engine.idle:
        events = engine.step()
        if not first and tokens_of(events):
            first = time.perf_counter() - started
        reused += sum(event.usage.reused for event in events if isinstance(event, Finished))
    return first, reused


if __name__ == "__main__":
    main()
