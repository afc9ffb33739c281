"""Settings for all tests: one CPU with eight virtual devices, and a few shared fixtures."""

import os
from collections.abc import Iterator

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 " + os.environ.get(
    "XLA_FLAGS", ""
)
os.environ.pop("JAXLLAMA_MODEL", None)


@pytest.fixture(scope="module")
def few_samplers() -> Iterator[None]:
    """Let LLM.load find only the samplers that most tests need, to save compilation time."""
    from tests.support import FEW, only  # noqa: PLC0415 - after the environment is set

    with only(FEW):
        yield


@pytest.fixture(scope="module")
def no_samplers() -> Iterator[None]:
    """Let LLM.load find no samplers."""
    from tests.support import only  # noqa: PLC0415

    with only(()):
        yield


@pytest.fixture(scope="module")
def quick_loads() -> Iterator[None]:
    """Let LLM.load find no samplers and compile without optimisation.

    For tests of the way from a file to text; not of bits, copies or memory.
    """
    from tests.support import QuickPrograms, only  # noqa: PLC0415

    with only((), kind=QuickPrograms):
        yield


@pytest.fixture(scope="module")
def quick_programs() -> Iterator[None]:
    """Compile all programs of a module without optimisation.

    They run for milliseconds: compiling them well would take most of the time.
    """
    from tests.support import quick_operations  # noqa: PLC0415

    with quick_operations():
        yield


@pytest.fixture(scope="session", autouse=True)
def quick_fusions() -> Iterator[None]:
    """Switch off XLA's slowest compiler part for the programs in which samplers are tested.

    These programs are compiled without optimisation anyway.
    """
    from jaxllama.testing import proof, tryout  # noqa: PLC0415

    with pytest.MonkeyPatch.context() as patch:
        for each in (proof, tryout):
            patch.setitem(each.QUICKLY, "xla_cpu_use_fusion_emitters", False)
        yield
