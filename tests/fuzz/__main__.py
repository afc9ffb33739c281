"""`python -m tests.fuzz [NAME ...]`: fuzz readers of bytes that a stranger can send.

Without a name, all of them one after the other, and a line of JSON for each. An input that raises
an undeclared error, takes long or much memory, or is answered with a 500 is kept in the folder.
`tests.fuzz.guided` lets atheris choose the inputs by coverage.
"""

import argparse
import contextlib
import sys
import tempfile
import time
import traceback
import tracemalloc
from pathlib import Path
from random import Random

from tests.chaos.report import Report
from tests.fuzz.benches import NAMES, Bench, open_bench
from tests.fuzz.targets import bounded

MOST_FOUND = 5  # findings of a target after which it is left


def main() -> None:
    """Read the command line and fuzz."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each target [20]")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs [0]")
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="[build/fuzz]")
    parser.add_argument("--again", type=Path, help="read this kept input with NAME once more")
    chosen = parser.parse_args()
    if unknown := sorted(set(chosen.names) - set(NAMES)):
        parser.error(f"there is no reader {', '.join(unknown)}")
    tracemalloc.start()
    report = Report()
    for name in chosen.names or NAMES:
        with tempfile.TemporaryDirectory() as folder:
            bench = open_bench(name, Path(folder))
            with contextlib.closing(bench):
                if chosen.again:
                    attempt(bench, chosen.again.read_bytes())
                else:
                    by_seed(report, bench, name, chosen)
    if report.broken:
        sys.exit(f"{len(report.broken)} targets with findings; the inputs are in {chosen.keep}")


def by_seed(report: Report, bench: Bench, name: str, chosen: argparse.Namespace) -> None:
    """Try seeded mutations for some seconds; keep the inputs of findings, report the counts."""
    runs = refused = 0
    findings: list[str] = []
    began = time.monotonic()
    while time.monotonic() - began < chosen.seconds and len(findings) < MOST_FOUND:
        raw = bench.changed(Random(f"{name} {chosen.seed} {runs}"))
        runs += 1
        try:
            refused += attempt(bench, raw) is not None
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a panic of Rust is no Exception
            chosen.keep.mkdir(parents=True, exist_ok=True)
            path = chosen.keep / f"{name}-{chosen.seed}-{runs - 1}"
            path.write_bytes(raw)
            findings.append(f"{type(error).__name__}: {error}"[:500])
            path.with_suffix(".txt").write_text(traceback.format_exc())
    seconds = round(time.monotonic() - began, 1)
    figures = {"inputs": runs, "refused": refused, "seconds": seconds, "findings": findings}
    report.promise(f"fuzz {name}", {"nothing is found": not findings}, **figures)


def attempt(bench: Bench, raw: bytes) -> Exception | None:
    """Read one input within its bounds."""
    with bounded(raw, bench.seconds):
        return bench.attempt(raw)


if __name__ == "__main__":
    main()
