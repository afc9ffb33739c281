"""A compiled bank of samplers over a small vocabulary, for hand-made rows.

Used by tests of samplers, this project's and those of plugin authors: give it logits and knobs,
check the chosen token and the tokens that could have been drawn. Knows no sampler.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxllama.engine.choosing.bank import SamplerBank
from jaxllama.engine.choosing.chooser import ChosenTokens, TokenChooser
from jaxllama.engine.choosing.rows import Rows
from jaxllama.sampling import NO_TOKEN, Sampler

STOP_IDS = 4  # how many stop ids a row can hold
QUICKLY = {"xla_backend_optimization_level": 0}  # compile fast: the code runs for milliseconds
KnobValues = Mapping[str, object]


class Tryout:
    """A bank of `samplers` for up to `slots` rows, with which samplers can be tried out.

    For each row, all tokens that can be drawn are listed.
    """

    def __init__(
        self,
        samplers: Mapping[str, type[Sampler]],
        *,
        vocab: int,
        slots: int,
        candidates: int | None = None,
        context: int = 16,
        texts: Sequence[str] = (),
    ) -> None:
        self.bank = SamplerBank(
            samplers,
            vocab=vocab,
            candidates=candidates or vocab,
            top_logprobs=vocab,
            texts=lambda: texts,
        )
        self.slots, self.context = slots, context
        self.traces = 0
        self._step = jax.jit(self._traced, compiler_options=QUICKLY)

    def choose(
        self, logits: Any, knobs: Sequence[KnobValues] | KnobValues = (), **fields: Any
    ) -> ChosenTokens:
        """Draw a token for each row of `logits`; return the tokens and their log-probabilities.

        `knobs` are the samplers' parameters: one mapping for all rows, or a list with one for each
        row. `fields` set fields of `Rows`, such as `temperature`: one value for all rows, or a list
        with one for each row.
        """
        return self.step(self.fill(knobs), logits, **fields)[1]

    def step(self, filled: Any, logits: Any, **fields: Any) -> tuple[Any, ChosenTokens]:
        """Draw a token for each row of `logits`; return the new sampler arrays and the tokens.

        `filled` has the arrays of the samplers' knobs (parameters) and state, from `fill` or from
        an earlier step. `fields` set fields of `Rows`, such as `temperature`: one value for all
        rows, or a list with one for each row.
        """
        logits = np.atleast_2d(np.asarray(logits, np.float32))
        count = len(logits)
        padded = np.zeros((self.slots, logits.shape[1]), np.float32)
        padded[:count] = logits
        filled, choice = jax.device_get(self._step(filled, padded, self.rows(count, **fields)))
        return filled, jax.tree.map(lambda leaf: leaf[:count], choice)

    def fill(self, knobs: Sequence[KnobValues] | KnobValues) -> Any:
        """Check the samplers' knobs (parameters); return arrays of knobs and sampler state.

        `knobs` is one mapping for all rows, or a list with one for each row. The arrays have one
        row for each slot.
        """
        each = [knobs] * self.slots if isinstance(knobs, Mapping) else list(knobs)
        each += [{}] * (self.slots - len(each))
        for one in each:
            self.bank.check(one)
        rows = [self.bank.row(one) for one in each]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *rows) if rows[0] else {}

    def rows(self, count: int, **fields: Any) -> Rows:
        """Return the state of all slots: `count` active rows, then idle ones.

        `fields` set fields of `Rows`, such as `temperature`: one value for all active rows, or a
        list with one for each.
        """
        slots = self.slots
        blank: dict[str, np.ndarray] = {
            "tokens": np.zeros((slots, self.context), np.int32),
            "length": np.ones(slots, np.int32),
            "prompt": np.ones(slots, np.int32),
            "stop_ids": np.full((slots, STOP_IDS), NO_TOKEN, np.int32),
            "temperature": np.ones(slots, np.float32),
            "temperature_last": np.zeros(slots, np.bool_),
            "seed": np.stack([np.zeros(slots), np.arange(slots)], axis=-1).astype(np.uint32),
            "active": np.arange(slots) < count,
            "top_logprobs": np.full(slots, self.bank.top_logprobs, np.int32),
        }
        for name, value in fields.items():
            leaf = blank[name]
            if leaf.ndim == 1:
                leaf[:count] = value
            else:  # one list for all rows, or one for each
                nested = value if len(value) and np.ndim(value[0]) else [value] * count
                for row, items in enumerate(nested):
                    leaf[row, : len(items)] = items
        leaves: dict[str, Any] = blank
        return Rows(**leaves)

    def _traced(self, filled: Any, logits: Any, rows: Rows) -> tuple[Any, ChosenTokens]:
        self.traces += 1
        return TokenChooser(self.bank).choose(filled, logits, rows)


def survivors(choice: ChosenTokens, row: int = 0) -> list[int]:
    """Return the ids of the tokens that could have been drawn for row `row`, likeliest first.

    `choice` is the result of a draw.
    """
    return choice.sampled_ids[row][choice.sampled_logprobs[row] > -np.inf].tolist()
