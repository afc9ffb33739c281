"""The choosing kernels: every body against NumPy, at its edges, and row by row."""

import inspect

import jax
import numpy as np
import pytest

from jaxllama.kernels.accelerator import choice as accelerator_choice
from jaxllama.kernels.body import Best
from jaxllama.kernels.cpu import CPU, library
from jaxllama.kernels.cpu import choice as cpu_choice
from jaxllama.kernels.plain import PLAIN

BELOW_ONE = np.float32(1 - 2**-24)
CPU_BODIES = ("portable", "avx2", "avx512")
VOCABS = [1, 7, 64, 257, 1000, 4099, 9000]  # around the kernels' groups, spans and blocks

built = pytest.mark.skipif(
    not library.available(), reason=library.why_not() or "the kernels are there"
)


@pytest.fixture(
    params=["xla", "accelerator", *(pytest.param(name, marks=built) for name in CPU_BODIES)]
)
def ops(request):
    """Every way this processor can choose, in turn."""
    if request.param in ("xla", "accelerator"):
        yield PLAIN.choosing if request.param == "xla" else accelerator_choice
        return
    before = library.isa()
    if not library.force_isa(request.param):
        pytest.skip(f"this processor has no {request.param}")
    yield CPU.choosing
    library.force_isa(before)


@pytest.fixture(params=CPU_BODIES)
def body(request):
    """Every body of the library, in turn."""
    before = library.isa()
    if not library.available() or not library.force_isa(request.param):
        pytest.skip(f"there is no {request.param} here")
    yield request.param
    library.force_isa(before)


@pytest.fixture
def threads():
    """Sets the number of threads, for this test only."""
    before = library.threads()
    yield library.set_threads
    library.set_threads(before)


def run(way, *given, count=()):
    """One call, compiled: rows of numbers in the types the kernels take."""
    wanted = np.ones(len(given[0]), bool)
    if isinstance(given[-1], np.ndarray) and given[-1].dtype == bool:
        *given, wanted = given
    named = [np.asarray(x, x.dtype if x.dtype == np.int32 else np.float32) for x in given]
    static = (len(named) + 1,) if count else ()
    return jax.device_get(jax.jit(way, static_argnums=static)(*named, wanted, *count))


def draw(ops, logits, heat, chance):
    rows = len(logits)
    heat, chance = (np.broadcast_to(np.float32(x), rows) for x in (heat, chance))
    return run(ops.draw, logits, logits.max(-1), heat, chance)


def best_of(ops, logits, heat, count):
    return run(ops.best_candidates, logits, logits.max(-1), heat, count=(count,))


def random_logits(rng: np.random.Generator, rows: int, vocab: int) -> np.ndarray:
    """Some are banned; at least one of a row is not."""
    logits = (rng.normal(size=(rows, vocab)) * 3).astype(np.float32)
    logits[rng.random(logits.shape) < 0.2] = -np.inf
    logits[np.arange(rows), rng.integers(0, vocab, rows)] = 1.0
    return logits


def inverse_cdf(logits: np.ndarray, heat: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """The first id whose cumulative share exceeds the chance, in float64."""
    weights = np.exp((logits - logits.max(-1, keepdims=True)).astype(np.float64) / heat[:, None])
    reached = np.cumsum(weights, -1) / weights.sum(-1, keepdims=True)
    return (reached > chance[:, None]).argmax(-1)


def log_sum_exp(x: np.ndarray) -> np.ndarray:
    return np.log(np.exp(x.astype(np.float64)).sum(-1))


@pytest.mark.parametrize("vocab", VOCABS)
def test_draw_agrees_with_the_inverse_distribution(ops, vocab):
    rng = np.random.default_rng(vocab)
    logits, heat = random_logits(rng, 500, vocab), rng.uniform(0.3, 3, 500)
    chance = rng.random(500).astype(np.float32)
    token, log_total = draw(ops, logits, heat, chance)
    assert np.isfinite(logits[np.arange(500), token]).all()
    # Rounding may move a border between two tokens, but hardly ever past the chance.
    assert (token == inverse_cdf(logits, heat, chance)).mean() > 0.99
    scaled = (logits - logits.max(-1, keepdims=True)) / heat[:, None]
    np.testing.assert_allclose(log_total, log_sum_exp(scaled), atol=1e-5)


@pytest.mark.parametrize("place", [0, 1, 255, 256, 511, 512, 598, 599])
def test_draw_finds_the_only_token_whatever_the_chance(ops, place):
    logits = np.full((4, 600), -np.inf)
    logits[:, place] = -3.0
    token, _ = draw(ops, logits, 1.0, [0.0, 0.3, 0.99, BELOW_ONE])
    assert token.tolist() == [place] * 4


def test_draw_reaches_the_first_and_the_last_token_with_weight(ops):
    logits = np.zeros((2, 1000))
    logits[:, :3] = logits[:, 990:] = -np.inf
    token, _ = draw(ops, logits, 1.0, [0.0, BELOW_ONE])
    assert token.tolist() == [3, 989]


def test_no_temperature_overflows(ops):
    logits = np.random.default_rng(0).normal(size=(3, 300)) * 1e37
    token, log_total = draw(ops, logits, [1e-30, 1.0, 100.0], 0.5)
    assert token.tolist() == logits.argmax(-1).tolist()
    assert np.allclose(log_total, 0)


@pytest.mark.parametrize("vocab", VOCABS)
def test_likeliest_is_the_lowest_id_among_equals(ops, vocab):
    logits = np.random.default_rng(vocab).integers(-5, 3, (50, vocab)).astype(np.float32)
    found = run(ops.survey, logits)
    np.testing.assert_array_equal(found.token, logits.argmax(-1))
    np.testing.assert_array_equal(found.best, logits.max(-1))
    assert found.sound.all()


def test_rows_without_a_number_have_a_token(ops):
    logits = np.stack([np.full(300, np.nan), np.full(300, -np.inf)])
    found = run(ops.survey, logits)
    assert found.token.tolist() == [0, 0]
    assert found.sound.tolist() == [False, True]
    assert found.best[1] == -np.inf


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf])
def test_unsound_value_is_found_at_every_place(ops, value):
    logits = np.random.default_rng(0).normal(size=(601, 600)).astype(np.float32)
    logits[:, 5] = -np.inf
    logits[np.arange(600), np.arange(600)] = value
    assert run(ops.survey, logits).sound.tolist() == [False] * 600 + [True]


@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 1.0])
def test_candidates_come_best_first_and_lower_ids_first_among_equals(ops, vocab, share):
    count = max(1, int(share * vocab))
    logits = np.random.default_rng(0).integers(1, 20, (20, vocab)).astype(np.float32)
    heat = np.full(20, 2.0, np.float32)
    ids, relative, total = best_of(ops, logits, heat, count)
    expected = np.argsort(-logits, -1, kind="stable")[:, :count]
    np.testing.assert_array_equal(ids, expected)
    best = logits.max(-1, keepdims=True)
    np.testing.assert_allclose(relative, (np.take_along_axis(logits, expected, -1) - best) / 2)
    np.testing.assert_allclose(total, log_sum_exp((logits - best) / 2), rtol=1e-5)


@pytest.mark.parametrize("vocab", VOCABS)
def test_candidates_of_a_sorted_vocabulary_are_found(ops, vocab):
    """All of them in a few groups, and then in the last ones."""
    rising = np.sort(np.random.default_rng(0).normal(size=vocab)).astype(np.float32)
    logits = np.stack([rising, rising[::-1]])
    count = min(40, vocab)
    ids, _, _ = best_of(ops, logits, np.ones(2), count)
    np.testing.assert_array_equal(ids, np.argsort(-logits, -1, kind="stable")[:, :count])


def test_banned_tokens_come_last(ops):
    """Where a constraint leaves a handful, the rest is filled up in order."""
    logits = np.full((1, 5000), -np.inf)
    logits[0, [4999, 17, 4000]] = [1.0, -50.0, 0.5]
    ids, relative, _ = best_of(ops, logits, np.ones(1), 100)
    assert ids[0, :5].tolist() == [4999, 4000, 17, 0, 1]
    assert sorted(set(ids[0].tolist())) == sorted(ids[0].tolist())
    assert (relative[0, 3:] == -np.inf).all()


def test_equals_are_zero_and_minus_zero(ops):
    logits = np.array([[-0.0, 0.0, -1.0, 0.0]])
    assert run(ops.survey, logits).token.tolist() == [0]


@pytest.mark.parametrize("vocab", VOCABS)
def test_logprob_is_that_of_the_softmax(ops, vocab):
    rng = np.random.default_rng(vocab)
    logits = random_logits(rng, 30, vocab) * 3
    logits[:, : vocab // 2] -= 300  # whole blocks without weight
    token = rng.integers(0, vocab, 30).astype(np.int32)
    found = run(ops.logprob, logits, token)
    best = logits.max(-1)
    expected = logits[np.arange(30), token] - best - log_sum_exp(logits - best[:, None])
    np.testing.assert_allclose(found, expected, atol=1e-4)


def tokens_of(rng: np.random.Generator, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of tokens below 48 and some that are none of the vocabulary; and how many count."""
    count = np.array([0, 1, width // 2, width, width + 7, -3], np.int32)
    return rng.integers(-2, 50, (6, width), np.int32), count


@pytest.mark.parametrize("width", [1, 40, 700])
def test_held_tokens_are_found_where_each_is_new(ops, width):
    rng = np.random.default_rng(width)
    (tokens, count), logits = tokens_of(rng, width), rng.normal(size=(6, 48)).astype(np.float32)
    found = jax.jit(ops.take_held)(logits, tokens, count)
    for row, known in enumerate(np.clip(count, 0, width)):
        places: dict[int, int] = {}
        first = [
            places.setdefault(int(token), place) if place < known and 0 <= token < 48 else width
            for place, token in enumerate(tokens[row])
        ]
        assert found.first[row].tolist() == first
        held = [logits[row, tokens[row, each]] if each < width else 0.0 for each in first]
        assert found.logits[row].tolist() == held
    assert found.sound.all()


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf])
def test_unsound_value_among_held_tokens_is_found(ops, value):
    logits = np.zeros((3, 9), np.float32)
    logits[0, 4] = logits[1, 5] = value
    logits[2, 4] = -np.inf
    tokens = np.array([[1, 4, 5]] * 3, np.int32)
    found = jax.jit(ops.take_held)(logits, tokens, np.array([2, 2, 3], np.int32))
    assert found.sound.tolist() == [False, True, True]


@pytest.mark.parametrize("width", [1, 40, 700])
def test_held_logits_are_put_back_from_their_first_places_alone(ops, width):
    rng = np.random.default_rng(width)
    (tokens, count), logits = tokens_of(rng, width), rng.normal(size=(6, 48)).astype(np.float32)
    first = np.asarray(jax.jit(ops.take_held)(logits, tokens, count).first)
    new = rng.normal(size=(6, width)).astype(np.float32)
    expected = logits.copy()
    for row, place in np.argwhere(first == np.arange(width)):
        expected[row, tokens[row, place]] = new[row, place]
    moved = jax.jit(ops.put_held)(logits, tokens, first, new)
    np.testing.assert_array_equal(moved, expected)


def test_logits_set_aside_are_those_of_the_wanted_rows(ops):
    logits = np.random.default_rng(0).normal(size=(3, 9001)).astype(np.float32)
    wanted = np.array([True, False, True])
    same, copy = jax.jit(ops.set_aside)(logits, wanted)
    np.testing.assert_array_equal(same, logits)
    np.testing.assert_array_equal(np.asarray(copy)[wanted], logits[wanted])


def candidates(rng: np.random.Generator, rows: int, width: int) -> Best:
    """Sorted, the last ones of some rows not among the survivors."""
    logits = -np.sort(rng.exponential(2.0, (rows, width)), -1).astype(np.float32)
    logits[np.arange(width) >= rng.integers(1, width + 1, (rows, 1))] = -np.inf
    ids = rng.permuted(np.tile(np.arange(width, dtype=np.int32), (rows, 1)), axis=1)
    total = log_sum_exp(logits).astype(np.float32)
    return Best(ids, logits, np.exp(logits - total[:, None]), total)


@pytest.mark.parametrize("width", [1, 5, 256, 700])
def test_survivors_close_ranks_and_are_weighed_anew(ops, width):
    rng = np.random.default_rng(width)
    best, keep = candidates(rng, 40, width), rng.random((40, width)) < 0.4
    keep[0] = False  # nobody: everybody
    left, last = jax.device_get(jax.jit(ops.close_ranks)(keep, np.ones(40, bool), best))
    for row in range(40):
        alive = best.logits[row] > -np.inf
        kept = keep[row] & alive if (keep[row] & alive).any() else alive
        count = kept.sum()
        assert left.ids[row, :count].tolist() == best.ids[row, kept].tolist()
        assert last[row] == best.ids[row, kept][-1]
        assert left.logits[row, :count].tolist() == best.logits[row, kept].tolist()
        assert (left.logits[row, count:] == -np.inf).all()
        total = log_sum_exp(best.logits[row, kept])
        assert left.log_total[row] == pytest.approx(total, abs=1e-5)
        np.testing.assert_allclose(
            left.p[row, :count], np.exp(best.logits[row, kept] - total), rtol=1e-5
        )
        assert (left.p[row, count:] == 0).all()


def test_candidates_of_rows_that_are_not_on_stay(ops):
    rng = np.random.default_rng(0)
    best, on = candidates(rng, 20, 30), rng.random(20) < 0.5
    left, _ = jax.jit(ops.close_ranks)(rng.random((20, 30)) < 0.4, on, best)
    for new, old in zip(left, best, strict=True):
        np.testing.assert_array_equal(np.asarray(new)[~on], old[~on])


def everything(rows: int, wanted: np.ndarray, seed: int = 3) -> list[np.ndarray]:
    """What the kernels say of some rows, all results as one list."""
    rng = np.random.default_rng(seed)
    logits = random_logits(rng, rows, 9001)
    best, heat = logits.max(-1), rng.uniform(0.3, 2, rows)
    token = rng.integers(0, 9001, rows).astype(np.int32)
    return [
        *run(cpu_choice.survey, logits, wanted),
        *run(cpu_choice.best_candidates, logits, best, heat, wanted, count=(50,)),
        *run(cpu_choice.draw, logits, best, heat, rng.random(rows), wanted),
        run(cpu_choice.logprob, logits, token, wanted),
    ]


@pytest.mark.usefixtures("body")
def test_threads_change_no_bit(threads):
    answers = []
    for count in (1, 2, 3):
        threads(count)
        answers.append(everything(5, np.ones(5, bool)))
    for other in answers[1:]:
        for one, same in zip(answers[0], other, strict=True):
            np.testing.assert_array_equal(one, same)


@pytest.mark.usefixtures("body")
def test_rows_that_are_not_wanted_change_nothing():
    wanted = np.array([False, True, False, True, False])
    everybody, some = everything(5, np.ones(5, bool)), everything(5, wanted)
    for one, other in zip(everybody, some, strict=True):
        np.testing.assert_array_equal(one[wanted], other[wanted])
        assert (other[~wanted] == (other.dtype == bool)).all(), "zeros, and sound"


@pytest.mark.usefixtures("body")
def test_rows_of_nonsense_come_to_an_end():
    """Whatever is in a row: a token of the vocabulary, and no neighbour is disturbed."""
    logits = np.random.default_rng(0).normal(size=(5, 9001)).astype(np.float32)
    sound = logits.copy()
    logits[0], logits[1, ::3], logits[2], logits[3, 7] = np.nan, -np.nan, np.inf, np.inf
    best, ones = logits.max(-1), np.ones(5, np.float32)
    ids, _, _ = run(cpu_choice.best_candidates, logits, best, ones, count=(200,))
    token, _ = run(cpu_choice.draw, logits, best, ones, ones / 2)
    assert ((ids >= 0) & (ids < 9001)).all()
    assert ((token >= 0) & (token < 9001)).all()
    expected = best_of(PLAIN.choosing, sound, ones, 200)[0][4]
    np.testing.assert_array_equal(ids[4], expected)


@built
@pytest.mark.parametrize("count", [0, 11])
def test_more_candidates_than_tokens_are_refused(count):
    with pytest.raises(ValueError, match=f"{count} candidates of 10 .* expected 1 to 10"):
        best_of(CPU.choosing, np.zeros((2, 10)), np.ones(2), count)


@built
@pytest.mark.parametrize(
    ("logits", "wanted", "complaint"),
    [
        (np.zeros(10, np.float32), np.ones(1, bool), r"logits are float32 \[10\]"),
        (np.zeros((2, 0), np.float32), np.ones(2, bool), r"logits are float32 \[2, 0\]"),
        (np.zeros((2, 10), np.int32), np.ones(2, bool), r"logits are int32 \[2, 10\]"),
        (np.zeros((2, 10), np.float32), np.ones(3, bool), r"active is bool \[3\]; bool \[2\]"),
        (np.zeros((2, 10), np.float32), np.ones(2, np.int8), r"active is int8 \[2\]; bool"),
    ],
)
def test_what_does_not_fit_is_refused_while_tracing(logits, wanted, complaint):
    unchecked = inspect.unwrap(cpu_choice.survey)
    with pytest.raises(ValueError, match=complaint):
        jax.eval_shape(unchecked, logits, wanted)


@built
def test_a_token_outside_the_vocabulary_is_refused():
    with pytest.raises(jax.errors.JaxRuntimeError, match="token 10 lies outside the vocabulary"):
        run(cpu_choice.logprob, np.zeros((1, 10)), np.array([10], np.int32))
