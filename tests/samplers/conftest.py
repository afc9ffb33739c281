"""Two compiled banks of every installed sampler: one for hand-made rows, one for many."""

import pytest

from jaxllama.registry import SAMPLERS, load_plugins
from jaxllama.sampling import Sampler
from jaxllama.testing.tryout import Tryout

TEXTS = ("a", "No\n", " I", "x:")  # of the first four tokens; the others have none


@pytest.fixture(scope="session")
def four() -> Tryout:
    """Four tokens, eight slots."""
    return Tryout(load_plugins(SAMPLERS, Sampler).loaded, vocab=4, slots=8, texts=TEXTS)


@pytest.fixture(scope="session")
def many() -> Tryout:
    """Fifty tokens, three hundred slots."""
    return Tryout(load_plugins(SAMPLERS, Sampler).loaded, vocab=50, slots=300, texts=TEXTS)
