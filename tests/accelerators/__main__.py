"""Compile programs for chips that this machine does not have, and hold them to their budgets.

    python -m tests.accelerators                        the whole table, against the budgets
    python -m tests.accelerators --write                the same; writes docs/accelerators.md
    python -m tests.accelerators --short                few programs: about three minutes
    python -m tests.accelerators --chip h100 --model 1B --form bf16 --program decode_lean

Runs in the environment that `make accelerators` makes.
"""

import os

os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4",
}

import argparse
import dataclasses
import sys
from pathlib import Path

from tests.accelerators.budgets import BUDGETS
from tests.accelerators.reading import Cost, read
from tests.accelerators.subjects import BITS, MODELS, Subject
from tests.accelerators.table import PAGE, over_budget, page_of, row_of
from tests.accelerators.targets import TARGETS

PROGRAMS = ("decode_lean", "prefill", "prefill_packed")
DEPTH = 4000  # tokens that every slot holds


def main() -> None:
    """Read the programs that the command line chooses; exit with 1 if one is over its budget."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--chip", action="append", choices=TARGETS)
    parser.add_argument("--model", action="append", choices=MODELS)
    parser.add_argument("--form", action="append", choices=BITS)
    parser.add_argument("--program", action="append")
    parser.add_argument("--mesh", default="1x1", help="data x model, for example 2x2")
    parser.add_argument("--layers", type=int, help="fewer layers than the model has")
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--short", action="store_true", help="few programs, four layers")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE}")
    parser.add_argument("--text", help="folder for the compiled programs as text")
    asked = parser.parse_args()
    if asked.short:
        asked.model, asked.form, asked.layers = ["1B"], ["bf16", "int4"], 4
    data, parts = map(int, asked.mesh.split("x"))
    costs: list[Cost] = []
    failed = False
    for chip in asked.chip or TARGETS:
        for model in asked.model or ("1B", "8B"):
            for form in asked.form or BITS:
                shape = MODELS[model]
                if asked.layers:
                    shape = dataclasses.replace(shape, layers=asked.layers)
                subject = Subject(shape, form, TARGETS[chip], (data, parts), asked.slots)
                for program in asked.program or PROGRAMS:
                    name = f"{chip}-{asked.mesh}-{model}-{form}-{program}.hlo"
                    file = str(Path(asked.text) / name) if asked.text else None
                    cost = read(subject, program, DEPTH, file)
                    costs.append(cost)
                    report(row_of(cost))
                    for (what, where), amount in cost.large.items():
                        report(f"    writes {amount / 1e6:.0f} MB: {what} {where}")
                    for complaint in over_budget(cost, BUDGETS.get((chip, form, program))):
                        failed = True
                        report(f"    over budget: {complaint}")
    if asked.write:
        PAGE.write_text(page_of(costs), encoding="utf-8")
    sys.exit(failed)


def report(line: str) -> None:
    """Write a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
