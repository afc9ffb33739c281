"""The bank: order of work, exactness for any width, rows that cannot disturb each other."""

import contextlib
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllama.engine.choosing.bank import SamplerBank
from jaxllama.engine.choosing.chooser import TokenChooser
from jaxllama.errors import BrokenPlugin, InvalidParameter, KnobClash
from jaxllama.kernels.cpu import choice as cpu_choice
from jaxllama.kernels.cpu import library
from jaxllama.registry import SAMPLERS, load_plugins
from jaxllama.sampling import NO_TOKEN, Adjuster, Filter, Knob, Sampler, knob, knobs_of, state
from jaxllama.testing.tryout import QUICKLY, Tryout, survivors

NEEDED = (
    "frequency",
    "logit_bias",
    "min_p",
    "min_tokens",
    "mirostat",
    "repetition",
    "top_k",
    "top_p",
)
INSTALLED = {name: load_plugins(SAMPLERS, Sampler).loaded[name] for name in NEEDED}
CHAIN = {name: INSTALLED[name] for name in ("frequency", "min_p", "repetition", "top_k", "top_p")}
VOCAB, SLOTS = 200, 64


class Twice(Adjuster):
    """Doubles every logit."""

    order = 5
    twice: Knob = knob(off=0, high=1, help="double the logits")

    def __call__(self, logits, context):
        del context
        return logits * 2


class First(Adjuster):
    """Adds to the logit of token 0; runs after Twice."""

    order = 6
    first: Knob = knob(off=0.0, help="added to token 0")

    def __call__(self, logits, context):
        del context
        return logits.at[0].add(self.first)


class Odd(Filter):
    """Keeps every other survivor and so drops the likeliest; runs before top-k."""

    keeps_greedy = False
    odd: Knob = knob(off=0, high=1, help="keep the second, the fourth, ...")

    def __call__(self, best, context):
        del context
        return best.rank % 2 == 1


class Nothing(Filter):
    """Would drop everything."""

    keeps_greedy = False
    order = 50
    nothing: Knob = knob(off=0, high=1, help="keep nothing")

    def __call__(self, best, context):
        del context
        return best.rank < 0


class Lottery(Adjuster):
    """Bans token 1 by chance."""

    lottery: Knob = knob(off=0.0, low=0.0, high=1.0, help="how often token 1 is banned")

    def __call__(self, logits, context):
        return jnp.where(context.chance < self.lottery, logits.at[1].set(-jnp.inf), logits)


class Mute(Adjuster):
    """Bans what the row holds; shown nothing else."""

    held_only = True
    order = 7
    mute: Knob = knob(off=0, high=1, help="ban every token of the row")

    def __call__(self, logits, context):
        return jnp.where(context.counts(len(logits)) > 0, -jnp.inf, logits)


class Tally(Adjuster):
    """Raises token 2 by the summed surprise so far."""

    tally: Knob = knob(off=0.0, low=0.0, high=9.0, help="where the sum begins")
    total: Knob = state(start=0.0)

    def start(self):
        return dataclasses.replace(self, total=self.tally)

    def __call__(self, logits, context):
        del context
        return logits.at[2].add(self.total)

    def observe(self, chosen):
        return dataclasses.replace(self, total=self.total - chosen.logprob)


ALL = {
    **INSTALLED,
    "twice": Twice,
    "first": First,
    "odd": Odd,
    "nothing": Nothing,
    "lottery": Lottery,
    "mute": Mute,
    "tally": Tally,
}


@pytest.fixture(scope="module")
def narrow() -> Tryout:
    """Eight candidates: most rows have to be done again with more."""
    return Tryout(ALL, vocab=VOCAB, slots=SLOTS, candidates=8)


@pytest.fixture(scope="module")
def wide() -> Tryout:
    """The whole vocabulary at once."""
    return Tryout(ALL, vocab=VOCAB, slots=SLOTS)


def random_logits(rng: np.random.Generator, rows: int = SLOTS) -> np.ndarray:
    return rng.normal(size=(rows, VOCAB)) * rng.uniform(0.2, 5, (rows, 1))


def random_knobs(rng: np.random.Generator) -> dict[str, object]:
    """Some of the knobs, each with some value."""
    each = {
        "top_k": int(rng.integers(1, 250)),
        "top_p": float(rng.random()),
        "min_p": float(rng.random() * 0.2),
        "repetition_penalty": float(rng.uniform(0.5, 2)),
        "repetition_window": int(rng.integers(-1, 9)),
        "presence_penalty": float(rng.uniform(-2, 2)),
        "frequency_penalty": float(rng.uniform(-2, 2)),
        "logit_bias": {int(t): float(rng.uniform(-9, 9)) for t in rng.choice(VOCAB, 5)},
        "min_tokens": int(rng.integers(0, 9)),
        "odd": 1,
        "lottery": float(rng.random()),
        "tally": float(rng.random()),
    }
    return {name: value for name, value in each.items() if rng.random() < 0.25}


def random_rows(rng: np.random.Generator, rows: int = SLOTS) -> dict[str, object]:
    length = rng.integers(1, 17, rows)
    return {
        "tokens": rng.integers(0, VOCAB, (rows, 16)).tolist(),
        "length": length,
        "prompt": np.array([rng.integers(1, n, endpoint=True) for n in length]),
        "stop_ids": rng.integers(0, VOCAB, (rows, 2)).tolist(),
        "temperature": rng.choice([0.0, 0.3, 1.0, 1.7], rows),
        "temperature_last": rng.random(rows) < 0.3,
        "seed": rng.integers(0, 2**32, (rows, 2), dtype=np.uint32),
        "top_logprobs": rng.integers(-1, 5, rows),
    }


def pick(tree: object, places: np.ndarray) -> object:
    return jax.tree.map(lambda leaf: np.asarray(leaf)[places], tree)


def assert_same(one: object, other: object) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


# Order


def test_adjusters_run_by_order_before_temperature(wide: Tryout):
    logits = np.zeros(VOCAB)
    logits[0] = 1.0
    choice = wide.choose(logits, [{"first": 3.0, "twice": 1}], temperature=0.5)
    relative = choice.sampled_logprobs[0, 0] - choice.sampled_logprobs[0, 1]
    assert np.isclose(relative, (2 * 1.0 + 3.0) / 0.5)


def test_filters_see_the_temperature_unless_it_comes_last(wide: Tryout):
    logits = np.full(VOCAB, -20.0)
    logits[:4] = np.log([0.6, 0.3, 0.06, 0.04])
    choice = wide.choose(
        [logits] * 3,
        {"min_p": 0.15},
        temperature=[1.0, 4.0, 4.0],
        temperature_last=[False, False, True],
    )
    assert [survivors(choice, row) for row in range(3)] == [[0, 1], [0, 1, 2, 3], [0, 1]]
    shares = np.array([0.6, 0.3]) ** 0.25
    assert np.allclose(np.exp(choice.sampled_logprobs[2, :2]), shares / shares.sum())


def test_each_filter_sees_what_the_one_before_left(wide: Tryout):
    logits = np.log(np.arange(VOCAB, 0, -1.0))
    choice = wide.choose([logits] * 2, [{"top_k": 3}, {"odd": 1, "top_k": 3}])
    assert survivors(choice, 0) == [0, 1, 2]
    assert survivors(choice, 1) == [1, 3, 5]


def test_filter_that_would_drop_everything_drops_nothing(wide: Tryout):
    choice = wide.choose(np.arange(VOCAB), [{"top_k": 3, "nothing": 1}])
    assert survivors(choice) == [VOCAB - 1, VOCAB - 2, VOCAB - 3]


# Greedy


def test_temperature_zero_takes_the_likeliest_adjusted_token(wide: Tryout):
    logits = np.zeros((3, VOCAB))
    logits[:, 7] = logits[:, 9] = 2.0
    knobs = [{}, {"first": 5.0}, {"odd": 1, "top_k": 50}]
    choice = wide.choose(logits, knobs, temperature=0.0)
    assert choice.token.tolist() == [7, 0, 7]
    assert choice.sampled.tolist() == [0.0, 0.0, 0.0]
    assert survivors(choice, 0) == [7]


def test_smallest_temperature_is_almost_greedy_and_stays_finite(wide: Tryout):
    logits = np.random.default_rng(0).normal(size=(3, VOCAB)) * 1e30
    choice = wide.choose(logits, [{}, {"top_p": 0.9}, {"min_p": 0.1}], temperature=1e-44)
    assert choice.token.tolist() == logits.argmax(-1).tolist()
    assert np.isfinite(choice.sampled).all()


# Width


def test_width_changes_neither_survivors_nor_token(narrow: Tryout, wide: Tryout):
    rng = np.random.default_rng(1)
    open_rows = 0
    for _ in range(12):
        knobs, fields = [random_knobs(rng) for _ in range(SLOTS)], random_rows(rng)
        fields["top_logprobs"] = 5
        logits = random_logits(rng)
        few, many = narrow.choose(logits, knobs, **fields), wide.choose(logits, knobs, **fields)
        np.testing.assert_array_equal(few.token, many.token)
        np.testing.assert_array_equal(few.sampled_ids, many.sampled_ids)
        np.testing.assert_allclose(few.sampled, many.sampled, atol=1e-5)
        np.testing.assert_allclose(few.sampled_logprobs, many.sampled_logprobs, atol=1e-5)
        open_rows += sum(len(survivors(many, row)) > 8 for row in range(SLOTS))
    assert open_rows > 100


def test_narrow_nucleus_is_exact_when_a_later_filter_hides_that_it_was_cut(
    narrow: Tryout, wide: Tryout
):
    # 100 tokens share 90 %: top-p 0.95 keeps far more than 8, min-p keeps the first alone; between
    # them a second look at the shares must see the whole nucleus.
    logits = np.full(VOCAB, -10.0)
    logits[1:101] = np.log(0.9 / 100)
    logits[0] = np.log(0.1)
    knobs = [{"top_p": 0.95, "min_p": 0.5}]
    few, many = narrow.choose(logits, knobs), wide.choose(logits, knobs)
    assert survivors(few) == survivors(many) == [0]


# Draws


def chi_square(counts: np.ndarray, shares: np.ndarray) -> float:
    expected = counts.sum() * shares
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.fixture(scope="module")
def crowd() -> Tryout:
    """Two thousand rows draw at once."""
    kinds = {name: INSTALLED[name] for name in ("top_k", "top_p")}
    return Tryout(kinds, vocab=10, slots=2000)


@pytest.mark.parametrize(
    ("knobs", "left"), [({}, 10), ({"top_k": 10}, 10), ({"top_k": 4}, 4), ({"top_p": 0.8}, 6)]
)
def test_draws_follow_the_distribution(crowd: Tryout, knobs: dict[str, object], left: int):
    logits = np.log(np.array([7, 1, 3, 9, 2, 5, 4, 8, 6, 10.0]))
    counts = np.zeros(10)
    for length in range(1, 6):
        choice = crowd.choose([logits] * 2000, knobs, length=length, temperature=0.8)
        counts += np.bincount(choice.token, minlength=10)
    heated = np.exp(logits / 0.8)
    order = np.argsort(-heated)
    if "top_p" in knobs:
        before = np.cumsum(heated[order]) - heated[order]
        assert (before < 0.8 * heated.sum()).sum() == left
    kept = order[:left]
    assert counts.sum() == counts[kept].sum() == 10_000
    shares = heated[kept] / heated[kept].sum()
    assert chi_square(counts[kept], shares) < 27.9  # 0.1 % for 9 degrees of freedom


def test_chi_square_finds_a_wrong_distribution():
    counts = np.random.default_rng(0).multinomial(10_000, np.full(10, 0.1))
    assert chi_square(counts, np.linspace(0.08, 0.12, 10)) > 27.9


def test_draw_depends_on_seed_and_length_alone(wide: Tryout):
    logits = np.zeros((6, VOCAB))
    seed = [1, 1, 1, 2, 1, 1]
    length = [3, 3, 4, 3, 3, 3]
    tokens = [[9], [9], [9], [9], [8], [9]]
    temperature = [1.0] * 5 + [3.0]
    keys = np.stack([np.zeros(6), seed], -1)
    choice = wide.choose(
        logits, seed=keys, length=length, tokens=tokens, temperature=temperature, knobs={}
    )
    token = choice.token.tolist()
    assert token[0] == token[1] == token[4] == token[5]
    assert token[2] != token[0] != token[3]


def test_chance_is_each_samplers_own_and_survives_new_neighbours(wide: Tryout):
    logits = np.zeros((SLOTS, 8))
    knobs = [{"lottery": 0.5}] * SLOTS
    alone = Tryout({"lottery": Lottery}, vocab=8, slots=SLOTS)
    named = Tryout({"raffle": Lottery}, vocab=8, slots=SLOTS)
    banned = [1 not in survivors(alone.choose(logits, knobs), row) for row in range(SLOTS)]
    other = [1 not in survivors(named.choose(logits, knobs), row) for row in range(SLOTS)]
    crowded = wide.choose(np.zeros((SLOTS, VOCAB)), knobs)
    assert banned == [1 not in survivors(crowded, row) for row in range(SLOTS)]
    assert 16 < sum(banned) < 48
    assert banned != other


# Rows


@pytest.mark.parametrize("staying", [1, 2, 8, SLOTS // 2])
def test_row_is_bit_identical_in_any_slot_among_any_neighbours(narrow: Tryout, staying: int):
    rng = np.random.default_rng(staying)
    for trial in range(8):
        logits, fields = random_logits(rng), random_rows(rng)
        filled = narrow.fill([random_knobs(rng) for _ in range(SLOTS)])
        before = narrow.step(filled, logits, **fields)
        # Some rows stay and change places; the others are new, and in every other trial plain.
        stay = rng.permutation(SLOTS)[:staying]
        logits2, fields2 = random_logits(rng), random_rows(rng)
        filled2 = narrow.fill([random_knobs(rng) if trial % 2 else {} for _ in range(SLOTS)])

        def mixed(old, new, stay=stay):
            return np.concatenate([np.asarray(old)[stay], np.asarray(new)[len(stay) :]])

        after = narrow.step(
            jax.tree.map(mixed, filled, filled2),
            mixed(logits, logits2),
            **{name: mixed(fields[name], fields2[name]) for name in fields},
        )
        assert_same(pick(before, stay), pick(after, np.arange(staying)))


def test_unsound_row_fails_alone(narrow: Tryout):
    rng = np.random.default_rng(3)
    filled = narrow.fill([random_knobs(rng) for _ in range(SLOTS)])
    logits, fields = random_logits(rng), random_rows(rng)
    fields["stop_ids"] = [[]] * SLOTS
    clean = narrow.step(filled, logits, **fields)
    poison = rng.permutation(SLOTS)[:20]
    for value in (np.nan, np.inf, -np.nan):
        spoilt = logits.copy()
        spoilt[poison, rng.integers(0, VOCAB, 20)] = value
        spoilt[poison[0]] = value
        bank, choice = narrow.step(filled, spoilt, **fields)
        assert not choice.finite[poison].any()
        assert not choice.token[poison].any()
        assert np.isfinite(choice.sampled).all()
        others = np.setdiff1d(np.arange(SLOTS), poison)
        assert choice.finite[others].all()
        assert_same(pick((bank, choice), others), pick(clean, others))
        assert_same(pick(bank, poison), pick(filled, poison))


def test_nan_is_found_at_every_place(wide: Tryout):
    for start in range(0, VOCAB, SLOTS):
        logits = np.zeros((SLOTS, VOCAB))
        spoilt = np.arange(start, min(start + SLOTS, VOCAB))
        logits[spoilt - start, spoilt] = np.nan
        finite = wide.choose(logits, temperature=0.0, knobs={}).finite
        assert finite.tolist() == [row >= len(spoilt) for row in range(SLOTS)]


def test_adjuster_cannot_hide_a_nan_of_the_model(wide: Tryout):
    logits = np.zeros((2, VOCAB))
    logits[:, 1] = np.nan
    choice = wide.choose(logits, {"lottery": 1.0}, temperature=0.0)
    assert not choice.finite.any()


def test_adjuster_shown_only_held_tokens_moves_those_among_the_others(wide: Tryout):
    """Between adjusters of the whole vocabulary, and in the rows that ask for it alone."""
    logits = np.zeros((2, VOCAB))
    tokens = {"tokens": [4, 9, 4, 7], "length": 3}
    knobs = {"first": 2.0, "twice": 1}
    choice = wide.choose(logits + 1.0, [knobs | {"mute": 1}, knobs], temperature=1.0, **tokens)
    assert sorted(set(range(VOCAB)) - set(survivors(choice, row=0))) == [4, 9]
    assert len(survivors(choice, row=1)) == VOCAB
    heat = np.exp(choice.sampled_logprobs[0][:2])
    assert heat[0] / heat[1] == pytest.approx(np.exp(2.0), rel=1e-4)


def test_adjuster_shown_only_held_tokens_cannot_hide_a_nan_among_them(wide: Tryout):
    logits = np.zeros((2, VOCAB))
    logits[:, 9] = np.nan
    choice = wide.choose(logits, [{"mute": 1}, {}], tokens=[4, 9], length=2)
    assert not choice.finite.any()


def test_row_with_nothing_to_choose_fails_and_banned_tokens_are_welcome(wide: Tryout):
    logits = np.full((2, VOCAB), -np.inf)
    logits[1, 5] = 1.0
    choice = wide.choose(logits, [{}, {"top_p": 0.5}])
    assert choice.finite.tolist() == [False, True]
    assert choice.token.tolist() == [0, 5]


def test_idle_row_gets_token_zero_and_keeps_its_state(wide: Tryout):
    filled = wide.fill([{"tally": 1.0}] * 2)
    logits = np.random.default_rng(0).normal(size=(2, VOCAB))
    bank, choice = wide.step(filled, logits, active=[True, False])
    assert choice.token[1] == 0
    assert choice.finite.all()
    assert bank["tally"].total[0] > filled["tally"].total[0]
    assert_same(pick(bank, np.arange(1, SLOTS)), pick(filled, np.arange(1, SLOTS)))


# State


def test_adaptive_sampler_adds_up_what_its_row_drew(wide: Tryout):
    logits = np.random.default_rng(4).normal(size=(3, VOCAB))
    filled = wide.fill([{"tally": 0.5}, {}, {"tally": 2.0}])
    assert filled["tally"].total[:3].tolist() == [0.5, 0.0, 2.0]
    bank, choice = wide.step(filled, logits, top_logprobs=[-1, 3, 3])
    model = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    surprise = -model[np.arange(3), choice.token]
    expected = [0.5 + surprise[0], 0.0, 2.0 + surprise[2]]
    assert np.allclose(bank["tally"].total[:3], expected, atol=1e-5)


def test_bank_knows_which_requests_it_remembers(wide: Tryout):
    assert wide.bank.remembers({"tally": 1.0, "top_k": 3})
    assert not wide.bank.remembers({"tally": 0.0, "top_k": 3})
    assert not wide.bank.remembers({"top_k": 3})


def test_bank_knows_which_samplers_knobs_switch_on(wide: Tryout):
    knobs = {"tally": 1.0, "top_k": 0, "top_p": 0.5, "min_p": None}
    assert wide.bank.switched_on(knobs) == {"tally", "top_p"}
    assert wide.bank.switched_on({}) == frozenset()
    assert wide.bank.common == {"top_k", "top_p", "min_p"} & set(wide.bank.samplers)


def test_written_row_replaces_one_slot(wide: Tryout):
    bank = wide.bank.write(
        jax.tree.map(jnp.asarray, wide.bank.empty(3)), jnp.int32(1), wide.bank.row({"top_k": 7})
    )
    assert bank["top_k"].top_k.tolist() == [0, 7, 0]
    assert bank["logit_bias"].logit_bias.ids.shape == (3, 1024)


# Log-probabilities


def test_log_probabilities_are_those_of_the_model_and_of_the_draw(narrow: Tryout):
    logits = np.random.default_rng(5).normal(size=(3, VOCAB)) * 3
    knobs = [{}, {"top_k": 5, "first": 4.0}, {"first": 4.0}]
    choice = narrow.choose(logits, knobs, temperature=[0.7, 0.7, 0.0], top_logprobs=3)
    model = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(choice.logprob, model[np.arange(3), choice.token], atol=1e-5)
    order = np.argsort(-model, -1)
    np.testing.assert_array_equal(choice.top_ids, order)
    np.testing.assert_allclose(choice.top_logprobs, np.take_along_axis(model, order, -1), atol=1e-4)
    heated = np.exp(logits[0] / 0.7)
    np.testing.assert_allclose(
        choice.sampled[0], np.log(heated[choice.token[0]] / heated.sum()), atol=1e-5
    )
    moved = logits[1] + 4.0 * (np.arange(VOCAB) == 0)
    kept = np.argsort(-moved)[:5]
    shares = np.exp(moved[kept] / 0.7) / np.exp(moved[kept] / 0.7).sum()
    assert survivors(choice, 1) == kept.tolist()
    np.testing.assert_allclose(np.exp(choice.sampled_logprobs[1, :5]), shares, atol=1e-5)
    assert choice.sampled_ids[1, 5] == NO_TOKEN


def test_equal_probabilities_are_listed_by_id(wide: Tryout):
    choice = wide.choose(np.zeros((2, VOCAB)), [{}, {"top_k": VOCAB}])
    assert (choice.top_ids == np.arange(VOCAB)).all()
    assert (choice.sampled_ids == np.arange(VOCAB)).all()


def test_rows_that_ask_for_none_get_none_beside_rows_that_do(wide: Tryout):
    choice = wide.choose(np.zeros((2, VOCAB)), {}, top_logprobs=[-1, 0])
    assert choice.logprob.tolist() == [0.0, pytest.approx(-np.log(VOCAB))]
    assert (choice.top_ids[0] == NO_TOKEN).all()
    assert (choice.sampled_ids[0] == NO_TOKEN).all()


# Programs


def test_changing_numbers_never_recompiles(narrow: Tryout, wide: Tryout):
    rng = np.random.default_rng(6)
    for tryout in (narrow, wide):
        for _ in range(3):
            knobs = [random_knobs(rng) for _ in range(SLOTS)]
            tryout.choose(random_logits(rng), knobs, **random_rows(rng))
        assert tryout.traces == 1


@pytest.fixture(scope="module")
def by_kernels(narrow: Tryout):
    """The usual chain by the C++ library, as compiled: it may move the logits it is given."""
    if not library.available():
        pytest.skip(library.why_not())
    bank = SamplerBank(CHAIN, vocab=VOCAB, candidates=8, top_logprobs=20, body="cpu")

    def choose(filled, given, rows):
        given, logits = cpu_choice.set_aside(given, rows.active)
        return given, TokenChooser(bank).choose(filled, logits, rows)[1]

    logits = np.zeros((SLOTS, VOCAB), np.float32)
    traced = jax.jit(choose, donate_argnums=1).lower(bank.empty(SLOTS), logits, narrow.rows(SLOTS))
    return traced.compile()


def test_kernels_and_plain_functions_choose_the_same(by_kernels, narrow: Tryout):
    rng = np.random.default_rng(8)
    ours = {name for kind in CHAIN.values() for name in knobs_of(kind)}
    for _ in range(6):
        knobs = [
            {name: value for name, value in random_knobs(rng).items() if name in ours}
            for _ in range(SLOTS)
        ]
        fields, logits = random_rows(rng), random_logits(rng).astype(np.float32)
        filled = narrow.fill(knobs)
        chain = {name: filled[name] for name in CHAIN}
        _, found = by_kernels(chain, logits, narrow.rows(SLOTS, **fields))
        expected = narrow.choose(logits, knobs, **fields)
        for value, same in zip(found, expected, strict=True):
            known = same[:, :20] if same.ndim > 1 else same
            if value.dtype == np.float32:
                np.testing.assert_allclose(value, known, atol=2e-5)
            else:
                np.testing.assert_array_equal(value, known)


def test_usual_chain_copies_no_logits(by_kernels):
    text = by_kernels.as_text()
    assert f"f32[{SLOTS},{VOCAB}]" in text
    assert not re.findall(rf"f32\[{SLOTS},{VOCAB}\]\S* copy\(", text)


def test_candidates_are_found_without_sorting_the_vocabulary():
    kinds = {name: INSTALLED[name] for name in ("top_k", "top_p")}
    bank = SamplerBank(kinds, vocab=4096, candidates=32, top_logprobs=20)
    rows = Tryout({}, vocab=4096, slots=3).rows(3)
    logits = np.zeros((3, 4096), np.float32)
    lowered = jax.jit(TokenChooser(bank).choose).lower(bank.empty(3), logits, rows)
    text = lowered.compile(QUICKLY).as_text()
    lines = text.splitlines()
    found = [line for line in lines if 'custom_call_target="TopK"' in line]
    assert sum("f32[3,32]" in line for line in found) == 1
    assert sum("f32[3,20]" in line for line in found) == 2
    # One row may be sorted whole when all of its candidates survived; a batch never is.
    sorts = [line for line in lines if " sort(" in line]
    assert any("f32[1,4096]" in line for line in sorts)
    assert not any("f32[3,4096]" in line for line in sorts)


def test_sharded_rows_and_vocabulary_choose_the_same_tokens():
    rng = np.random.default_rng(7)
    kinds = {name: INSTALLED[name] for name in ("top_p", "repetition", "logit_bias")}
    narrow = Tryout(kinds, vocab=VOCAB, slots=SLOTS, candidates=16)
    logits, fields = random_logits(rng).astype(np.float32), random_rows(rng)
    knobs = [random_knobs(rng) for _ in range(SLOTS)]
    known = narrow.bank.knobs
    filled = narrow.fill([{k: v for k, v in row.items() if k in known} for row in knobs])
    one = narrow.step(filled, logits, **fields)[1]
    mesh = jax.make_mesh((2, 4), ("data", "model"), (jax.sharding.AxisType.Auto,) * 2)
    by_row = jax.NamedSharding(mesh, jax.P("data"))
    spread = (
        jax.device_put(filled, by_row),
        jax.device_put(logits, jax.NamedSharding(mesh, jax.P("data", "model"))),
        jax.device_put(narrow.rows(SLOTS, **fields), by_row),
    )
    eight = jax.jit(TokenChooser(narrow.bank).choose, compiler_options=QUICKLY)(*spread)[1]
    np.testing.assert_array_equal(one.token, eight.token)
    np.testing.assert_allclose(one.sampled, eight.sampled, atol=1e-5)


# Knobs


class Rival(Filter):
    """Claims a knob that top_k has."""

    top_k: Knob = knob(off=0, help="also top_k")

    def __call__(self, best, context):
        del context
        return best.p > 0


class Cold(Filter):
    """Claims a field of every request."""

    seed: Knob = knob(off=0, help="also a seed")


class Careless(Adjuster):
    """Has a bare field."""

    strength: float = 1.0


class Crash(Adjuster):
    """Raises while it is traced."""

    crash: Knob = knob(off=0.0, help="a number")

    def __call__(self, logits, context):
        raise ValueError(f"not today\n{logits} {context}")


@pytest.mark.parametrize(
    ("samplers", "error", "words"),
    [
        ({"top_k": INSTALLED["top_k"], "rival": Rival}, KnobClash, ["top_k", "rival"]),
        ({"cold": Cold}, KnobClash, ["cold", "seed", "every request"]),
        ({"careless": Careless}, BrokenPlugin, ["Careless.strength", "bare field"]),
        ({"crash": Crash}, BrokenPlugin, ["crash", "ValueError: not today"]),
    ],
)
def test_unusable_samplers_are_refused_in_one_line(samplers, error, words):
    with pytest.raises(error) as caught:
        SamplerBank(samplers, vocab=8, candidates=8, top_logprobs=2)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_a_sampler_is_traced_once_for_each_size_until_it_passes():
    traced = []

    class Watched(Adjuster):
        strength: Knob = knob(off=0.0, help="a number")

        def __call__(self, logits, context):
            del context
            traced.append(len(logits))
            return logits[: 8 if len(traced) > 1 else 7]

    with pytest.raises(BrokenPlugin, match=r"returns float32\[7\]"):
        SamplerBank({"watched": Watched}, vocab=8, candidates=8, top_logprobs=2)
    for vocab in (8, 8, 9, 8):
        with contextlib.suppress(BrokenPlugin):  # of nine tokens it returns eight
            SamplerBank({"watched": Watched}, vocab=vocab, candidates=8, top_logprobs=2)
    assert traced == [8, 8, 9]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_k", "5"),
        ("top_k", True),
        ("top_k", 2**31),
        ("top_k", [1]),
        ("top_p", 1.1),
        ("top_p", float("nan")),
        ("min_p", float("-inf")),
        ("first", 1e39),
        ("first", 10**400),
        ("repetition_penalty", 0),
        ("frequency_penalty", -3),
        ("min_tokens", {}),
    ],
)
def test_knob_out_of_bounds_is_refused_by_name(wide: Tryout, name: str, value: object):
    with pytest.raises(InvalidParameter, match=name) as caught:
        wide.bank.check({name: value})
    assert caught.value.field == name


def test_unknown_knob_names_the_nearest(wide: Tryout):
    with pytest.raises(InvalidParameter, match="'topp'; did you mean 'top_p'"):
        wide.bank.check({"topp": 0.5})


def test_null_means_off(wide: Tryout):
    knobs = dict.fromkeys(wide.bank.knobs)
    wide.bank.check(knobs)
    assert_same(wide.bank.row(knobs), wide.bank.row({}))


def test_bounds_themselves_are_accepted(wide: Tryout):
    for name, spec in wide.bank.knobs.items():
        if not spec.by_token:
            for bound in (spec.low, spec.high):
                wide.bank.check({name: bound})
