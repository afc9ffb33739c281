"""The platform that JAX runs on: errors of one line, and what of a model fits into a chip."""

import jax
import pytest

from jaxllama.chips import CHIPS, chip_named, chip_of
from jaxllama.devices import PLATFORMS, explained_memory, use_platform
from jaxllama.errors import ConfigError


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="there is an accelerator")
def test_the_platform_in_use_may_be_named_and_another_is_refused_on_one_line():
    use_platform("cpu")
    for name in ("gpu", "tpu", "abacus"):
        with pytest.raises(ConfigError, match=f"platform is '{name}'") as error:
            use_platform(name)
        assert "\n" not in str(error.value)
        assert jax.default_backend() == "cpu"
    assert set(PLATFORMS) == {"cpu", "gpu", "tpu"}


def test_a_full_device_says_what_to_lower():
    lower = pytest.raises(ConfigError, match=r"too small for the weights.*--slots")
    with lower, explained_memory("the weights"):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes.\nmore lines")
    with pytest.raises(RuntimeError, match="another error"), explained_memory("the weights"):
        raise RuntimeError("another error")


def test_chips_are_found_by_their_own_names():
    assert chip_named("gpu:h100") is CHIPS["h100"]
    assert chip_of("NVIDIA H100 80GB HBM3") is CHIPS["h100"]
    assert chip_of("TPU v5 lite") is CHIPS["v5e"]
    assert chip_of("NVIDIA H100 PCIe") is CHIPS["h100-pcie"]
    assert chip_of("cpu") is None
    for text in ("gpu:v5e", "h100", "gpu:abacus"):
        with pytest.raises(ConfigError, match="expected one of gpu:"):
            chip_named(text)
