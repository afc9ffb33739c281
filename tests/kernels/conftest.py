"""Quickly compiled operations around the kernels, which are compiled already."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def quick(quick_programs: None) -> None:
    """Tests compare with hundreds of operations of plain JAX, each run a few times."""
