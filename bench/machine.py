"""What this machine can do: its processor, and how fast it streams memory.

Other scripts hold their figures against what `ceiling.py` reads of `stream`.
"""

from pathlib import Path

import click
import numpy as np
from ceiling import read_rate
from environment import cores, environment_of_machine, processor
from harness import Board, how_often, repeated, script

BYTES, SHORT_BYTES = 256 << 20, 64 << 20  # larger than the caches of most
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
TIMES = 4  # the largest cache: no more than a quarter of it can still be there


@click.command()
@script("machine")
@repeated
def main(*, board: Board, repetitions: int | None) -> None:
    """Say how many cores there are and measure how fast they read memory."""
    board.environment = environment_of_machine()
    board.add(processor(), "cores", [cores()])
    words = stream(SHORT_BYTES) if board.short else stream()
    for threads in sorted({1, min(2, cores()), cores()}):
        with board.doing(f"reading memory, {threads} threads"):
            rates = [read_rate(words, threads) for _ in range(how_often(board, repetitions))]
        board.add(f"read, {threads} thread{'s' * (threads > 1)}", "GB/s", rates)


def stream(size: int | None = None) -> np.ndarray:
    """Memory to read, all of it really there; by default far more than any cache holds."""
    return np.ones((size or max(BYTES, TIMES * largest_cache())) // 8, np.uint64)


def largest_cache() -> int:
    """Bytes of the largest cache that the kernel tells of; 0 if it tells of none."""
    units = {"K": 1 << 10, "M": 1 << 20}
    sizes = [path.read_text(encoding="utf-8").strip() for path in CACHES.glob("index*/size")]
    return max((int(size[:-1]) * units[size[-1]] for size in sizes), default=0)


if __name__ == "__main__":
    main()
