"""Encode: texts per second of an encoder, and the milliseconds of one short text."""

import dataclasses
from functools import partial

import click
import jax
import numpy as np
from environment import environment_of_machine
from harness import Board, how_often, in_turn, repeated, script, seconds

from jaxllama import Encoder

LENGTHS = (12, 60, 200)  # tokens of a query, a sentence or two, and a paragraph


@click.command()
@script("encode")
@repeated
@click.option("--encoder", default="minilm", show_default=True, help="A name or a folder.")
@click.option(
    "--texts", type=click.IntRange(min=1), default=256, show_default=True, help="Texts of a call."
)
def main(*, board: Board, repetitions: int | None, encoder: str, texts: int) -> None:
    """Measure calls with many texts of one length, and calls with one text."""
    board.environment = dataclasses.replace(
        environment_of_machine(), backend=jax.default_backend(), devices=jax.device_count()
    )
    times = how_often(board, repetitions)
    with Encoder.load(encoder) as loaded:
        name, longest = loaded.config.name, loaded.config.max_length
        lengths = sorted({min(length, longest) for length in LENGTHS})
        for length in lengths:
            many = random_texts(loaded, texts, length)
            case = f"{name}, {texts} texts of {length} tokens"
            with board.doing(case):
                (taken,) = in_turn(times, partial(seconds, partial(loaded.encode, many)))
            board.add(case, "texts/s", [texts / each for each in taken])
        one = random_texts(loaded, 1, lengths[0])
        with board.doing("one text"):
            (taken,) = in_turn(times, partial(seconds, partial(loaded.encode, one)))
        board.add(f"{name}, 1 text of {lengths[0]} tokens", "ms", [1000 * each for each in taken])


def random_texts(encoder: Encoder, count: int, length: int) -> list[list[int]]:
    """Return texts of random token ids, of so many tokens with the special ones around them."""
    own = length - encoder.tokenizer.special_count
    return np.random.default_rng(0).integers(encoder.config.vocab_size, size=(count, own)).tolist()


if __name__ == "__main__":
    main()
