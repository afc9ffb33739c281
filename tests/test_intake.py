"""Intake: presets and texts in knobs, on their way to a checked request."""

import re
from collections.abc import Callable, Mapping

import pytest

from jaxllama.config import EngineConfig
from jaxllama.engine.choosing.bank import SamplerBank
from jaxllama.errors import InvalidParameter, PromptTooLong
from jaxllama.intake import Intake
from jaxllama.messages import ContextOverflow
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
        ({"stop": {"a": 1}}, "stop is {'a': 1}; expected a list"),
        ({"stop_ids": {"5": 1}}, "stop_ids is {'5': 1}; expected a list"),
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


@pytest.fixture(scope="module")
def conversing() -> Callable[..., GenerationRequest]:
    """Return a function that makes requests of conversations, 256 tokens of context."""
    tokenizer = ByteTokenizer()
    bank = SamplerBank({}, vocab=tokenizer.vocab_size, candidates=32, top_logprobs=0)
    intake = Intake(tokenizer, Plain(), bank, EngineConfig(slots=1, context=256))

    def request(messages, overflow="drop_oldest", total=None, **knobs) -> GenerationRequest:
        way = ContextOverflow(overflow)
        return intake.chat(messages, knobs, overflow=way, total=total)[0]

    return request


def talk(turns: int, size: int = 20) -> list[dict[str, str]]:
    """A conversation whose last turn is a question."""
    found = [{"role": "system", "content": "Be kind."}]
    for turn in range(turns):
        found.append({"role": "user", "content": f"<{turn:02}>".ljust(size, ".")})
        found.append({"role": "assistant", "content": "yes"})
    return found[:-1]


def numbers_in(request: GenerationRequest) -> list[int]:
    return [int(each) for each in re.findall(r"<(\d+)>", bytes(request.prompt).decode())]


def test_a_conversation_that_fits_is_left_alone(conversing):
    request = conversing(talk(3), max_tokens=20)
    assert (request.dropped, numbers_in(request)) == (0, [0, 1, 2])


def test_oldest_turns_are_left_out_until_prompt_and_answer_fit(conversing):
    for turns in range(1, 30):
        request = conversing(talk(turns), max_tokens=100)
        shown = numbers_in(request)
        assert shown == list(range(turns))[-len(shown) :], "the newest, in order"
        assert request.dropped == 2 * (turns - len(shown))
        assert len(request.prompt) + 100 <= 256
        assert b"Be kind." in bytes(request.prompt)
        if request.dropped:
            assert (turns - len(shown)) % 4 == 0 or len(shown) == 1


def test_the_beginning_stays_the_same_for_some_turns(conversing):
    """Or each turn would compute the whole prompt again."""
    firsts = [numbers_in(conversing(talk(turns), max_tokens=60))[0] for turns in range(1, 30)]
    assert firsts == sorted(firsts)
    assert len(set(firsts)) <= 8


def test_keep_fixed_keeps_the_first_turn(conversing):
    request = conversing(talk(20), "keep_fixed", max_tokens=100)
    shown = numbers_in(request)
    assert shown[0] == 0
    assert shown[1:] == list(range(20))[-len(shown) + 1 :]
    assert request.dropped == 2 * (20 - len(shown)) > 0


def test_without_max_tokens_room_for_a_short_answer_is_left(conversing):
    request = conversing(talk(20))
    assert request.dropped > 0
    assert request.max_tokens >= 256 // 4
    cut = conversing(talk(20), max_tokens=250, total=200)
    assert cut.max_tokens >= 200 // 4
    assert len(cut.prompt) + cut.max_tokens == 200


def test_a_last_question_that_does_not_fit_alone_is_refused(conversing):
    with pytest.raises(PromptTooLong):
        conversing(talk(3, size=300))
    with pytest.raises(PromptTooLong, match="max_tokens is 1000"):
        conversing(talk(3), max_tokens=1000)


def test_a_full_context_is_refused_by_default(conversing):
    with pytest.raises(PromptTooLong):
        conversing(talk(30), "error")


@pytest.mark.parametrize(
    ("speculate", "most"), [(None, None), ("auto", None), ("off", 0), (1, 1), (3, 3)]
)
def test_a_request_says_how_much_speculation_drafts(speculate, most):
    tokenizer = ByteTokenizer()
    bank = SamplerBank({}, vocab=tokenizer.vocab_size, candidates=32, top_logprobs=0)
    engine = EngineConfig(slots=1, context=64, draft_tokens=3)
    intake = Intake(tokenizer, Plain(), bank, engine)
    assert intake.completion([1, 2], {"speculate": speculate})[0].draft == most


@pytest.mark.parametrize(
    ("speculate", "words"),
    [
        ("on", "speculate is 'on'; expected off, auto or a whole number"),
        (0, "speculate is 0; it must lie in"),
        (17, "speculate is 17; it must lie in"),
        (2.5, "speculate is 2.5; expected a whole number"),
        (True, "speculate is True; expected a whole number"),
        (2, "speculate is 2, but this engine drafts no tokens"),
    ],
)
def test_wrong_speculation_is_refused(ask, speculate, words):
    with pytest.raises(InvalidParameter, match=words) as error:
        ask(speculate=speculate)
    assert error.value.field == "speculate"
