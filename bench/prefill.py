"""Prompts: tokens per second of a fresh prompt, up to its first token."""

from contextlib import ExitStack
from itertools import count

import click
from crowd import load, random_prompt, seconds_to_first
from harness import (
    Board,
    Measure,
    compared,
    cores,
    how_often,
    in_turn,
    peer_name,
    repeated,
    script,
)
from llamacpp import LlamaCpp
from write_gguf import model_file

from jaxllama import LLM


@click.command()
@script("prefill")
@repeated
@compared
@click.option("-m", "--model", help="Name, file or benchmark file [default: smollm2-135m].")
@click.option("--peer-model", help="What the peer reads instead [default: the same file].")
@click.option("--slots", type=click.IntRange(min=1), default=1, help="Slots of the engine.")
@click.option("--tokens", type=click.IntRange(min=2), default=512, help="Length of the prompt.")
def main(  # noqa: PLR0913 - one argument for each option
    board: Board,
    repetitions: int | None,
    peer: str | None,
    model: str | None,
    peer_model: str | None,
    slots: int,
    tokens: int,
) -> None:
    """Measure prompts that share nothing with what the cache holds.

    Our time runs from handing the prompt in to having its first token; the peer's is one call
    that computes the logits of the last token.
    """
    path = model_file(model)
    peer_path = model_file(peer_model) if peer_model else path
    case = f"{path.stem}, {tokens} tokens"
    with board.doing(case), ExitStack() as opened:
        llm = opened.enter_context(load(path, slots=slots, length=tokens + 1))
        other = None
        if peer:
            reader = LlamaCpp(peer_path, sequences=1, length=tokens, threads=cores())
            other = rate_of(opened.enter_context(reader), tokens)
        measured = in_turn(rate_of_engine(llm, tokens), other, how_often(board, repetitions))
    board.add(case, "tokens/s", measured, peer_name(peer, path, peer_path))


def rate_of_engine(llm: LLM, tokens: int) -> Measure:
    """Our rate, with another prompt every time."""
    seeds = count()

    def rate() -> float:
        prompt = random_prompt(llm.config.vocab_size, tokens, next(seeds))
        return tokens / seconds_to_first(llm.engine, prompt)

    return rate


def rate_of(reader: LlamaCpp, tokens: int) -> Measure:
    """The peer's rate."""
    prompt = random_prompt(reader.vocab, tokens)
    return lambda: reader.prompt_rate(prompt)


if __name__ == "__main__":
    main()
