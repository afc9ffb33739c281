"""Conformance checks of samplers: every rule of the sampler socket, tested on example rows.

`check_sampler(MinP)` is called by the tests of this project and of plugin authors; `jaxllama check`
runs the checks one by one. A check raises AssertionError that names the broken rule. Knows no
sampler.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from jaxllama.engine.choosing.adjusting import adjust
from jaxllama.engine.choosing.knobs import switches_on
from jaxllama.kernels.plain import PLAIN
from jaxllama.mistakes import line_of
from jaxllama.sampling import Adjuster, Filter, Sampler, Shaper
from jaxllama.testing.cases import VOCAB, Case, Setting, at, row_of, same, settings_of, stacked
from jaxllama.testing.proof import QUICKLY, Broken, Proof, call, chosen_with, plain_choice

HOST_PRIMITIVES = ("callback", "debug_print", "infeed", "outfeed")
STEPS = 3  # calls of observe() in a row, to test the state that it carries
ROUNDS = 40  # rounds of draws; each round draws once per case
USUAL = 5  # smallest expected count of a cell in a chi-square test
UNLIKELY = 4.75  # standard deviations that a correct sampler exceeds once in a million times


def check_declared(proof: Proof) -> None:
    """Check that the sampler has only valid knobs, each with help, and state fields.

    At least one knob must turn it on.
    """
    for name, spec in proof.specs.items():
        if not spec.help:
            where, hint = line_of(proof.kind), f'write knob(..., help="what {name} does")'
            why = f"knob {name!r} has no help text"
            raise Broken(proof.kind, "declared", why, where=where, hint=hint)


def check_compiled(proof: Proof) -> None:
    """Check that the sampler can be traced and returns its base class's shape and type."""
    _ = proof.bank


def check_host(proof: Proof) -> None:
    """Check that the sampler never calls back to the host."""
    row, case = proof.begin({}), proof.cases[0]
    # New function objects: JAX 0.10 mistakes two dataclasses with equal fields for each other when
    # it looks up earlier traces.
    for traced in (
        jax.make_jaxpr(functools.partial(call))(row, case.logits, case.row),
        jax.make_jaxpr(lambda row: row.observe(chosen_with(0.5)))(row),
    ):
        for primitive in primitives(traced.jaxpr):
            if any(word in primitive for word in HOST_PRIMITIVES):
                raise Broken(proof.kind, "host", f"it uses {primitive}, which leaves the program")


def check_numbers(proof: Proof) -> None:
    """Check that the sampler is not recompiled if only the values of its knobs change."""
    _ = proof.started
    proof.step(proof.leaves_off, proof.rows)
    proof.step(proof.batch_step[0], proof.rows)
    if proof.traces != 1:
        raise Broken(proof.kind, "numbers", f"{proof.traces} traces for the same shapes")


def check_finite(proof: Proof) -> None:
    """Check that the sampler makes no NaN and no +inf, and its state stays finite."""
    for case, moved in moved_logits(proof):
        if np.isnan(moved).any() or np.isposinf(moved).any():
            raise Broken(proof.kind, "finite", f"NaN or +inf with {case.setting}")
    for row in proof.started:
        after = row
        for share in (0.5, 1.0, 1e-6):
            after = after.observe(chosen_with(share))
        for field in dataclasses.fields(proof.kind):  # type: ignore[arg-type]
            leaves = jax.tree.leaves(getattr(after, field.name))
            if not all(np.isfinite(leaf).all() for leaf in leaves):
                raise Broken(proof.kind, "finite", f"observe() makes {field.name} not finite")


def check_nonempty(proof: Proof) -> None:
    """Check that the sampler leaves at least one token to choose."""
    for case, moved in moved_logits(proof):
        if np.isneginf(moved).all():
            raise Broken(proof.kind, "nonempty", f"every token is banned with {case.setting}")
    if not proof.batch_step[1].finite.all():
        worst = proof.cases[int(np.argmin(proof.batch_step[1].finite))].setting
        raise Broken(proof.kind, "nonempty", f"nothing is left to choose from with {worst}")


def check_jit(proof: Proof) -> None:
    """Check that compiling the sampler over a batch changes results by rounding only."""
    together = np.asarray(proof.mapped(stacked(proof.started), proof.logits, proof.rows))
    for case, one, compiled in zip(proof.cases, proof.eager, together, strict=True):
        if not close(one, compiled):
            raise Broken(proof.kind, "jit", f"compiled and not compiled differ with {case.setting}")


def check_scan(proof: Proof) -> None:
    """Check that observe() of the sampler makes the same state in a compiled loop."""

    def step(sampler: Sampler, share: Any) -> tuple[Sampler, None]:
        return sampler.observe(chosen_with(share)), None

    shares = jnp.linspace(0.2, 0.9, STEPS)
    loop = jax.jit(jax.vmap(lambda sampler: jax.lax.scan(step, sampler, shares)[0]))
    begun = [jax.tree.map(jnp.asarray, proof.started[i]) for i in proof.active_cases[::4]]
    if not begun:
        return
    together = jax.device_get(loop(jax.tree.map(jnp.asarray, stacked(begun))))
    for place, start in enumerate(begun):
        after = functools.reduce(lambda sampler, share: step(sampler, share)[0], shares, start)
        pairs = zip(jax.tree.leaves(after), jax.tree.leaves(at(together, place)), strict=True)
        if not all(close(np.asarray(one), other) for one, other in pairs):
            raise Broken(proof.kind, "scan", "observe() differs in a compiled loop")


def check_held(proof: Proof) -> None:
    """Check that the sampler needs only the tokens in the row, if it has `held_only`."""
    if not (issubclass(proof.kind, Adjuster) and proof.kind.held_only):
        return
    bank, name = proof.bank, proof.kind.__name__
    moved = jax.jit(
        lambda filled, logits, rows: (
            adjust(PLAIN.choosing, bank.adjusters, {name: {}}, filled, rows, logits).logits
        ),
        compiler_options=QUICKLY,
    )(proof.leaves, proof.logits, proof.rows)
    for i in proof.active_cases:
        if proof.cases[i].row.temperature > 0 and not close(proof.eager[i], np.asarray(moved[i])):
            why = f"given only the tokens of its row, it differs with {proof.cases[i].setting}"
            raise Broken(proof.kind, "held", why)


def check_greedy(proof: Proof) -> None:
    """Check that the sampler keeps the likeliest token on top, if it has `keeps_greedy`."""
    if not proof.kind.keeps_greedy:
        return
    for i in proof.active_cases:
        case, answer = proof.cases[i], proof.eager[i]
        if not issubclass(proof.kind, Filter):
            kept = answer[case.logits.argmax()] == answer.max()
        else:
            kept = answer[0] or not answer.any()
        if not kept:
            raise Broken(proof.kind, "greedy", f"the likeliest token loses with {case.setting}")


def check_beams(proof: Proof) -> None:
    """Check that the sampler has no state and ignores chance, if it has `suits_beams`.

    It must also ignore where the prompt ends.
    """
    kind = proof.kind
    if not kind.suits_beams:
        return
    if kind.observe is not Sampler.observe:
        raise Broken(kind, "beams", "it has state, which the prefixes of a search do not carry")
    for i in proof.active_cases:
        case = proof.cases[i]
        other = case.row._replace(prompt=case.row.length, chances={kind.__name__: jnp.float32(0.5)})
        if not close(proof.eager[i], np.asarray(call(proof.started[i], case.logits, other))):
            why = f"another chance or another end of the prompt changes it with {case.setting}"
            raise Broken(kind, "beams", why)


def check_off(proof: Proof) -> None:
    """Check that the sampler changes nothing in rows whose knobs are off."""
    if not same(proof.step(proof.leaves_off, proof.rows)[1], plain_choice()):
        raise Broken(proof.kind, "off", "it changes rows in which its knobs are off")


def check_alone(proof: Proof) -> None:
    """Check that the result of the sampler for a row does not depend on other rows."""
    for place, case in enumerate(proof.cases):
        only = proof.rows._replace(active=np.arange(len(proof.cases)) == place)
        if not same(at(proof.step(proof.leaves, only), place), at(proof.batch_step, place)):
            raise Broken(proof.kind, "alone", f"neighbours change the row with {case.setting}")


def check_history(proof: Proof) -> None:
    """Check that tokens stored past a row's `length` change nothing for the sampler."""
    rows: Any = proof.rows
    past = np.arange(rows.tokens.shape[1]) >= rows.length[:, None]
    tokens = np.where(past, (rows.tokens + 1) % VOCAB, rows.tokens)
    after = proof.step(proof.leaves, rows._replace(tokens=tokens))
    for index, case in enumerate(proof.cases):
        if not same(at(after, index), at(proof.batch_step, index)):
            why = f"tokens past the row's length change it with {case.setting}"
            raise Broken(proof.kind, "history", why)


def check_distribution(proof: Proof) -> None:
    """Check that tokens are drawn as often as the sampler says (chi-square)."""
    settings = list(settings_of(proof.specs))
    for setting in (settings[1], settings[-1]):
        expected, drawn = tally(proof, setting)
        if drawn[expected == 0].any():
            token = int(np.argmax(np.where(expected == 0, drawn, 0)))
            why = f"token {token} is drawn although the sampler drops it, with {setting}"
            raise Broken(proof.kind, "distribution", why)
        if chi_square(expected, drawn) > UNLIKELY:
            why = f"tokens are not drawn as often as the sampler says, with {setting}"
            raise Broken(proof.kind, "distribution", why)


CHECKS: Mapping[str, Callable[[Proof], None]] = MappingProxyType(
    {
        "declared": check_declared,
        "compiled": check_compiled,
        "host": check_host,
        "numbers": check_numbers,
        "finite": check_finite,
        "nonempty": check_nonempty,
        "jit": check_jit,
        "scan": check_scan,
        "held": check_held,
        "greedy": check_greedy,
        "beams": check_beams,
        "off": check_off,
        "alone": check_alone,
        "history": check_history,
        "distribution": check_distribution,
    }
)
NEEDED = ("declared", "compiled", "host", "numbers")  # the later checks depend on these


def check_sampler(kind: type[Sampler]) -> None:
    """Raise AssertionError unless a sampler keeps every rule of its base class: see CHECKS."""
    proof = Proof(kind)
    for name in CHECKS:
        run_check(name, proof)


def run_check(name: str, proof: Proof) -> None:
    """Raise Broken unless the sampler under test in `proof` keeps the rule `name`."""
    try:
        CHECKS[name](proof)
    except Broken:
        raise
    except Exception as error:  # the sampler may raise anything
        raise Broken.because(proof.kind, name, error) from error


def moved_logits(proof: Proof) -> Iterator[tuple[Case, np.ndarray]]:
    """Yield each test row in which the sampler is on, with the logits that the sampler returns.

    `proof` has the sampler under test and the rows. Yields nothing for a filter, which returns a
    mask.
    """
    if not issubclass(proof.kind, Filter):
        yield from ((proof.cases[i], proof.eager[i]) for i in proof.active_cases)


def tally(proof: Proof, setting: Setting) -> tuple[np.ndarray, np.ndarray]:
    """Return how often each token should be drawn with this setting, and how often it was.

    Both arrays have one number per token of the vocabulary. `setting` has the knobs of the sampler
    under test, which `proof` has.
    """
    rng = np.random.default_rng(1)
    count = len(proof.cases)
    logits = (rng.normal(size=VOCAB) * 2).astype(np.float32)
    plain: Any = row_of(rng)
    row = plain._replace(temperature=np.float32(1.0), temperature_last=np.bool_(False))
    many, rows = stacked([logits] * count), stacked([row] * count)
    begun, filled = (
        stacked([proof.begin(setting)] * count),
        stacked([proof.bank.row(setting)] * count),
    )
    is_on = switches_on(proof.kind, setting)
    expected, drawn = np.zeros(VOCAB), np.zeros(VOCAB, int)
    for _ in range(ROUNDS):
        rows = rows._replace(seed=rng.integers(0, 2**32, (count, 2), np.uint32))
        said = np.asarray(
            proof.mapped(begun, many - logits.max() * takes_relative_logits(proof.kind), rows)
        )
        shares = [declared(proof.kind, one, logits) for one in said] if is_on else [softmax(logits)]
        expected += np.sum(shares, axis=0) * (1 if is_on else count)
        drawn += np.bincount(proof.step(filled, rows, many)[1].token, minlength=VOCAB)
    return expected, drawn


def takes_relative_logits(kind: type[Sampler]) -> bool:
    """Say whether the sampler is a Shaper: it gets logits relative to the likeliest token's."""
    return issubclass(kind, Shaper)


def declared(kind: type[Sampler], said: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Return the probability of each token that the sampler's result for one row implies.

    `said` is what the sampler `kind` returned for `logits`: new logits, or for a filter a mask of
    the tokens, likeliest first.
    """
    if not issubclass(kind, Filter):
        return softmax(said if (said > -np.inf).any() else logits)
    order = np.argsort(-logits, kind="stable")
    keep = said.copy()
    keep[0] |= kind.keeps_greedy
    kept = np.full(VOCAB, -np.inf)
    kept[order] = np.where(keep | (not keep.any()), logits[order], -np.inf)
    return softmax(kept)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the softmax of logits."""
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def chi_square(expected: np.ndarray, drawn: np.ndarray) -> float:
    """Return how far two lists of counts differ by a chi-square test, in standard deviations.

    Both arrays have a count for each token. The result is near 0 if `drawn` fits `expected`, and
    large if not.
    """
    often = expected >= USUAL
    cells = [*zip(expected[often], drawn[often], strict=True)]
    if expected[~often].sum() > 0:
        cells.append((expected[~often].sum(), drawn[~often].sum()))
    free = len(cells) - 1
    if free < 1:
        return 0.0
    total = sum((seen - wanted) ** 2 / wanted for wanted, seen in cells)
    # Wilson and Hilferty: the cube root of chi-square is nearly normal.
    spread = 2 / (9 * free)
    return float(((total / free) ** (1 / 3) - (1 - spread)) / spread**0.5)


def close(one: np.ndarray, other: np.ndarray) -> bool:
    """Say whether two arrays, `one` and `other`, are equal up to rounding."""
    return np.allclose(one, other, rtol=1e-5, atol=1e-5, equal_nan=True)


def primitives(jaxpr: Jaxpr) -> Iterator[str]:
    """Yield the names of all primitives of a traced program and of its inner programs."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: isinstance(v, ClosedJaxpr | Jaxpr)
        ):
            if isinstance(value, ClosedJaxpr):
                yield from primitives(value.jaxpr)
            elif isinstance(value, Jaxpr):
                yield from primitives(value)
