"""The machine: the number of cores, and how fast they read memory.

Other scripts compare their figures with the rate at which `ceiling.py` reads the array of `stream`.
"""

from pathlib import Path

import click
import numpy as np
from ceiling import read_rate
from environment import cores, environment_of_machine, processor
from harness import Board, how_often, repeated, script

BYTES, SHORT_BYTES = 256 << 20, 64 << 20  # larger than the caches of most machines
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
TIMES = 4  # sizes of the largest cache: at most a quarter of the array can be in the cache


@click.command()
@script("machine")
@repeated
def main(*, board: Board, repetitions: int | None) -> None:
    """Print the number of cores and measure how fast they read memory."""
    board.environment = environment_of_machine()
    board.add(processor(), "cores", [cores()])
    words = stream(SHORT_BYTES) if board.short else stream()
    for threads in sorted({1, min(2, cores()), cores()}):
        with board.doing(f"reading memory, {threads} threads"):
            rates = [read_rate(words, threads) for _ in range(how_often(board, repetitions))]
        board.add(f"read, {threads} thread{'s' * (threads > 1)}", "GB/s", rates)


def stream(size: int | None = None) -> np.ndarray:
    """Return an array to read, all of its pages allocated; the default is larger than any cache."""
    return np.ones((size or max(BYTES, TIMES * largest_cache())) // 8, np.uint64)


def largest_cache() -> int:
    """Return the bytes of the largest cache that the kernel lists; 0 if it lists none."""
    units = {"K": 1 << 10, "M": 1 << 20}
    sizes = [path.read_text(encoding="utf-8").strip() for path in CACHES.glob("index*/size")]
    return max((int(size[:-1]) * units[size[-1]] for size in sizes), default=0)


if __name__ == "__main__":
    main()
