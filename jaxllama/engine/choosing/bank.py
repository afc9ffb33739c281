"""The sampler bank: the catalogue of the installed samplers, on the host.

Built by `llm.py` from the sampler plugins. Validates and encodes the knobs of requests, and says
which samplers they switch on; `chooser.py` applies the samplers in the decode program. Knob values
are leaves [S] and the list of samplers is structure, so a new value never recompiles.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TypeAlias

import jax
import numpy as np

from jaxllama.engine.choosing.knobs import begin_row, catalogue, check_knob, turns_on
from jaxllama.engine.choosing.token_sets import Sets, informed, learn
from jaxllama.engine.choosing.trial import try_sampler
from jaxllama.errors import BrokenPlugin
from jaxllama.limits import LIMITS, unknown_field
from jaxllama.mistakes import SUBCLASS, line_of
from jaxllama.sampling import Adjuster, Filter, Sampler, Shaper, knobs_of, token_sets_of
from jaxllama.shapes import Array, Int32

Bank: TypeAlias = dict[str, Sampler]  # one instance per sampler, leaves [S]


class SamplerBank:
    """The installed samplers, in order: checks and encodes their knobs."""

    def __init__(  # noqa: PLR0913 - the sizes of the choice, and its texts
        self,
        samplers: Mapping[str, type[Sampler]],
        *,
        vocab: int,
        candidates: int,
        top_logprobs: int,
        body: str = "xla",
        texts: Callable[[], Sequence[str]] = tuple,
        trial: bool = True,
    ) -> None:
        """Order the samplers; raise BrokenPlugin or KnobClash for samplers that cannot be used.

        `samplers` has the classes by name. `vocab` is the number of tokens of the model,
        `candidates` the number of likeliest tokens that filters get at first, `top_logprobs` the
        number of likeliest tokens listed for a row that requests log-probabilities, `body` the name
        of the set of kernels. `texts` returns the text of every token, for samplers that select
        tokens by their text. Without `trial` the samplers are not traced here, but later, by a call
        of `try_samplers`.
        """
        self.knobs = catalogue(samplers)
        self.vocab = vocab
        self.candidates = min(candidates, vocab)
        self.top_logprobs = top_logprobs
        self.body = body  # name of the kernels that the chooser uses
        ordered = sorted(samplers.items(), key=lambda item: (item[1].order, item[0]))
        self.adjusters = {name: kind for name, kind in ordered if issubclass(kind, Adjuster)}
        self.filters = {name: kind for name, kind in ordered if issubclass(kind, Filter)}
        self.shapers = {name: kind for name, kind in ordered if issubclass(kind, Shaper)}
        self.samplers: dict[str, type[Sampler]] = {
            **self.adjusters,
            **self.filters,
            **self.shapers,
        }
        for name in samplers:
            if name not in self.samplers:
                raise BrokenPlugin(
                    f"sampler {name!r} is no Adjuster, Filter or Shaper",
                    where=line_of(samplers[name]),
                    hint=SUBCLASS,
                )
        kinds = self.samplers.items()
        self.observers = {name for name, kind in kinds if kind.observe is not Sampler.observe}
        self.common = frozenset(name for name, kind in kinds if kind.common)
        self._constraining = {name for name, kind in self.adjusters.items() if kind.constrains}
        self._owners = {knob: name for name, kind in kinds for knob in knobs_of(kind)}
        self._texts = texts
        self._is_tried = False
        self._off = {name: begin_row(name, kind, {}) for name, kind in kinds}
        if trial:
            self.try_samplers()

    @cached_property
    def sets(self) -> dict[str, Sets]:
        """Return a mask of the vocabulary for each token set, by sampler name, then field name.

        A token set has the tokens whose text passes a test; a sampler declares it in a field of its
        class. The masks are constants of the compiled programs.
        """
        kinds, texts = self.samplers.items(), self._texts() if self.has_sets else ()
        return {name: learn(name, kind, texts, self.vocab) for name, kind in kinds}

    @property
    def has_sets(self) -> bool:
        """Say whether some sampler declares a set of tokens, chosen by their texts."""
        return any(map(token_sets_of, self.samplers.values()))

    def try_samplers(self) -> None:
        """Trace every sampler alone, once; raise BrokenPlugin for one that JAX cannot compile."""
        if self._is_tried:
            return
        for name, row in self._off.items():
            known = informed(row, self.sets[name])
            try_sampler(name, known, vocab=self.vocab, candidates=self.candidates)
        self._is_tried = True

    def check(self, knobs: Mapping[str, object]) -> None:
        """Raise InvalidParameter for an unknown parameter of samplers, or for a wrong value.

        `knobs` has the values of a request's sampler parameters by name.
        """
        for name, value in knobs.items():
            if name not in self.knobs:
                raise unknown_field(name, [*self.knobs, *LIMITS])
            check_knob(name, value, self.knobs[name], self.vocab)

    def switched_on(
        self, knobs: Mapping[str, object], *, is_constrained: bool = False
    ) -> frozenset[str]:
        """Return the names of the samplers that act in a row with these knobs.

        `knobs` has the values of a request's sampler parameters by name. `is_constrained`: the
        request constrains its output, for example to a JSON schema, for which some samplers act
        without a knob.
        """
        found = {
            self._owners[name]
            for name, value in knobs.items()
            if name in self.knobs and turns_on(value, self.knobs[name])
        }
        return frozenset(found | self._constraining if is_constrained else found)

    def remembers(self, knobs: Mapping[str, object]) -> bool:
        """Say whether a sampler that `knobs` turn on keeps state from token to token.

        `knobs` has the values of a request's sampler parameters by name.
        """
        return not self.observers.isdisjoint(self.switched_on(knobs))

    def row(self, knobs: Mapping[str, object]) -> Bank:
        """Return the knobs of one row, encoded: every sampler by its name, with NumPy arrays.

        `knobs` has the values of a request's sampler parameters by name. Call `check` before.
        """
        return {
            name: self._off[name]
            if knobs_of(kind).keys().isdisjoint(knobs)
            else begin_row(name, kind, knobs)
            for name, kind in self.samplers.items()
        }

    def empty(self, slots: int) -> Bank:
        """Return encoded knobs of `slots` rows with every sampler off.

        Knobs are samplers' parameters. The result has every sampler by its name, with NumPy arrays.
        """
        return jax.tree.map(lambda leaf: np.repeat(leaf[None], slots, axis=0), self._off)

    def write(self, bank: Bank, slot: Int32[Array, ""], row: Bank) -> Bank:
        """Return `bank` with the row of one slot replaced by `row`; traceable by JAX.

        Both hold every sampler by its name: `bank` with the encoded knobs of all rows, `row` with
        those of one row, as the method `row` returns them.
        """
        return jax.tree.map(lambda leaf, new: leaf.at[slot].set(new), bank, row)
