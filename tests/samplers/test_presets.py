"""Presets: what they set, and how they mix with what a request says itself."""

import pytest

from jaxllama.engine.choosing.knobs import check_knob
from jaxllama.errors import InvalidParameter
from jaxllama.intake import add_preset
from jaxllama.limits import LIMITS, check
from jaxllama.registry import PRESETS, SAMPLERS, load_plugins
from jaxllama.sampling import Preset, Sampler, knobs_of

INSTALLED = load_plugins(PRESETS, Preset).loaded


def test_the_presets_of_this_package_are_installed():
    assert {"precise", "creative", "balanced", "deterministic", "sphinx", "exllama"} <= set(
        INSTALLED
    )


@pytest.mark.parametrize("name", INSTALLED)
def test_every_preset_sets_what_exists_to_what_it_accepts(name: str):
    samplers = load_plugins(SAMPLERS, Sampler).loaded.values()
    specs = {knob: spec for kind in samplers for knob, spec in knobs_of(kind).items()}
    assert INSTALLED[name].__doc__ and INSTALLED[name].knobs
    for knob, value in INSTALLED[name].knobs.items():
        if knob in LIMITS:
            assert knob != "preset"
            check(knob, value)
        else:
            check_knob(knob, value, specs[knob], 10)


def test_sphinx_is_as_exllama_has_it():
    knobs = add_preset({"preset": "sphinx"}, INSTALLED)
    assert (knobs["temperature"], knobs["top_p"], knobs["top_k"]) == (1.99, 0.18, 30)
    assert knobs["top_p_strict"] is True


def test_basilisk_is_as_its_server_has_it():
    knobs = add_preset({"preset": "basilisk"}, INSTALLED)
    repetition = ("repetition_penalty", "repetition_window", "repetition_decay")
    assert (knobs["temperature"], knobs["top_k"], knobs["top_p"]) == (0.5, 32, 0.2)
    assert tuple(knobs[name] for name in repetition) == (1.1, 32, 64)
    assert (knobs["positional_repetition_penalty"], knobs["min_length"]) == (1.2, 4)
    assert knobs["stop"] == ["\n"]
    assert knobs["repetition_sign_blind"] is True and knobs["top_p_strict"] is True


@pytest.mark.origin("ExLlama: its sampling settings, as a preset")
def test_exllama_is_as_its_generator_has_it():
    knobs = add_preset({"preset": "exllama"}, INSTALLED)
    repetition = ("repetition_penalty", "repetition_window", "repetition_decay")
    assert (knobs["temperature"], knobs["top_k"], knobs["top_p"]) == (0.95, 40, 0.65)
    assert tuple(knobs[name] for name in repetition) == (1.15, 256, 128)
    assert "repetition_sign_blind" not in knobs and knobs["top_p_strict"] is True


def test_llamba_quick_penalises_what_occurred():
    knobs = add_preset({"preset": "llamba_quick"}, INSTALLED)
    assert (knobs["presence_penalty"], knobs["frequency_penalty"]) == (0.2, 0.1)
    assert knobs["prompt_penalty_window"] == 1023


def test_what_a_request_says_itself_wins():
    knobs = add_preset({"preset": "sphinx", "top_k": 5, "min_p": 0.1, "top_p": None}, INSTALLED)
    assert (knobs["top_k"], knobs["min_p"], knobs["top_p"]) == (5, 0.1, 0.18)


def test_without_a_preset_nothing_is_added():
    assert add_preset({"top_k": 5, "seed": None}, INSTALLED) == {"top_k": 5}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("spinx", "unknown preset 'spinx'; did you mean 'sphinx'"),
        ("qqqq", "unknown preset 'qqqq'; installed: balanced, basilisk, creative"),
        (7, "preset holds 7; expected non-empty text"),
    ],
)
def test_unknown_preset_is_named_with_the_nearest(name: object, words: str):
    with pytest.raises(InvalidParameter, match=words):
        add_preset({"preset": name}, INSTALLED)
