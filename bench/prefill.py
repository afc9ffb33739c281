"""Prompts: tokens per second of a prompt without cached prefix, up to its first token."""

from contextlib import ExitStack
from itertools import count

import click
from crowd import random_prompt, seconds_to_first
from harness import Board, Measure, Peer, how_often, in_turn, repeated, script
from peer import PeerModel
from subject import Subject, peer_file_options

from jaxllama import LLM


@click.command()
@script("prefill")
@repeated
@peer_file_options
@click.option(
    "--slots",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Slots of the engine.",
)
@click.option(
    "--tokens",
    type=click.IntRange(min=2),
    default=512,
    show_default=True,
    help="Length of the prompt.",
)
def main(
    *, board: Board, repetitions: int | None, subject: Subject, slots: int, tokens: int
) -> None:
    """Measure prompts that share no prefix with the contents of the cache.

    The time of this engine runs from submitting the prompt to its first token; the peer's is one
    call that computes the logits of the last token, or up to the first token.
    """
    case, times = f"{subject.name}, {tokens} tokens", how_often(board, repetitions)
    with board.doing(case), ExitStack() as opened:
        llm = opened.enter_context(subject.load(slots=slots, length=tokens + 1))
        peer = reader = None
        if subject.peer:
            reader = opened.enter_context(subject.load_peer(sequences=1, length=tokens))
            peer = rate_of_peer(reader, tokens)
        ours, theirs = in_turn(times, rate_of_engine(llm, tokens), peer)
        named = Peer(str(subject.peer_name), reader.setting) if reader else None
    board.add(case, "tokens/s", ours, theirs, named)


def rate_of_engine(llm: LLM, tokens: int) -> Measure:
    """Return a measure of this engine's rate, with a new prompt every time."""
    seeds = count()

    def rate() -> float:
        prompt = random_prompt(llm.config.vocab_size, tokens, next(seeds))
        return tokens / seconds_to_first(llm.engine, prompt)

    return rate


def rate_of_peer(reader: PeerModel, tokens: int) -> Measure:
    """Return a measure of the peer's rate."""
    prompt = random_prompt(reader.vocab, tokens)
    return lambda: reader.prompt_rate(prompt)


if __name__ == "__main__":
    main()
