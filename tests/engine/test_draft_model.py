"""The draft model: another model's drafts change how fast tokens come, and no token."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllama.engine import blueprints
from jaxllama.engine.draft_model import (
    DRAFT,
    DraftCache,
    DraftModel,
    RowTokens,
    after_copy,
    after_new_tokens,
    draft_cost,
)
from jaxllama.engine.drafts import HOPEFUL_OF_MODEL, least_chance
from jaxllama.engine.engine import Engine
from jaxllama.engine.executables import Executables
from jaxllama.engine.program_key import program_key
from jaxllama.engine.programs import Programs
from jaxllama.errors import ConfigError
from jaxllama.kernels.cpu import library
from jaxllama.loading import describe
from jaxllama.model.params import Tree, nest
from jaxllama.request import Contrast, GenerationRequest
from jaxllama.testing import flatten, random_params
from tests.engine.test_drafts import same
from tests.support import (
    KEPT,
    KERNELS,
    MODEL,
    Told,
    closed,
    drive,
    installed_samplers,
    new_engine,
    place_all,
    programs,
    random_schedule,
    request,
    run,
)
from tests.test_compiles import cache_sized, not_in_place

MOST = 3
DRAFTED = dataclasses.replace(KERNELS, draft_tokens=MOST, row_cost=0.05, draft_model=MODEL)
CHEAP = 0.1  # cost of the draft model, which really is as large as the model here
NOISE = {"equal": 0.0, "near": 0.25, "other": 100.0}  # in the weights of the draft model
SCHEDULES = 20
SAMPLERS = ("mirostat", "repetition", "top_k")
KNOBS = [{}, {"top_k": 3}, {"repetition_penalty": 1.2}, {"mirostat": 2, "mirostat_tau": 2.0}]
pytestmark = pytest.mark.skipif(not library.available(), reason=library.why_not())


def noisy(noise: float) -> Tree:
    """The model's weights with noise in all matrices."""
    random = np.random.default_rng(5)

    def changed(each: np.ndarray) -> np.ndarray:
        if each.ndim == 1:
            return each
        return each + np.float32(noise * each.std()) * random.standard_normal(each.shape)

    flat = flatten(random_params(MODEL))
    return nest({path: changed(each).astype(np.float32) for path, each in flat.items()})


@functools.cache
def drafted(kind: str) -> Programs:
    """Programs with a draft model of these weights; all kinds are compiled as one."""
    shared = programs(MODEL, KERNELS, samplers=SAMPLERS)
    samplers = {name: installed_samplers()[name] for name in SAMPLERS}
    kept = Executables(KEPT / "draft-model", program_key((DRAFTED, describe(samplers), CHEAP)))
    draft = place_all(MODEL, DRAFTED, tree=noisy(NOISE[kind]))
    weights = {**shared.params, DRAFT: draft}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blueprints, "draft_cost", lambda *_: CHEAP)
        return Programs(MODEL, DRAFTED, shared.bank, weights, shared.mesh, executables=kept)


def random_request(rng: np.random.Generator, draft: int | None) -> GenerationRequest:
    """A request whose prompt begins like others', so that slots share prefixes; or a long one."""
    same = [*range(100, 170)][: rng.integers(1, 70)]
    contrast = Contrast(tuple(rng.integers(0, 256, 9).tolist()), 1.5)
    return request(
        [*same, *rng.integers(0, 256, rng.integers(1, 90)).tolist()],
        int(rng.integers(1, 24)),
        temperature=float(rng.choice([0.0, 0.0, 0.3, 0.8])),
        seed=int(rng.integers(2**40)),
        knobs=KNOBS[rng.integers(len(KNOBS))],
        stop_ids=tuple(rng.integers(0, 256, 12).tolist()) if rng.random() < 0.3 else (),
        top_logprobs=3,
        contrast=contrast if rng.random() < 0.2 else None,
        draft=draft,
    )


@functools.cache
def pool() -> list[GenerationRequest]:
    rng = np.random.default_rng(1)
    return [random_request(rng, [None, MOST, 1, 0][index % 4]) for index in range(24)]


@functools.cache
def without_drafts() -> list[Told]:
    return [run(new_engine(MODEL, KERNELS), [one])[0] for one in pool()]


@pytest.mark.parametrize("kind", NOISE)
def test_a_draft_model_changes_no_token_and_no_log_probability(kind):
    """Joins, leaves, cancels, prefix hits and replays in company of rows that draft or do not."""
    rng = np.random.default_rng(2)
    engine = Engine(drafted(kind))
    for _ in range(SCHEDULES):
        for index, told, is_cancelled in random_schedule(engine, pool(), rng):
            solo = without_drafts()[index]
            if is_cancelled:
                assert told.tokens == solo.tokens[: len(told.tokens)]
            else:
                assert same(told, solo), f"request {index} came out differently"
                assert not told.finished.usage.drafted or pool()[index].draft != 0
    drafts, accepted = engine.drafts["drafted"], engine.drafts["accepted"]
    assert drafts > SCHEDULES
    share = {"equal": (0.5, 1.0), "near": (0.05, 0.5), "other": (0.0, 0.05)}[kind]
    assert share[0] <= accepted / drafts <= share[1]
    assert closed(engine)


def test_drafts_of_an_equal_model_are_all_accepted():
    """So its cache is right: after long prompts, in slots used before, and in copied prefixes."""
    engine = Engine(drafted("equal"))
    rng = np.random.default_rng(3)
    first = rng.integers(0, 256, 150).tolist()
    prompts = [first, [*first[:140], 1, 2], [*first[:70], 5], [*first[:150], 9], [7], first[:2]]
    for together in (1, 3):
        for at in range(0, len(prompts), together):
            asked = [request(each, 12, draft=MOST) for each in prompts[at : at + together]]
            for told in run(engine, asked):
                usage = told.finished.usage
                assert usage.drafted >= 6
                assert usage.accepted >= usage.drafted - 1
    assert any(slot.cached.count > 70 for slot in engine.slots.slots)


def test_rows_that_catch_up_draft_nothing_until_they_have():
    """The prompt is longer than two tiles of it, and a step computes one."""
    engine = Engine(drafted("equal"))
    prompt = np.random.default_rng(4).integers(0, 256, 150)
    assert engine.programs.tile * 2 < len(prompt)
    told = run(engine, [request(prompt, 3, draft=MOST)])[0]
    assert told.finished.usage.drafted == 0
    told = run(engine, [request(prompt, 4, draft=MOST)])[0]
    assert told.finished.usage.drafted > 0


def test_a_row_catches_up_only_if_its_answer_may_be_long_enough():
    prompt = np.random.default_rng(6).integers(0, 256, 100)
    short, long = (
        run(Engine(drafted("equal")), [request(prompt, count)])[0].finished.usage.drafted
        for count in (100 * CHEAP - 4, 40)
    )
    assert short == 0 < long


def test_rows_stop_drafting_where_drafts_fail():
    engine = Engine(drafted("other"))
    prompt = np.random.default_rng(7).integers(0, 256, 9)
    told = run(engine, [request(prompt, 150, temperature=1.0)])[0]
    assert told.finished.usage.drafted < 40


def test_a_fault_and_a_cancelled_request_leave_the_drafts_right():
    engine = Engine(drafted("equal"))
    told: dict[int, Told] = {}
    prompt = np.random.default_rng(8).integers(0, 256, 40).tolist()
    kept = engine.submit(request(prompt, 24, draft=MOST))
    left = engine.submit(request([*prompt[:30], 1], 100, draft=MOST))
    drive(engine, told, 6)
    engine.cancel(left)
    engine.recovery.recover(RuntimeError("injected"), blame=False)
    drive(engine, told)
    expected = run(new_engine(MODEL, KERNELS), [request(prompt, 24)])[0]
    assert same(told[kept.id], expected)
    usage = told[kept.id].finished.usage
    assert usage.drafted > 6 and usage.accepted >= usage.drafted - 2
    assert closed(engine)


@pytest.mark.parametrize("name", ["decode", "copy"])
def test_no_program_copies_or_converts_a_cache(name):
    shared = drafted("equal")
    text = shared.compiled(name).as_text()
    for part in jax.tree.leaves(shared.blueprints.state.draft.layers[0]):
        found = cache_sized(text, part.shape, "parameter")
        assert len(found) >= 4 * MODEL.layers  # keys and values of both models
        moves = "copy|convert|copy-start|select|transpose|concatenate"
        assert not cache_sized(text, part.shape, moves)


@pytest.mark.parametrize("name", ["decode", "copy", "admit", "scrub"])
def test_every_array_of_the_state_is_updated_in_place(name):
    shared = drafted("equal")
    text = shared.compiled(name).as_text()
    states = len(jax.tree.leaves(shared.blueprints.state))
    assert not_in_place(text, states, int(name == "decode")) == []


def cache_of(*filled: int) -> DraftCache:
    return DraftCache((), jnp.array(filled, jnp.int32))


@pytest.mark.parametrize(
    ("after", "last", "filled"),
    [
        ([1, 2, 3, 4, 9, 0], 4, 4),
        ([1, 2, 7, 4, 5, 0], 4, 2),
        ([1, 2, 3, 4, 5, 6], 5, 4),  # no more than there were
        ([1, 2, 3, 0, 0, 0], 2, 2),  # the newest token is not in a cache
        ([8, 2, 3, 4, 5, 6], 5, 0),
    ],
)
def test_a_slot_keeps_the_columns_of_tokens_that_its_next_row_begins_with(after, last, filled):
    before = jnp.array([1, 2, 3, 4, 5, 0])
    new = RowTokens(jnp.array(after), jnp.int32(last))
    assert after_new_tokens(cache_of(0, 4), jnp.int32(1), before, new).filled.tolist() == [
        0,
        filled,
    ]


@pytest.mark.parametrize(("count", "filled"), [(3, 3), (9, 5)])
def test_a_copy_has_no_more_columns_than_were_copied_and_than_there_are(count, filled):
    after = after_copy(cache_of(5, 8), jnp.int32(0), jnp.int32(1), jnp.int32(count))
    assert after.filled.tolist() == [5, filled]


def test_a_draft_has_to_be_likelier_the_more_the_draft_model_costs():
    def least(cost: float, rows: int, drafting: int) -> float:
        return float(least_chance(0.1, jnp.float32(rows), cost, jnp.float32(drafting)))

    assert least(0.0, 1, 1) == pytest.approx(float(least_chance(0.1, jnp.float32(1))))
    assert least(0.1, 1, 1) == pytest.approx(1.1 * (1.3 * 0.1 + 0.1))
    assert least(0.1, 4, 4) < least(0.1, 4, 1)  # rows that draft together share a step
    assert least(0.5, 1, 1) < HOPEFUL_OF_MODEL < least(0.7, 1, 1)


def test_the_cost_is_the_share_of_the_weights_that_a_step_reads():
    small = dataclasses.replace(MODEL, layers=1)
    engine = dataclasses.replace(DRAFTED, draft_model=small)
    weights = {**place_all(MODEL, KERNELS), DRAFT: place_all(small, KERNELS)}
    assert 0.3 < draft_cost(MODEL, engine, weights) < 0.9
    same = {**weights, DRAFT: place_all(MODEL, KERNELS)}
    assert draft_cost(MODEL, DRAFTED, same) == 1.0
    assert draft_cost(MODEL, KERNELS, weights) == 0.0


def test_nothing_is_drafted_past_the_context_of_the_draft_model():
    few = dataclasses.replace(MODEL, max_context=8)
    with jax.disable_jit():
        model = DraftModel(few, DRAFTED, tile=64, cost=CHEAP)
        seen = []
        model._extend = lambda _params, _cache, _rows, wanted: seen.append(wanted.tolist())
        rows = RowTokens(jnp.zeros((3, 16), jnp.int32), jnp.array([4, 5, 6]))
        model.draft({DRAFT: {}}, cache_of(4, 5, 6), rows, jnp.array([3, 3, 3]))
    assert seen == [[3, 3, 0]]


def test_a_draft_model_without_drafted_tokens_is_refused():
    with pytest.raises(ConfigError, match="draft_tokens is 0 with the draft model 'smollm2'"):
        dataclasses.replace(KERNELS, draft_model=MODEL)
