"""Decoding: tokens per second of all slots together, through the engine's step loop."""

from collections.abc import Sequence
from contextlib import ExitStack

import click
import jax
from ceiling import read_rate
from crowd import decode_rate, prompts_of, random_prompt
from environment import cores
from harness import Board, Measure, Peer, how_often, in_turn, repeated, script
from machine import stream
from peer import PeerModel
from subject import Subject, peer_file_options

from jaxllama import LLM

SLOTS = (1, 4, 16, 32)
SHORT_SLOTS = (1, 16)


@click.command()
@script("decode")
@repeated
@peer_file_options
@click.option("--slots", multiple=True, type=click.IntRange(min=1), help="Slots; repeatable.")
@click.option(
    "--depth",
    type=click.IntRange(min=2),
    default=64,
    show_default=True,
    help="Length of the prompt.",
)
@click.option(
    "--tokens",
    type=click.IntRange(min=8),
    default=64,
    show_default=True,
    help="Tokens that each slot decodes.",
)
def main(
    *,
    board: Board,
    repetitions: int | None,
    subject: Subject,
    slots: tuple[int, ...],
    depth: int,
    tokens: int,
) -> None:
    """Measure greedy decoding after a prompt of --depth tokens.

    With one slot also measures the share of the memory's read bandwidth that reading the weights
    takes. The peer decodes all sequences together: llama.cpp as llama-batched-bench does, without
    sampling and without flash attention, with which it is slower; other peers with greedy sampling.
    """
    times, length = how_often(board, repetitions), depth + tokens
    for count in slots or (SHORT_SLOTS if board.short else SLOTS):
        case = f"{subject.name}, {count} slot{'s' * (count > 1)}, depth {depth}"
        with board.doing(case), ExitStack() as opened:
            llm = opened.enter_context(subject.load(slots=count, length=length))
            peer = crowd = None
            if subject.peer:
                crowd = opened.enter_context(
                    subject.load_peer(sequences=count, length=length, decodes=True)
                )
                peer = rate_of_peer(crowd, depth, tokens)
            prompts = prompts_of(llm.config.vocab_size, count, depth)
            ours, theirs = in_turn(times, rate_of_engine(llm, prompts, tokens), peer)
            named = Peer(str(subject.peer_name), crowd.setting) if crowd else None
            board.add(case, "tokens/s", ours, theirs, named)
            if count == 1 and board.environment.backend == "cpu":
                board.add(f"{case}, weights read", "% of bandwidth", shares_read(llm, ours))


def rate_of_engine(llm: LLM, prompts: Sequence[Sequence[int]], tokens: int) -> Measure:
    """Return a measure of this engine's decode rate."""
    return lambda: decode_rate(llm.engine, prompts, tokens)


def rate_of_peer(crowd: PeerModel, depth: int, tokens: int) -> Measure:
    """Return a measure of the peer's decode rate, after one prompt that all sequences share."""
    crowd.fill(random_prompt(crowd.vocab, depth))
    return lambda: crowd.decode_rate(depth, tokens)


def shares_read(llm: LLM, rates: Sequence[float]) -> list[float]:
    """Return the percentage of memory bandwidth that the steps of one slot take, for each rate.

    Every step reads every weight once.
    """
    words = stream()
    best = max(read_rate(words, cores()) for _ in rates)
    return [100 * rate * weight_bytes(llm) / 1e9 / best for rate in rates]


def weight_bytes(llm: LLM) -> int:
    """Return the bytes of the weights that a step reads: all but an embedding that is no head."""
    params = llm.engine.programs.params
    read = {name: part for name, part in params.items() if name != "embed" or llm.config.tied}
    return sum(int(leaf.nbytes) for leaf in jax.tree.leaves(read))


if __name__ == "__main__":
    main()
