"""One CPU with eight virtual devices, shapes checked, for every test."""

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 " + os.environ.get(
    "XLA_FLAGS", ""
)
os.environ.pop("JAXLLAMA_MODEL", None)


@pytest.fixture(scope="session")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one run: its processes share what they compile."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "caches"


@pytest.fixture(scope="module")
def few_samplers() -> Iterator[None]:
    """LLM.load finds only the samplers that most tests need: each more is compiled every time."""
    from tests.support import FEW  # noqa: PLC0415 - after the environment is set

    with only(FEW):
        yield


@pytest.fixture(scope="module")
def no_samplers() -> Iterator[None]:
    """LLM.load finds no samplers at all."""
    with only(()):
        yield


@contextlib.contextmanager
def only(names: Iterable[str]) -> Iterator[None]:
    """LLM.load finds these samplers."""
    from jaxllama import llm  # noqa: PLC0415
    from jaxllama.registry import SAMPLERS, Plugins, load_plugins  # noqa: PLC0415

    def load(group: str, base: type) -> Plugins:
        found = load_plugins(group, base)
        if group != SAMPLERS:
            return found
        return dataclasses.replace(found, loaded={name: found.loaded[name] for name in names})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llm, "load_plugins", load)
        yield
