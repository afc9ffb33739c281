"""`python -m tests.fuzz NAME [--runs N] [--seed S]`: fuzz one reader.

With atheris installed it is guided by coverage and takes atheris' own arguments after the name.
"""

import argparse
import sys
import tempfile
import tracemalloc
from pathlib import Path
from random import Random

from tests.fuzz.mutate import mutated
from tests.fuzz.targets import TARGETS, Bench, bounded

try:
    import atheris
except ImportError:
    atheris = None


def main() -> None:
    """Read the command line and fuzz."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("name", choices=TARGETS)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    chosen, rest = parser.parse_known_args()
    tracemalloc.start()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(chosen.name, Path(folder))
        if atheris is None:
            by_seed(bench, chosen.name, chosen.runs, chosen.seed)
        else:
            by_coverage(bench, Path(folder), [f"-runs={chosen.runs}", *rest])


def by_seed(bench: Bench, name: str, runs: int, seed: int) -> None:
    """Try seeded mutations; leave the input of a failure in the working folder."""
    refused = 0
    for run in range(runs):
        raw = mutated(bench.sound, Random(f"{name} {seed} {run}"))
        try:
            with bounded(raw):
                refused += bench.attempt(raw) is not None
        except BaseException:
            Path(f"crash-{name}-{seed}-{run}").write_bytes(raw)
            raise
    sys.stdout.write(f"{name}: {runs} inputs, {refused} refused, none failed\n")


def by_coverage(bench: Bench, folder: Path, arguments: list[str]) -> None:
    """Let atheris choose the inputs, from the sound ones on."""
    seeds = folder / "seeds"
    seeds.mkdir()
    for number, raw in enumerate(bench.sound):
        (seeds / str(number)).write_bytes(raw)

    def attempt(raw: bytes) -> None:
        with bounded(raw):
            bench.attempt(raw)

    atheris.instrument_all()
    atheris.Setup([sys.argv[0], str(seeds), *arguments], attempt)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
