"""Restore: how fast checkpoints of our own are read, beside a plain read of the same files."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import jax
from harness import Board, Measure, Peer, how_often, in_turn, repeated, script, seconds
from subject import Subject, subject_options

from jaxllama.loading import read_weights
from jaxllama.model.params import abstract_params, loading_order
from jaxllama.sharding import make_mesh
from jaxllama.weights import open_checkpoint
from jaxllama.weights.base import fill
from jaxllama.weights.convert import Recipe, convert
from jaxllama.weights.store import cache_folder

DTYPES = ("bf16", "int8", "int4")
PLAIN = Peer("plain read")


@click.command()
@script("restore")
@repeated
@subject_options
def main(*, board: Board, subject: Subject, repetitions: int | None) -> None:
    """Convert the model to each form and read it, from the disk and from the system's cache.

    The plain read takes the same files, one after the other, into new memory. Placing the weights
    for the kernels is a case of its own.
    """
    times = how_often(board, repetitions)
    for dtype in DTYPES[:1] if board.short else DTYPES:
        with board.doing(dtype), converted(subject, dtype) as folder:
            size = sum(each.stat().st_size for each in files(folder))
            for place, is_cold in (("the disk", True), ("memory", False)):
                reads = in_turn(
                    times,
                    measure(lambda: read(folder), folder, is_cold=is_cold),
                    measure(lambda: read_plainly(folder), folder, is_cold=is_cold),
                )
                ours, plain = ([size / each / 1e9 for each in taken] for taken in reads)
                case = f"{subject.name} as {dtype}, from {place}"
                board.add(case, "GB/s", ours, plain, PLAIN)
            (taken,) = in_turn(times, lambda: seconds(lambda: load(subject, folder)))
            board.add(f"{subject.name} as {dtype}, read and placed", "s", taken)


@contextmanager
def converted(subject: Subject, dtype: str) -> Iterator[Path]:
    """Within the context, the model is there as a checkpoint of our own."""
    home = cache_folder() / "bench"
    home.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="restore-", dir=home))
    try:
        convert(subject.path, folder / dtype, Recipe(dtype), progress=lambda *_: None)
        yield folder / dtype
    finally:
        shutil.rmtree(folder)


def files(folder: Path) -> list[Path]:
    """Return the files of the arrays."""
    return sorted(each for each in (folder / "arrays").rglob("*") if each.is_file())


def measure(action: Callable[[], object], folder: Path, *, is_cold: bool) -> Measure:
    """Return a measure of an action's seconds; a cold one finds nothing in the system's cache."""

    def run() -> float:
        if is_cold:
            forget(folder)
        return seconds(action)

    return run


def forget(folder: Path) -> None:
    """Ask the system to drop its copies of the files in memory."""
    for each in files(folder):
        handle = os.open(each, os.O_RDONLY)
        try:
            os.fsync(handle)  # only what is on the disk can be dropped
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def read(folder: Path) -> None:
    """Read every weight into host memory, as loading does, and drop it."""
    with open_checkpoint(folder) as checkpoint:
        leaves = loading_order(abstract_params(checkpoint.config))
        fill(leaves, checkpoint, lambda *_: None)


def read_plainly(folder: Path) -> None:
    """Read the same files into new memory, one after the other."""
    for each in files(folder):
        each.read_bytes()


def load(subject: Subject, folder: Path) -> None:
    """Read every weight and place it for the kernels, then delete it."""
    with open_checkpoint(folder) as checkpoint:
        engine = subject.engine_config(checkpoint.config)
        mesh = make_mesh(engine, checkpoint.config)
        params = jax.block_until_ready(read_weights(checkpoint, engine, mesh, None))
    for leaf in jax.tree.leaves(params):
        leaf.delete()


if __name__ == "__main__":
    main()
