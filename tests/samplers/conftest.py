"""Two compiled banks of every installed sampler: one for few hand-made rows, one for many rows."""

import pytest

from jaxllama.registry import SAMPLERS, load_plugins
from jaxllama.sampling import Sampler
from jaxllama.testing.tryout import Tryout

TEXTS = ("a", "No\n", " I", "x:")  # texts of the first four tokens; the other tokens have none


@pytest.fixture(scope="module", autouse=True)
def quick(quick_programs: None) -> None:
    """The contract runs each sampler without compiling it: many operations, a few times each."""


@pytest.fixture(scope="session")
def four() -> Tryout:
    """Return a bank with four tokens and eight slots."""
    return Tryout(load_plugins(SAMPLERS, Sampler).loaded, vocab=4, slots=8, texts=TEXTS)


@pytest.fixture(scope="session")
def many() -> Tryout:
    """Return a bank with fifty tokens and three hundred slots."""
    return Tryout(load_plugins(SAMPLERS, Sampler).loaded, vocab=50, slots=300, texts=TEXTS)
