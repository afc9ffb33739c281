"""One look-up of the weight plugins for this folder: 700 look-ups would take most of its time."""

from collections.abc import Iterator

import pytest

import jaxllama.weights
from jaxllama.registry import WEIGHTS, load_plugins
from jaxllama.weights.base import Checkpoint


@pytest.fixture(scope="session", autouse=True)
def plugins_known() -> Iterator[None]:
    known = load_plugins(WEIGHTS, Checkpoint)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxllama.weights, "load_plugins", lambda _group, _base: known)
        yield
