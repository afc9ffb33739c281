"""Decoding: tokens per second of all slots together, through the engine's step loop."""

from collections.abc import Sequence
from contextlib import ExitStack

import click
import jax
from crowd import decode_rate, load, prompts_of, random_prompt
from harness import (
    Board,
    Measure,
    Pair,
    compared,
    cores,
    how_often,
    in_turn,
    peer_name,
    repeated,
    script,
)
from llamacpp import LlamaCpp
from machine import bandwidth, stream
from write_gguf import model_file

from jaxllama import LLM

SLOTS = (1, 4, 16, 32)
SHORT_SLOTS = (1, 16)


@click.command()
@script("decode")
@repeated
@compared
@click.option("-m", "--model", help="Name, file or benchmark file [default: smollm2-135m].")
@click.option("--peer-model", help="What the peer reads instead [default: the same file].")
@click.option("--slots", multiple=True, type=click.IntRange(min=1), help="May be given again.")
@click.option("--depth", type=click.IntRange(min=2), default=64, help="Tokens before the first.")
@click.option("--tokens", type=click.IntRange(min=8), default=64, help="Tokens of each slot.")
def main(  # noqa: PLR0913 - one argument for each option
    board: Board,
    repetitions: int | None,
    peer: str | None,
    model: str | None,
    peer_model: str | None,
    slots: tuple[int, ...],
    depth: int,
    tokens: int,
) -> None:
    """Measure greedy decoding behind a prompt of --depth tokens.

    With one slot also the share of the memory's read bandwidth that its weights take. The peer
    is counted as llama-batched-bench does: without sampling.
    """
    path = model_file(model)
    peer_path = model_file(peer_model) if peer_model else path
    times = how_often(board, repetitions)
    for count in slots or (SHORT_SLOTS if board.short else SLOTS):
        case = f"{path.stem}, {count} slot{'s' * (count > 1)}, depth {depth}"
        with board.doing(case), ExitStack() as opened:
            llm = opened.enter_context(load(path, slots=count, length=depth + tokens))
            other = None
            if peer:
                crowd = LlamaCpp(peer_path, sequences=count, length=depth + tokens, threads=cores())
                other = rate_of(opened.enter_context(crowd), depth, tokens)
            prompts = prompts_of(llm.config.vocab_size, count, depth)
            measured = in_turn(rate_of_engine(llm, prompts, tokens), other, times)
            board.add(case, "tokens/s", measured, peer_name(peer, path, peer_path))
            if count == 1:
                board.add(f"{case}, weights read", "% of bandwidth", reading(llm, measured))


def rate_of_engine(llm: LLM, prompts: Sequence[Sequence[int]], tokens: int) -> Measure:
    """Our rate, to be measured again and again."""
    return lambda: decode_rate(llm.engine, prompts, tokens)


def rate_of(crowd: LlamaCpp, depth: int, tokens: int) -> Measure:
    """The peer's rate, behind one prompt that all sequences share."""
    crowd.fill(random_prompt(crowd.vocab, depth))
    return lambda: crowd.decode_rate(depth, tokens)


def reading(llm: LLM, measured: Pair) -> Pair:
    """The share of the bandwidth that one slot's steps take: every step reads every weight."""
    words = stream()
    best = max(bandwidth(words, cores()) for _ in measured.ours)
    gigabytes = weight_bytes(llm) / 1e9
    return Pair([100 * rate * gigabytes / best for rate in measured.ours])


def weight_bytes(llm: LLM) -> int:
    """Bytes of the weights, without an embedding that is not also the head."""
    params = llm.engine.programs.params
    read = {name: part for name, part in params.items() if name != "embed" or llm.config.tied}
    return sum(int(leaf.nbytes) for leaf in jax.tree.leaves(read))


if __name__ == "__main__":
    main()
