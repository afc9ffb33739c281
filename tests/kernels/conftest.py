"""Quickly compiled operations around the kernels, which are compiled already."""

from collections.abc import Iterator

import pytest

from tests.support import quick_operations


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Tests compare with hundreds of operations of plain JAX, each run a few times."""
    with quick_operations():
        yield
