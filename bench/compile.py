"""Startup: seconds to the first token, with and without kept programs, and seconds per program."""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
from child import importing_bench
from harness import Board, how_often, repeated, script
from subject import Loading, Subject, loading_options, subject_of

COMMAND = ("-c", "from jaxllama.cli.main import main; main()")
OPTIONS = ("--temperature", "0", "--ignore-eos", "-n", "1", "-p", "Once upon a time")
KINDS = ("first", "second")
NO_BYTECODE = "PYTHONDONTWRITEBYTECODE"  # with it every start compiles our sources again
# A child process like a server: it answers as soon as it can, and compiles the rest behind that.
LIKE_A_SERVER = "import compile, sys; compile.report_programs(sys.argv[1])"


class Start(NamedTuple):
    """The figures of one start of `jaxllama generate`."""

    seconds: float  # to the first byte of the answer
    to_exit: float
    processor: float
    compiled: int


@click.command()
@script("compile")
@repeated
@loading_options
def main(*, board: Board, repetitions: int | None, loading: Loading) -> None:
    """Measure first and second starts, each in a new process: the second one compiles nothing.

    First `jaxllama generate -n 1`, which makes only the programs that it needs; then a model with
    16 slots, as a server loads it, which makes the others behind its first answer.
    """
    subject = subject_of(loading)
    board.environment = subject.environment_elsewhere()
    starts: dict[str, list[Start]] = {kind: [] for kind in KINDS}
    loads: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for _ in range(how_often(board, repetitions)):
        with tempfile.TemporaryDirectory() as cache:
            for kind in KINDS:
                with board.doing(f"{kind} start"):
                    starts[kind].append(start(subject, Path(cache)))
            for kind in KINDS:
                with board.doing(f"{kind} start, all programs"):
                    loads[kind].append(load(subject, Path(cache)))
    for kind in KINDS:
        case = f"{subject.name}, {kind} start"
        add_starts(board, case, starts[kind])
        add_loads(board, f"{case} with 16 slots", loads[kind])


def add_starts(board: Board, case: str, starts: Sequence[Start]) -> None:
    """Report the starts of `jaxllama generate`."""
    board.add(f"{case}, first token", "s", [each.seconds for each in starts])
    board.add(f"{case}, until exit", "s", [each.to_exit for each in starts])
    board.add(f"{case}, processor time", "s", [each.processor for each in starts])
    board.add(f"{case}, compiled", "programs", [each.compiled for each in starts])


def add_loads(board: Board, case: str, loads: Sequence[dict[str, Any]]) -> None:
    """Report the starts that make all programs, and the seconds of each program."""
    board.add(f"{case}, first token", "s", [each["first"] for each in loads])
    board.add(f"{case}, all programs", "s", [each["all"] for each in loads])
    for name in loads[0]["programs"]:
        board.add(f"{case}, {name}", "s", [each["programs"][name] for each in loads])


def start(subject: Subject, cache: Path) -> Start:
    """Run `jaxllama generate` for one token."""
    before, used = cached_programs(cache), processor_seconds()
    command = [sys.executable, *COMMAND, "generate", *subject.options, *OPTIONS]
    started = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, env=keeping_in(cache, os.environ)
        )
        with process:
            assert process.stdout is not None
            process.stdout.read(1)
            taken = time.perf_counter() - started
            process.stdout.read()
        if process.returncode:
            errors.seek(0)
            raise click.ClickException(errors.read().decode(errors="replace").strip())
    to_exit, used = time.perf_counter() - started, processor_seconds() - used
    return Start(taken, to_exit, used, len(cached_programs(cache) - before))


def load(subject: Subject, cache: Path) -> dict[str, Any]:
    """Load the model in a child process; return what `report_programs` prints there."""
    asked = json.dumps({"model": str(subject.path.resolve()), **subject.loading.arguments})
    found = subprocess.run(
        [sys.executable, "-c", LIKE_A_SERVER, asked],
        env=keeping_in(cache, importing_bench()),
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode:
        raise click.ClickException(found.stderr.strip())
    return dict(json.loads(found.stdout))


def report_programs(asked: str) -> None:
    """Load a model, generate a token, wait for all programs; print the seconds as JSON."""
    started = time.perf_counter()
    from jaxllama import LLM  # noqa: PLC0415 - its import is a part of the start

    with LLM.load(**json.loads(asked)) as llm:
        llm.generate("Once upon a time", max_tokens=1, temperature=0)
        first = time.perf_counter() - started
        programs = llm.engine.programs
        programs.finish()
        taken = {name: each.seconds for name, each in programs.made.items()}
        figures = {"first": first, "all": time.perf_counter() - started, "programs": taken}
    click.echo(json.dumps(figures))


def keeping_in(cache: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a user's start, with compiled programs in this folder."""
    kept = {name: value for name, value in environment.items() if name != NO_BYTECODE}
    return {**kept, "XDG_CACHE_HOME": str(cache)}


def processor_seconds() -> float:
    """Return the processor time of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def cached_programs(cache: Path) -> set[tuple[Path, int]]:
    """Return the programs on disk, each with the time it was written."""
    return {(path, path.stat().st_mtime_ns) for path in cache.glob("**/*.program")}


if __name__ == "__main__":
    main()
