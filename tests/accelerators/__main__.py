"""Compile programs for chips that this machine does not have, and hold them to their budgets.

    python -m tests.accelerators                        the whole tables, against the budgets
    python -m tests.accelerators --write                the same; writes docs/accelerators.md
    python -m tests.accelerators --short                few programs of few layers, for .ci/run
    python -m tests.accelerators --mesh 2x2 --layers 2  on four devices, and fewer layers
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
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.accelerators.budgets import BUDGETS, FEW_LAYERS, FEW_LAYERS_BUDGETS, Budget
from tests.accelerators.reading import Cost, read
from tests.accelerators.subjects import BITS, MODELS, Subject
from tests.accelerators.table import PAGE, over_budget, page_of, row_of
from tests.accelerators.targets import TARGETS, missing

PROGRAMS = ("decode_lean", "prefill", "prefill_packed")
DEPTH = 4000  # tokens that every slot holds
SINGLE = "1x1"


class Choice(NamedTuple):
    """One program to read."""

    chip: str
    mesh: str  # data x model
    model: str
    layers: int  # 0: all
    form: str
    program: str

    def budget(self) -> Budget | None:
        """Return the bounds of the program; None if it has none."""
        if self.mesh == SINGLE and not self.layers:
            return BUDGETS.get((self.chip, self.form, self.program))
        if (self.model, self.layers) != ("1B", FEW_LAYERS):
            return None
        return FEW_LAYERS_BUDGETS.get((self.chip, self.mesh, self.form, self.program))

    def cost(self, slots: int, folder: str | None) -> Cost:
        """Compile and read the program; `folder` gets its text."""
        shape = MODELS[self.model]
        if self.layers:
            shape = dataclasses.replace(shape, layers=self.layers)
        data, parts = map(int, self.mesh.split("x"))
        subject = Subject(shape, self.form, TARGETS[self.chip], (data, parts), slots)
        name = f"{self.chip}-{self.mesh}-{self.model}-{self.form}-{self.program}.hlo"
        return read(subject, self.program, DEPTH, str(Path(folder) / name) if folder else None)


def main() -> None:
    """Read the programs that the command line chooses; exit with 1 if one is over its budget."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--chip", action="append", choices=TARGETS)
    parser.add_argument("--model", action="append", choices=MODELS)
    parser.add_argument("--form", action="append", choices=BITS)
    parser.add_argument("--program", action="append")
    parser.add_argument("--mesh", help="data x model, for example 2x2")
    parser.add_argument("--layers", type=int, default=0, help="fewer layers than the model has")
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--short", action="store_true", help="few programs of few layers")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE}")
    parser.add_argument("--text", help="folder for the compiled programs as text")
    asked = parser.parse_args()
    costs: list[Cost] = []
    failed = False
    for choice in short_choices() if asked.short else choices(asked):
        if asked.short and (why := missing(TARGETS[choice.chip])):
            report(f"SKIPPED {choice.chip} {choice.form} {choice.program}: {why}")
            continue
        cost = choice.cost(asked.slots, asked.text)
        costs.append(cost)
        report(row_of(cost))
        for (what, where), amount in cost.large.items():
            report(f"    writes {amount / 1e6:.0f} MB: {what} {where}")
        for complaint in over_budget(cost, choice.budget()):
            failed = True
            report(f"    over budget: {complaint}")
    if not costs:
        failed = True
        report("no program was read")
    if asked.write:
        PAGE.write_text(page_of(costs), encoding="utf-8")
    sys.exit(failed)


def short_choices() -> Iterator[Choice]:
    """Yield the programs of few layers on one device."""
    return (choice for choice in few_layers() if choice.mesh == SINGLE)


def choices(asked: argparse.Namespace) -> Iterator[Choice]:
    """Yield the programs of the command line; without a mesh, also those that have mesh budgets."""
    chips, models = asked.chip or TARGETS, asked.model or ("1B", "8B")
    forms, programs = asked.form or BITS, asked.program or PROGRAMS
    for chip in chips:
        for model in models:
            for form in forms:
                for program in programs:
                    yield Choice(chip, asked.mesh or SINGLE, model, asked.layers, form, program)
    if asked.mesh or asked.layers:
        return
    for each in few_layers():
        wanted = (each.chip in chips, each.model in models, each.form in forms)
        if each.mesh != SINGLE and all(wanted) and each.program in programs:
            yield each


def few_layers() -> Iterator[Choice]:
    """Yield the programs of few layers that have budgets."""
    for chip, mesh, form, program in FEW_LAYERS_BUDGETS:
        yield Choice(chip, mesh, "1B", FEW_LAYERS, form, program)


def report(line: str) -> None:
    """Write a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
