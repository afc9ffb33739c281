"""What this machine can do: its processor, and how fast it streams memory.

Other scripts hold their figures against `bandwidth`.
"""

import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import numpy as np
from harness import Board, cores, how_often, repeated, script, seconds

BYTES = 256 << 20  # larger than any cache
SHORT_BYTES = 64 << 20


@click.command()
@script("machine")
@repeated
def main(*, board: Board, repetitions: int | None) -> None:
    """Say how many cores there are and measure how fast they read memory."""
    board.add(processor(), "cores", [cores()])
    words = stream(SHORT_BYTES if board.short else BYTES)
    for threads in sorted({1, min(2, cores()), cores()}):
        with board.doing(f"reading memory, {threads} threads"):
            rates = [bandwidth(words, threads) for _ in range(how_often(board, repetitions))]
        board.add(f"read, {threads} thread{'s' * (threads > 1)}", "GB/s", rates)


def stream(size: int = BYTES) -> np.ndarray:
    """Memory to read, all of it really there."""
    return np.ones(size // 8, np.uint64)


def bandwidth(words: np.ndarray, threads: int) -> float:
    """GB/s of reading once; an `or` is the one thing NumPy does faster than memory delivers."""
    parts = np.array_split(words, threads)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(len, parts))  # wakes the threads
        taken = seconds(lambda: list(pool.map(np.bitwise_or.reduce, parts)))
    return words.nbytes / taken / 1e9


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


if __name__ == "__main__":
    main()
