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

        `vocab` is the number of tokens of the model. `candidates` is the number of likeliest tokens
        that filters get at first. `top_logprobs` is the length of a list of likely tokens. `body`
        names the kernels. `texts` returns the text of every token, for samplers with token sets.
        Without `trial` the samplers are not traced here; `Programs` traces them before it compiles
        programs.
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
        """The token sets of each sampler as masks, by the sampler's name.

        They are constants of the compiled programs.
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

        `knobs` are the values by name.
        """
        for name, value in knobs.items():
            if name not in self.knobs:
                raise unknown_field(name, [*self.knobs, *LIMITS])
            check_knob(name, value, self.knobs[name], self.vocab)

    def switched_on(
        self, knobs: Mapping[str, object], *, is_constrained: bool = False
    ) -> frozenset[str]:
        """Return the names of the samplers that act in a row with these knobs.

        `is_constrained`: the row has a constraint, for which some samplers act without a knob.
        """
        found = {
            self._owners[name]
            for name, value in knobs.items()
            if name in self.knobs and turns_on(value, self.knobs[name])
        }
        return frozenset(found | self._constraining if is_constrained else found)

    def remembers(self, knobs: Mapping[str, object]) -> bool:
        """Say whether a sampler keeps state from token to token in a row with these knobs."""
        return not self.observers.isdisjoint(self.switched_on(knobs))

    def row(self, knobs: Mapping[str, object]) -> Bank:
        """Encode knobs that `check` accepted as one row: a sampler per name, with NumPy arrays."""
        return {
            name: self._off[name]
            if knobs_of(kind).keys().isdisjoint(knobs)
            else begin_row(name, kind, knobs)
            for name, kind in self.samplers.items()
        }

    def empty(self, slots: int) -> Bank:
        """Return a bank of `slots` rows, with every sampler off, as NumPy arrays."""
        return jax.tree.map(lambda leaf: np.repeat(leaf[None], slots, axis=0), self._off)

    def write(self, bank: Bank, slot: Int32[Array, ""], row: Bank) -> Bank:
        """Return the bank with the row of `slot` replaced; traceable by JAX, consumes `bank`.

        `row` has the knobs of one row, as the method `row` returns them.
        """
        return jax.tree.map(lambda leaf, new: leaf.at[slot].set(new), bank, row)
