"""Two checkouts in turn: this one, and an older one that another Python environment has installed.

Each side runs in a process of its own (`versus_worker.py`). The machine's speed changes from minute
to minute, so the two figures of a pair are taken one right after the other, and the ratio of a case
is the median of the ratios of its pairs.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click
from child import importing_bench, stop
from harness import Board, Peer, how_often, repeated, script
from subject import Subject, subject_options

WORKER = "import versus_worker; versus_worker.main()"
DECODE = (1, 4, 16, 32)  # slots
SHORT_DECODE = (1, 16)
PREFILL = (512,)  # tokens


class Side:
    """One checkout: a process that measures when it is told to."""

    def __init__(self, python: str, process: "subprocess.Popen[str]") -> None:
        self.python = python
        self._process = process
        self.commit = self._answer()

    def rate(self, kind: str, size: int) -> float:
        """Measure once: tokens per second of `decode` with `size` slots, or of `prefill`."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{kind} {size}\n")
        self._process.stdin.flush()
        return float(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise click.ClickException(
                f"the process of {self.python} ended; its error is printed above"
            )
        return line


@click.command()
@script("versus")
@repeated
@subject_options
@click.option("--decode", multiple=True, type=click.IntRange(min=1), help="Slots; repeatable.")
@click.option("--prefill", multiple=True, type=click.IntRange(min=2), help="Tokens; repeatable.")
@click.argument("python", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(
    *,
    board: Board,
    repetitions: int | None,
    subject: Subject,
    decode: tuple[int, ...],
    prefill: tuple[int, ...],
    python: Path,
) -> None:
    """Compare with another checkout: PYTHON is the Python of an environment that has it installed.

    Every case is measured in turn, in new processes. A ratio above 1 says that this checkout is
    faster. By default 1, 4, 16 and 32 slots decode, and prompts of 512 tokens are computed.
    """
    times = how_often(board, repetitions)
    if not (decode or prefill):
        decode, prefill = SHORT_DECODE if board.short else DECODE, PREFILL
    cases = [("decode", size) for size in decode] + [("prefill", size) for size in prefill]
    other = str(python.absolute())  # not resolved: a link into an environment is its Python
    for kind, size in cases:
        case = f"{subject.name}, {kind} {size} {'slots' if kind == 'decode' else 'tokens'}"
        with board.doing(case), ExitStack() as opened:
            ours, theirs = (
                opened.enter_context(side(each, subject)) for each in (sys.executable, other)
            )
            pairs = measure(ours, theirs, kind, size, times)
        mine, others = ([pair[i] for pair in pairs] for i in (0, 1))
        peer = Peer(f"jaxllama {theirs.commit}")
        board.add(case, "tokens/s", mine, others, peer)
        ratios = [one / another for one, another in pairs]
        board.add(f"{case}, pairs", "times as fast", [statistics.median(ratios)])


def measure(
    ours: Side, theirs: Side, kind: str, size: int, times: int
) -> list[tuple[float, float]]:
    """Measure pairs; each side is the first of every other pair. The first pair is not counted."""
    pairs = []
    for number in range(times + 1):
        if number % 2:
            other = theirs.rate(kind, size)
            pairs.append((ours.rate(kind, size), other))
        else:
            own = ours.rate(kind, size)
            pairs.append((own, theirs.rate(kind, size)))
    return pairs[1:]


@contextmanager
def side(python: str, subject: Subject) -> Iterator[Side]:
    """Run the worker in a Python environment; stop it at the end.

    It runs in another folder: a jaxllama in the current one would be imported instead of the
    environment's own.
    """
    arguments = json.dumps(subject.loading.arguments)
    process = subprocess.Popen(
        [python, "-P", "-c", WORKER, str(subject.path.resolve()), arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=importing_bench(),
        cwd="/",
        text=True,
    )
    try:
        yield Side(python, process)
    finally:
        stop(process)
        assert process.stdout is not None
        process.stdout.close()


if __name__ == "__main__":
    main()
