"""Forced tokens in the places of drafts: the same answers, in fewer steps."""

import dataclasses
import functools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from jaxllama.config import EngineConfig
from jaxllama.constraints.compiler import Compiler
from jaxllama.constraints.wanted import read_form, schema_text
from jaxllama.engine.engine import Engine
from jaxllama.engine.forced import ForcedTokens, masks_at, nothing_forced
from jaxllama.engine.guide import Guide
from jaxllama.kernels.cpu import CPU, library
from jaxllama.request import Contrast, FinishReason, GenerationRequest, TokenConstraint
from jaxllama.testing.byte_tokenizer import END_ID, TURN_END_ID, ByteTokenizer
from tests.constraints.schemas import random_schema
from tests.engine.test_constraints import (
    FREE_THEN_FORCED,
    ODD,
    WORDS,
    Counted,
    Failing,
    March,
    Slowly,
    constrained,
)
from tests.engine.test_drafts import DRAFTING, KNOBS, MOST, random_request, same
from tests.support import (
    KERNELS,
    MODEL,
    Told,
    closed,
    new_engine,
    programs,
    random_schedule,
    run,
)
from tests.test_compiles import compilations

SCHEDULES = 40
needs_kernels = pytest.mark.skipif(not library.available(), reason=library.why_not())


# One answer on the host.


def random_march(rng: np.random.Generator, kind: Callable[..., March] = March) -> March:
    """Return a constraint of runs of forced tokens between free ones."""
    places: list[Sequence[int]] = []
    for _ in range(rng.integers(1, 5)):
        places += [ODD] * rng.integers(0, 3)
        places += [[int(token)] for token in rng.integers(0, 256, rng.choice([0, 1, 3, 4, 9]))]
    return kind(places)


def late(rng: np.random.Generator) -> Callable[..., March]:
    return functools.partial(Slowly, late=lambda: int(rng.integers(0, 3)))


def words(row: np.ndarray) -> list[int]:
    bits = np.unpackbits(row.view(np.uint8), bitorder="little")
    return np.flatnonzero(bits).tolist()


def speak(constraint: TokenConstraint, seed: int, most: int, tokens: int = 80) -> list[int]:
    """An answer drawn at random, up to `most` forced tokens and one more in a step."""
    guide, said = Guide(constraint, 1 + most), []
    row = np.zeros(WORDS, np.uint32)
    while len(said) < tokens and not guide.is_done:
        forced = guide.allow(row, min(most, tokens - len(said) - 1))
        if forced is None:
            assert not row.any()
            continue
        for token in forced:
            said.append(token)
            guide.advance(token)
        said.append(random.Random(seed + len(said)).choice(words(row)))
        if said[-1] in (END_ID, TURN_END_ID):
            break
        guide.advance(said[-1])
    return said


@pytest.mark.parametrize("seed", range(20))
def test_a_guide_says_the_same_however_many_tokens_a_step_draws(seed):
    rng = np.random.default_rng(seed)
    march = random_march(rng, late(rng) if seed % 2 else March)
    expected = speak(march, seed, 0)
    assert len(expected) == len(march.places)
    for most in (1, 3, 8):
        assert speak(march, seed, most) == expected


@pytest.fixture(scope="module")
def compiler() -> Iterator[Compiler]:
    made = Compiler(ByteTokenizer(), MODEL.vocab_size)
    yield made
    made.close()


def of_schema(compiler: Compiler, seed: int) -> TokenConstraint:
    form = read_form({"json_schema": schema_text(random_schema(random.Random(seed)))})
    assert form is not None
    return compiler.compile(form)


def test_a_guide_of_a_schema_says_the_same(compiler):
    lengths = []
    for seed in range(40):
        constraint = of_schema(compiler, seed)
        expected = speak(constraint, seed, 0)
        assert speak(constraint, seed, 4) == expected
        lengths.append(len(expected))
    assert sum(lengths) > 400


def test_the_last_token_of_a_constraint_takes_the_last_place():
    row = np.zeros(WORDS, np.uint32)
    guide = Guide(March([[5], [6], [8]]), 4)
    assert (guide.allow(row, 3), words(row)) == ([5, 6], [8])
    assert (guide.allow(row, 1), words(row)) == ([5], [6])
    assert (guide.allow(row), words(row)) == ([], [5])


def test_the_mask_after_forced_tokens_takes_the_last_place_once_it_is_there():
    row = np.zeros(WORDS, np.uint32)
    guide = Guide(Slowly([[5], [6], ODD], lambda: 1), 4)
    assert (guide.allow(row, 3), words(row)) == ([5], [6])
    assert (guide.allow(row, 3), words(row)) == ([5, 6], list(ODD))


def test_another_token_than_the_forced_one_is_an_error():
    guide = Guide(March([[5], [6]]), 4)
    with pytest.raises(ValueError, match="token 6 is not the one"):
        guide.advance(6)


def test_each_place_of_a_step_has_its_own_mask():
    allowed = np.full((2, WORDS), 2**32 - 1, np.uint32)
    allowed[1] = 5
    forced = nothing_forced(2, 2)
    assert forced is not None and nothing_forced(2, 0) is None
    drawn = ForcedTokens(*forced).drawn
    drawn[1] = 40, 3
    masks = [np.asarray(masks_at(np.int32(place), allowed, drawn)) for place in range(3)]
    assert all((each[0] == allowed[0]).all() for each in masks)
    assert [words(each[1]) for each in masks] == [[40], [3], words(allowed[1])]


# The engine.


def random_constrained(rng: np.random.Generator, constraint: TokenConstraint) -> GenerationRequest:
    """Return a request with a constraint and with samplers, some of which keep state."""
    contrast = Contrast(tuple(rng.integers(0, 256, 9).tolist()), 1.5)
    knobs = KNOBS[rng.integers(len(KNOBS))]
    made = constrained(
        [],
        temperature=float(rng.choice([0.0, 0.8, 1.5])),
        seed=int(rng.integers(2**40)),
        knobs={} if "min_tokens" in knobs else knobs,
        max_tokens=int(rng.integers(1, 40)),
        stop_ids=(END_ID, TURN_END_ID),
        # Without, an engine without drafts computes some of the forced tokens as a prompt.
        top_logprobs=3 if rng.random() < 0.7 else None,
        contrast=contrast if rng.random() < 0.2 else None,
        draft=int(rng.integers(0, 2)) if rng.random() < 0.3 else None,
    )
    return dataclasses.replace(made, constraint=constraint)


@pytest.fixture(scope="module")
def pool(compiler) -> list[GenerationRequest]:
    """Requests with schemas, with runs of forced tokens, and without a constraint."""
    rng = np.random.default_rng(3)
    march = late(rng)
    made = [of_schema(compiler, seed) for seed in range(12)]
    made += [random_march(rng, march if index % 2 else March) for index in range(24)]
    free = [random_request(rng, None) for _ in range(8)]
    return [random_constrained(rng, each) for each in made] + free


@pytest.fixture(scope="module")
def alone(pool) -> list[Told]:
    """The answer of each request alone, from an engine without speculation."""
    return [run(new_engine(MODEL, KERNELS), [one])[0] for one in pool]


@needs_kernels
def test_forced_tokens_in_the_places_of_drafts_change_nothing(pool, alone):
    engine = new_engine(MODEL, DRAFTING)
    for one, expected in zip(pool, alone, strict=True):
        told = run(engine, [one])[0]
        assert same(told, expected)
        assert told.finished.reason is expected.finished.reason
        usage = told.finished.usage
        assert usage.generated == expected.finished.usage.generated
        assert one.constraint is None or usage.drafted == usage.accepted == 0
    assert closed(engine)


class Apart(Failing):
    """Programs of a body whose steps and prompts compute different bits, as it says."""

    body = dataclasses.replace(CPU, steps_match_prompts=lambda: False)


@needs_kernels
@pytest.mark.parametrize("kind", [Failing, Apart])
def test_random_schedules_with_forced_tokens_change_nothing(kind, pool, alone, monkeypatch):
    """Joins, leaves, cancels and faults, in company of rows that draft or have no constraint."""
    rng = np.random.default_rng(4)
    new_engine(MODEL, DRAFTING).programs.warm_up()
    names = compilations(monkeypatch)
    for _ in range(SCHEDULES):
        engine = Engine(kind(programs(MODEL, DRAFTING), int(rng.integers(2, 90))))
        for index, told, is_cancelled in random_schedule(engine, pool, rng, least=2):
            if is_cancelled:
                assert told.tokens == alone[index].tokens[: len(told.tokens)]
            else:
                assert same(told, alone[index]), f"request {index} came out differently"
        assert closed(engine)
    assert names == []


class Ran(Counted):
    """Programs that count their calls by name."""

    def __init__(self, size: EngineConfig) -> None:
        kept = DRAFTING if size.draft_tokens else KERNELS
        super().__init__(programs(MODEL, kept))
        self.ran: Counter[str] = Counter()
        self.engine = size

    def __getattr__(self, name: str) -> object:
        self.ran[name] += 1
        return super().__getattr__(name)


def calls(size: EngineConfig, requests: Sequence[GenerationRequest]) -> Counter[str]:
    """How often each program is called to answer requests with a constraint."""
    engine = Engine(Ran(size))
    told = run(engine, requests)
    assert all(one.finished.reason is FinishReason.END_TOKEN for one in told)
    assert engine.drafts == {}, "a forced token is no draft"
    return engine.programs.ran


@needs_kernels
@pytest.mark.parametrize(
    "more", [{"top_logprobs": 1}, {"knobs": {"mirostat": 2, "mirostat_tau": 3.0}}]
)
def test_forced_tokens_that_are_drawn_cost_fewer_steps(more):
    """Those of requests with log-probabilities, or with a sampler that keeps state."""
    asked = [constrained(FREE_THEN_FORCED, **more)]
    assert calls(KERNELS, asked)["decode"] == len(FREE_THEN_FORCED)
    assert calls(DRAFTING, asked)["decode"] == 3 + 12 // (1 + MOST) + 4
    dear = dataclasses.replace(DRAFTING, row_cost=1.0)
    assert calls(dear, asked)["decode"] == len(FREE_THEN_FORCED)


@needs_kernels
def test_forced_tokens_that_need_no_draw_are_computed_by_steps():
    """All but those of a long run, where few rows share a step."""
    asked = [constrained(FREE_THEN_FORCED, seed=seed) for seed in range(4)]
    steps = 3 + 12 // (1 + MOST) + 4
    alone = calls(DRAFTING, asked[:1])
    assert (alone["prefill"], alone["decode"]) == (2, 3 + 4)
    together = calls(DRAFTING, asked)
    assert together["prefill"] < 4  # prompts alone: they begin with the same tokens
    assert steps <= together["decode"] <= steps + 4  # they do not begin with the same step
    short = calls(DRAFTING, [constrained([ODD, [7], [8], [9], ODD])])
    assert (short["prefill"], short["decode"]) == (1, 2)


@needs_kernels
@pytest.mark.parametrize("size", [DRAFTING, KERNELS])
def test_forced_tokens_at_the_end_of_an_answer_cost_no_step(size):
    assert calls(size, [constrained([ODD, ODD, [7]])])["decode"] == 2
