"""Startup: seconds from the command to its first token, with and without cached programs."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
from harness import Board, how_often, repeated, script
from subject import Loading, Subject, loading_options, subject_of

COMMAND = ("-c", "from jaxllama.cli.main import main; main()")
OPTIONS = ("--temperature", "0", "--ignore-eos", "-n", "1", "-p", "Once upon a time")


@click.command()
@script("compile")
@repeated
@loading_options
def main(*, board: Board, repetitions: int | None, loading: Loading) -> None:
    """Measure `jaxllama generate -n 1` in new processes, with an empty cache and with a filled one.

    The cold start compiles and stores every program, the warm start loads them.
    """
    subject = subject_of(loading)
    board.environment = subject.environment_elsewhere()
    starts: dict[str, list[tuple[float, int]]] = {"cold": [], "warm": []}
    for _ in range(how_often(board, repetitions)):
        with tempfile.TemporaryDirectory() as cache:
            for kind, measured in starts.items():
                with board.doing(f"{kind} start"):
                    measured.append(start(subject, Path(cache)))
    for kind, measured in starts.items():
        case = f"{subject.name}, {kind} start"
        board.add(f"{case}, first token", "s", [seconds for seconds, _ in measured])
        board.add(f"{case}, compiled", "programs", [programs for _, programs in measured])


def start(subject: Subject, cache: Path) -> tuple[float, int]:
    """Return the seconds to the first byte of the answer, and the number of compiled programs."""
    before = cached_programs(cache)
    command = [sys.executable, *COMMAND, "generate", *subject.options, *OPTIONS]
    started = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=os.environ | {"XDG_CACHE_HOME": str(cache)},
        )
        with process:
            assert process.stdout is not None
            process.stdout.read(1)
            taken = time.perf_counter() - started
            process.stdout.read()
        if process.returncode:
            errors.seek(0)
            raise click.ClickException(errors.read().decode(errors="replace").strip())
    return taken, len(cached_programs(cache) - before)


def cached_programs(cache: Path) -> set[tuple[Path, int]]:
    """Return the programs on disk, each with the time it was written."""
    return {(path, path.stat().st_mtime_ns) for path in cache.glob("**/*.program")}


if __name__ == "__main__":
    main()
