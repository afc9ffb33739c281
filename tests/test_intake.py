"""Intake: presets and texts in knobs, on their way to a checked request."""

from collections.abc import Callable, Mapping

import pytest

from jaxllama.config import EngineConfig
from jaxllama.engine.choosing.bank import SamplerBank
from jaxllama.errors import InvalidParameter
from jaxllama.intake import Intake
from jaxllama.registry import PRESETS, load_plugins
from jaxllama.request import GenerationRequest
from jaxllama.sampling import Preset
from jaxllama.testing.byte_tokenizer import ByteTokenizer
from jaxllama_formats.plain import Plain
from tests.support import installed_samplers

A, SPACE = ord("a"), ord(" ")


@pytest.fixture(scope="module")
def ask() -> Callable[..., GenerationRequest]:
    tokenizer = ByteTokenizer()
    bank = SamplerBank(
        installed_samplers(), vocab=tokenizer.vocab_size, candidates=32, top_logprobs=0
    )
    presets = load_plugins(PRESETS, Preset).loaded
    intake = Intake(tokenizer, Plain(), bank, EngineConfig(slots=1, context=64), presets)

    def request(defaults: Mapping[str, object] | None = None, **knobs: object) -> GenerationRequest:
        intake.defaults = dict(defaults or {})
        return intake.completion([1, 2], knobs)[0]

    return request


def test_preset_sets_fields_and_knobs(ask):
    request = ask(preset="sphinx", top_k=7)
    assert request.temperature == 1.99
    assert request.knobs["top_k"] == 7
    assert request.knobs["top_p"] == 0.18
    assert "preset" not in request.knobs


def test_defaults_are_used_knob_by_knob_behind_request_and_preset(ask):
    defaults = {"temperature": 0.2, "top_p": 0.9, "min_p": 0.1}
    silent = ask(defaults)
    assert (silent.temperature, dict(silent.knobs)) == (0.2, {"top_p": 0.9, "min_p": 0.1})
    warm = ask(defaults, temperature=0.8, top_p=None)
    assert (warm.temperature, dict(warm.knobs)) == (0.8, {"top_p": 0.9, "min_p": 0.1})
    sphinx = ask(defaults, preset="sphinx", min_p=0.0)
    assert (sphinx.temperature, sphinx.knobs["top_p"]) == (1.99, 0.18)
    assert sphinx.knobs["min_p"] == 0.0


def test_temperature_0_stays_greedy_whatever_is_recommended(ask):
    assert ask({"temperature": 0.2, "top_p": 0.9}, temperature=0).temperature == 0.0


def test_text_becomes_token_ids_by_itself_and_after_a_space(ask):
    request = ask(banned_strings=["a", [3, 4]])
    assert request.knobs["banned_strings"] == [[A], [SPACE, A], [3, 4]]


def test_guidance_of_scale_1_is_none(ask):
    assert ask(guidance_scale=1, negative_prompt="b").contrast is None


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"preset": "nothing like it"}, "unknown preset 'nothing like it'; installed: balanced"),
        ({"banned_strings": "a"}, "banned_strings is 'a'; expected a list"),
        ({"banned_strings": [""]}, "banned_strings holds ''; expected texts, or lists"),
        ({"banned_strings": [[]]}, "banned_strings holds \\[\\]; expected texts, or lists"),
        ({"banned_strings": [7]}, "banned_strings holds 7; expected texts, or lists"),
        ({"banned_strings": [[10**6]]}, "banned_strings holds 1000000; expected token ids from 0"),
        ({"banned_strings": ["a" * 256]}, "banned_strings has 515 tokens, ends of phrases"),
        ({"banned_strings": [[1]] * 300}, "banned_strings has 600 tokens, ends of phrases"),
        ({"banned_tokens": [True]}, "banned_tokens holds True; expected token ids from 0"),
        ({"guidance_scale": 2}, "guidance_scale is 2.0, but there is no negative_prompt"),
        ({"negative_prompt": "b"}, "negative_prompt has no effect without guidance_scale"),
        ({"negative_prompt": "b", "guidance_scale": 2}, "needs 2 slots .* this engine has 1"),
        ({"banned_tokens": [1] * 1025}, "banned_tokens has 1025 entries; at most 1024 fit"),
    ],
)
def test_what_cannot_be_is_refused_by_name(ask, knobs, words):
    with pytest.raises(InvalidParameter, match=words):
        ask(**knobs)


@pytest.mark.parametrize("knob", ["min_tokens", "min_length"])
def test_an_answer_cannot_be_longer_than_it_may(ask, knob):
    assert ask(**{knob: 5}, max_tokens=5).knobs[knob] == 5
    for knobs in ({knob: 6, "max_tokens": 5}, {knob: 63}):  # of a context of 64, 2 are taken
        with pytest.raises(InvalidParameter, match=f"{knob} is .* ends after") as refused:
            ask(**knobs)
        assert refused.value.field == knob
