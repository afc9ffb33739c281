"""The comparison of what was read with the budgets, and the tables, on a cost written by hand."""

import dataclasses

import pytest

from tests.accelerators.budgets import BUDGETS, FEW_LAYERS_BUDGETS, Budget
from tests.accelerators.hlo import Counts
from tests.accelerators.reading import Cost
from tests.accelerators.table import over_budget, page_of

BOUNDS = Budget(10, 1.5, host=1, large_writes=1, temporaries=0.1, exchanges=5)
COST = Cost(
    subject="h100 1B bf16",
    program="decode_lean",
    layers=2,
    devices=1,
    counts=Counts(kernels=20, host=1, moved=150, exchanges=5),
    least=100,
    temporaries=10,
    weights=100,
    seconds=1.0,
    large={("copy", "f32[8]"): 32},
)


def test_a_program_within_its_budget_is_no_complaint():
    assert list(over_budget(COST, BOUNDS)) == []
    assert list(over_budget(COST, None)) == []


@pytest.mark.parametrize(
    ("name", "bounds"),
    [
        ("launches per layer", BOUNDS._replace(kernels_per_layer=9)),
        ("bytes moved over the least", BOUNDS._replace(moved_over_least=1.4)),
        ("host reads", BOUNDS._replace(host=0)),
        ("large new buffers", BOUNDS._replace(large_writes=0)),
        ("temporaries over the weights", BOUNDS._replace(temporaries=0.05)),
        ("exchanges", BOUNDS._replace(exchanges=4)),
    ],
)
def test_each_figure_above_its_bound_is_named(name, bounds):
    (complaint,) = over_budget(COST, bounds)
    assert complaint.startswith(f"{name} is ")


def test_programs_of_a_mesh_have_a_table_of_their_own():
    spread = dataclasses.replace(COST, subject="h100 2x2 1B bf16", devices=4)
    page = page_of([COST, spread])
    first, second = page.split("## On a mesh")
    assert "| h100 1B bf16 decode_lean | 10.0 |" in first
    assert "| h100 2x2 1B bf16 decode_lean | 5 | 10.0 |" in second


def test_the_short_form_has_programs_of_both_chips():
    chips = {chip for chip, mesh, *_ in FEW_LAYERS_BUDGETS if mesh == "1x1"}
    assert chips == {"h100", "v5e"} == {chip for chip, *_ in BUDGETS}
