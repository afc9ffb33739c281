"""A sampler under test, and the values that several checks of it share.

Used only by the checks in `samplers.py`. Knows only the rules without which no check can run.
"""

import functools
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxllama.engine.choosing.bank import SamplerBank
from jaxllama.engine.choosing.chooser import ChosenTokens, TokenChooser
from jaxllama.engine.choosing.knobs import catalogue, switches_on
from jaxllama.engine.choosing.rows import Rows, context
from jaxllama.engine.choosing.token_sets import informed, learn
from jaxllama.errors import BrokenPlugin, JaxLlamaError, PluginError
from jaxllama.mistakes import explain, line_of
from jaxllama.sampling import Adjuster, Candidates, Chosen, Filter, KnobSpec, Sampler, Shaper
from jaxllama.testing.cases import LISTED, VOCAB, Case, cases_of, stacked

FEW = 8  # candidates that a filter sees before the bank widens the list
TEXTS = tuple(map(chr, [*range(16), *range(48, 48 + VOCAB - 16)]))  # all kinds of characters
QUICKLY = {"xla_backend_optimization_level": 0}  # compile fast: the code runs for milliseconds


HINTS = {
    "host": "leave out jax.debug and callbacks; try the sampler out with jaxllama.testing.tryout",
    "numbers": "give every field the same shape and type, whatever the values of the knobs",
    "finite": "keep logarithms and divisions from zero: jnp.maximum(x, 1e-30)",
    "nonempty": "always keep a token: compare with the likeliest one's logit or probability",
    "jit": "let the arguments alone decide: no global variables, no clock, no random numbers",
    "scan": "let self and chosen alone decide what observe() returns",
    "held": "move each token by its own logit and places only, or leave held_only out",
    "greedy": "keep the likeliest token the likeliest, or declare keeps_greedy = False",
    "beams": "look at neither context.chance nor context.prompt, and keep no state, or leave "
    "suits_beams out",
    "off": "return what was given where the knobs are off, and do not change knobs in start()",
    "alone": "look only at self, at the logits or candidates, and at context",
    "history": "only the first context.length tokens count: use context.newest(count)",
    "distribution": "decide by best.p, best.entropy and best.log_total, which are of the whole "
    "row; the list of candidates may be cut",
}


class Broken(AssertionError):
    """A sampler breaks a rule; has the place in the author's code, the reason and a hint."""

    def __init__(
        self, kind: type[Sampler], rule: str, why: str, *, where: str = "", hint: str = ""
    ) -> None:
        self.rule, self.why = rule, why
        self.where = where or line_of(kind, "observe" if rule == "scan" else "__call__")
        self.hint = hint or HINTS.get(rule, "")
        words = f"{kind.__module__}.{kind.__qualname__} breaks rule {rule!r}: {why}"
        super().__init__(f"{self.where}: {words}" + (f"; {self.hint}" if self.hint else ""))

    @classmethod
    def because(cls, kind: type[Sampler], rule: str, error: Exception) -> Self:
        """Build the failure of the check named `rule` from an error that the sampler's code raised.

        The place of the error is looked for in the code of `kind`, the sampler's class.
        """
        if not isinstance(error, BrokenPlugin):
            error = (
                BrokenPlugin(str(error))
                if isinstance(error, JaxLlamaError)
                else explain("it fails", error, kind.__module__)
            )
        return cls(kind, rule, error.message, where=error.where, hint=error.hint)


class Proof:
    """One sampler under test; values that several checks need are computed at first use."""

    def __init__(self, kind: type[Sampler]) -> None:
        self.kind = kind
        self.traces = 0
        self._step = jax.jit(self._choose, compiler_options=QUICKLY)
        self.mapped = jax.jit(jax.vmap(functools.partial(call)), compiler_options=QUICKLY)

    @functools.cached_property
    def specs(self) -> dict[str, KnobSpec]:
        """The knobs of the sampler under test.

        Raises Broken with the rule `declared` if they are invalid.
        """
        try:
            return catalogue({self.kind.__name__: self.kind})
        except PluginError as error:
            raise Broken.because(self.kind, "declared", error) from error

    @functools.cached_property
    def bank(self) -> SamplerBank:
        """A bank with the sampler under test alone.

        Raises Broken with the rule `compiled` if it cannot be compiled.
        """
        try:
            return bank_of(self.kind)
        except PluginError as error:
            raise Broken.because(self.kind, "compiled", error) from error

    @functools.cached_property
    def cases(self) -> list[Case]:
        """The test rows: several kinds of logits under several settings of the sampler's knobs."""
        return list(cases_of(self.specs))

    @functools.cached_property
    def rows(self) -> Rows:
        """The request state (`Rows`) of all test rows, stacked."""
        return stacked([case.row for case in self.cases])

    @functools.cached_property
    def logits(self) -> np.ndarray:
        """The logits of all test rows, stacked."""
        return stacked([case.logits for case in self.cases])

    @functools.cached_property
    def started(self) -> list[Sampler]:
        """The sampler under test at the start of each test row.

        Raises Broken with the rule `numbers` if it cannot be started.
        """
        return [self.begin(case.setting) for case in self.cases]

    @functools.cached_property
    def eager(self) -> list[np.ndarray]:
        """The result of the sampler under test for each test row, computed without compiling."""
        return [
            np.asarray(call(row, case.logits, case.row))
            for row, case in zip(self.started, self.cases, strict=True)
        ]

    @functools.cached_property
    def active_cases(self) -> list[int]:
        """The indices of the test rows with knobs that switch the sampler under test on."""
        return [i for i, case in enumerate(self.cases) if switches_on(self.kind, case.setting)]

    @functools.cached_property
    def leaves(self) -> Any:
        """The knob and state arrays of all test rows, stacked."""
        return stacked([self.bank.row(case.setting) for case in self.cases])

    @functools.cached_property
    def leaves_off(self) -> Any:
        """Stacked knob and state arrays with all knobs off, for as many rows as test rows."""
        return stacked([self.bank.row({})] * len(self.cases))

    @functools.cached_property
    def batch_step(self) -> tuple[Any, ChosenTokens]:
        """The new knob and state arrays, and the draws, after one step of all test rows at once."""
        return self.step(self.leaves, self.rows)

    def begin(self, setting: Mapping[str, object]) -> Sampler:
        """Return the sampler under test at the start of a row with these knobs.

        Raises Broken if it fails.
        """
        known = learn(self.kind.__name__, self.kind, TEXTS, VOCAB)
        try:
            self.bank.check(setting)
            return informed(next(iter(self.bank.row(setting).values())), known)
        except Exception as error:  # start() is the author's code
            raise Broken.because(self.kind, "numbers", error) from error

    def step(self, filled: Any, rows: Rows, logits: Any = None) -> tuple[Any, ChosenTokens]:
        """Run one compiled step for all test rows; return the new sampler arrays and the draws.

        `filled` holds the samplers' knob and state arrays, `rows` the state of the requests;
        `logits` None: those of the test rows.
        """
        logits = self.logits if logits is None else logits
        return jax.device_get(self._step(filled, logits, rows))

    def _choose(self, filled: Any, logits: Any, rows: Rows) -> tuple[Any, ChosenTokens]:
        self.traces += 1
        return TokenChooser(self.bank).choose(filled, logits, rows)


def call(sampler: Sampler, logits: Any, row: Rows) -> Any:
    """Apply a sampler to one row and return its result: logits, or for a filter a mask.

    A filter gets all tokens of the vocabulary, likeliest first, and its mask has the same order.
    `logits` are those of the row; `row` is the state of the request.
    """
    sampler, logits, row = jax.tree.map(jnp.asarray, (sampler, logits, row))
    about = context(row, type(sampler).__name__)
    if isinstance(sampler, Adjuster | Shaper):
        return sampler(logits, about)
    assert isinstance(sampler, Filter)
    best, ids = jax.lax.top_k(logits, VOCAB)
    best = best - best[0]
    total = jax.nn.logsumexp(best)
    p = jnp.exp(best - total)
    entropy, size = jnp.sum(jax.scipy.special.entr(p)), jnp.sum(best > -jnp.inf)
    return sampler(Candidates(ids, best, p, total, entropy, size), about)


def chosen_with(share: Any) -> Chosen:
    """Return a drawn token (`Chosen`) whose probability is `share`, by the model and as sampled."""
    share = jnp.float32(share)
    return Chosen(jnp.int32(1), jnp.log(share), share, share)


def bank_of(kind: type[Sampler] | None) -> SamplerBank:
    """Return a sampler bank with this sampler alone; None: without samplers."""
    samplers = {} if kind is None else {kind.__name__: kind}
    return SamplerBank(
        samplers, vocab=VOCAB, candidates=FEW, top_logprobs=LISTED, texts=lambda: TEXTS
    )


@functools.cache
def plain_choice() -> ChosenTokens:
    """Return the tokens drawn for the test rows when no sampler is installed."""
    cases = list(cases_of({}))
    logits, rows = stacked([c.logits for c in cases]), stacked([c.row for c in cases])
    return jax.device_get(
        jax.jit(TokenChooser(bank_of(None)).choose, compiler_options=QUICKLY)({}, logits, rows)[1]
    )
