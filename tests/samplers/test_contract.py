"""Every installed sampler keeps the contract that third parties are held to."""

import pytest

from jaxllama.registry import SAMPLERS, load_plugins
from jaxllama.sampling import Sampler, knobs_of
from jaxllama.testing import check_sampler

INSTALLED = load_plugins(SAMPLERS, Sampler).loaded


def test_the_samplers_of_this_package_are_installed():
    first_party = {"frequency", "logit_bias", "min_p", "min_tokens", "repetition"}
    assert first_party | {"top_k", "top_p"} <= set(INSTALLED)


@pytest.mark.parametrize("name", INSTALLED)
def test_sampler_keeps_its_contract(name: str):
    check_sampler(INSTALLED[name])


@pytest.mark.parametrize("name", INSTALLED)
def test_sampler_says_what_it_does(name: str):
    assert INSTALLED[name].__doc__
    assert all(len(spec.help) > 20 for spec in knobs_of(INSTALLED[name]).values())
