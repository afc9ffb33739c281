"""The seed contract with a body whose steps compute other bits than its prompts do.

The GPU body, interpreted: its prompts go through in tiles of many rows, its steps are kernels.
"""

import dataclasses

import pytest

from jaxllama.engine.engine import Engine
from jaxllama.kernels import body_named
from tests.support import ENGINE, MODEL, QuickPrograms, new_engine, request, run

GPU = dataclasses.replace(
    ENGINE, kernels="gpu", dtype="bfloat16", cache_dtype="bfloat16", prefill_chunk=512, slots=3
)
PROMPT = tuple(range(40, 75))


def engine_of(**changes: object) -> Engine:
    return new_engine(MODEL, dataclasses.replace(GPU, **changes), kind=QuickPrograms)


@pytest.fixture(scope="module")
def alone():
    """Greedy and drawn answers of one request on an idle engine."""
    return [run(engine_of(), [each])[0] for each in (asked(0.0), asked(0.8))]


def asked(temperature, prompt=PROMPT, tokens=10):
    return request(
        prompt, tokens, temperature=temperature, top_logprobs=None, seed=7, knobs={"top_p": 0.9}
    )


def test_a_request_has_its_tokens_in_any_company(alone):
    engine = engine_of()
    others = [asked(0.7, tuple(range(9, 9 + length))) for length in (3, 20)]
    for temperature, expected in zip((0.0, 0.8), alone, strict=True):
        *_, found = run(engine, [*others, asked(temperature)])
        assert found.tokens == expected.tokens


def test_a_prompt_reuses_no_column_that_a_step_computed(alone):
    engine = engine_of()
    first = run(engine, [asked(0.8)])[0]
    assert first.tokens == alone[1].tokens
    longer = (*PROMPT, *first.tokens, 11, 12)
    again = run(engine, [asked(0.8, longer)])[0]
    assert again.finished.usage.reused <= len(PROMPT) - 1  # the prompt's columns alone
    fresh = run(engine_of(), [asked(0.8, longer)])[0]
    assert again.tokens == fresh.tokens


def test_a_fault_draws_all_tokens_again(alone, monkeypatch):
    engine = engine_of()
    decode, calls = engine.programs.decode, []

    def failing(*given, **named):
        calls.append(given)
        if len(calls) == 3:
            raise RuntimeError("planted")
        return decode(*given, **named)

    monkeypatch.setattr(engine.programs, "decode", failing)
    found = run(engine, [asked(0.8)])[0]
    assert len(calls) > 3 and found.tokens == alone[1].tokens


def test_rows_without_log_probabilities_run_the_lean_program():
    engine = engine_of()
    assert body_named("gpu").prefers_lean
    plain, listed = asked(0.8), request(PROMPT, 4, top_logprobs=2)
    assert engine.programs.lean_serves(plain, {"top_p"})
    assert not engine.programs.lean_serves(listed, set())
    assert len(run(engine, [listed])[0].logprobs) == 4
