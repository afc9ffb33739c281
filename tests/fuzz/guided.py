"""`python -m tests.fuzz.guided NAME`: fuzz one reader by coverage, with atheris.

Atheris is not among the dependencies. Everything after the name goes to it: `-max_total_time=60`.
"""

import argparse
import contextlib
import sys
import tempfile
import tracemalloc
from pathlib import Path

import atheris

# Atheris sees no coverage of what the finder of an editable installation loads.
ROOT = Path(__file__).parents[2]
sys.meta_path = [each for each in sys.meta_path if "ScikitBuild" not in type(each).__name__]
sys.path += [str(ROOT), str(ROOT / "plugins")]

with atheris.instrument_imports(include=["jaxllama", "jaxllama_formats", "jaxllama_samplers"]):
    from tests.fuzz.__main__ import attempt
    from tests.fuzz.benches import NAMES, open_bench


def main() -> None:
    """Read the command line, write the sound inputs, and let atheris choose from them on."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.guided", description=__doc__)
    parser.add_argument("name", choices=NAMES)
    chosen, rest = parser.parse_known_args()
    tracemalloc.start()
    with tempfile.TemporaryDirectory() as folder:
        bench = open_bench(chosen.name, Path(folder))
        seeds = Path(folder) / "seeds"
        seeds.mkdir()
        for number, raw in enumerate(bench.sound):
            (seeds / str(number)).write_bytes(raw)
        with contextlib.closing(bench):
            atheris.Setup(
                [sys.argv[0], str(seeds), *rest], lambda raw: attempt(bench, raw) and None
            )
            atheris.Fuzz()


if __name__ == "__main__":
    main()
