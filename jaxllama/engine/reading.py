"""Readings: the tokens that one decode call drew, copied to the host.

Made by the engine when it waits for a call. A call is kept with the generations that owned its rows
when it was sent, so tokens of a row whose generation has ended are dropped.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxllama.engine.choosing.chooser import ChosenTokens
from jaxllama.engine.generation import Generation
from jaxllama.engine.steps import StepOutput
from jaxllama.request import TokenLogprobs

Drawn = tuple[Generation, int | None, TokenLogprobs | None]  # no token: NaN logits


class Sent(NamedTuple):
    """A decode call that was sent to the device and whose result is not read yet."""

    output: StepOutput
    steps: int  # the most steps it may take
    places: int  # tokens that a row may draw in one step
    owners: list[Generation | None]  # the generation of each row, None: ignore the row
    is_masked: bool  # some rows may be left out, so its steps may be shorter than others


class Reading:
    """The result of a decode call; the constructor waits for the call."""

    def __init__(self, sent: Sent) -> None:
        self._sent = sent
        self._tokens = np.asarray(sent.output.token)
        self._finite = np.asarray(sent.output.choice.finite)
        self._drafted = None if sent.output.drafted is None else np.asarray(sent.output.drafted)
        self._choice: Any = sent.output.choice
        if any(owner and owner.request.top_logprobs is not None for owner in sent.owners):
            self._choice = ChosenTokens(*map(np.asarray, self._choice))  # type: ignore[arg-type]

    @property
    def is_masked(self) -> bool:
        """Say whether the call was sent with masks, which may leave out rows."""
        return self._sent.is_masked

    @property
    def steps_taken(self) -> int:
        """Count the steps in which some row drew a token."""
        return int((self._tokens[:: self._sent.places] >= 0).any(axis=1).sum())

    def drafts(self) -> Iterator[tuple[Generation, int, int]]:
        """Yield (generation, drafted tokens, accepted tokens) for every row that drafted."""
        if self._drafted is None:
            return
        counts = self._drafted.sum(axis=0).tolist()
        later = np.arange(len(self._tokens)) % self._sent.places > 0
        accepted = (self._tokens[later] >= 0).sum(axis=0).tolist()
        for row, owner in enumerate(self._sent.owners):
            if owner is not None and not owner.is_over and counts[row]:
                yield owner, counts[row], accepted[row]

    def drawn(self, *, guided: bool | None = None) -> Iterator[Drawn]:
        """Yield (generation, token, log-probabilities) step by step, in each step by row.

        The token is None if the row's logits held NaN or infinity. Rows whose generation has ended
        are left out; the consumer may end generations in between. `guided` selects only rows with
        (True) or without (False) a constraint.
        """
        for step in range(self._sent.steps * self._sent.places):
            for row, owner in enumerate(self._sent.owners):
                if owner is None or owner.is_over or self._tokens[step, row] < 0:
                    continue
                if guided is not None and guided is not (owner.guide is not None):
                    continue
                token = int(self._tokens[step, row]) if self._finite[step, row] else None
                yield owner, token, self._logprobs(step, row, owner)

    def _logprobs(self, step: int, row: int, owner: Generation) -> TokenLogprobs | None:
        """Return the requested log-probabilities of one row's token; None if not requested.

        `step` and `row` are the token's indexes in the call's output; `owner` is the row's
        generation.
        """
        count, choice = owner.request.top_logprobs, self._choice
        if count is None:
            return None

        def listed(ids: np.ndarray, values: np.ndarray) -> tuple[tuple[int, float], ...]:
            pairs = zip(
                ids[step, row, :count].tolist(), values[step, row, :count].tolist(), strict=True
            )
            return tuple(pair for pair in pairs if pair[1] > -math.inf)  # the rest is padding

        return TokenLogprobs(
            logprob=float(choice.logprob[step, row]),
            sampled=float(choice.sampled[step, row]),
            top=listed(choice.top_ids, choice.top_logprobs),
            top_sampled=listed(choice.sampled_ids, choice.sampled_logprobs),
        )
