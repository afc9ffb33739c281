"""Readings: what the rows of one decode call drew, brought to the host.

Made by the engine when it waits for a call. A call is kept with the generations its rows belonged
to when it was sent, so what it says of a row that has changed hands is told to nobody.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxllama.engine.choosing.bank import Choice
from jaxllama.engine.generation import Generation
from jaxllama.engine.steps import StepOutput
from jaxllama.request import TokenLogprobs

Drawn = tuple[Generation, int | None, TokenLogprobs | None]  # None: the numbers were no numbers


class Sent(NamedTuple):
    """A decode call that is on its way."""

    output: StepOutput
    steps: int  # that it was asked for
    owners: list[Generation | None]  # of each row


class Reading:
    """A decode call that has come back; making it waits for that."""

    def __init__(self, sent: Sent) -> None:
        self._sent = sent
        self._tokens = np.asarray(sent.output.token)
        self._finite = np.asarray(sent.output.choice.finite)
        self._choice: Any = sent.output.choice
        if any(owner and owner.request.top_logprobs is not None for owner in sent.owners):
            self._choice = Choice(*map(np.asarray, self._choice))  # type: ignore[arg-type]

    @property
    def steps_taken(self) -> int:
        """Steps in which some row drew."""
        return int((self._tokens >= 0).any(axis=1).sum())

    def drawn(self, *, guided: bool | None = None) -> Iterator[Drawn]:
        """What every row drew that is not over by then; or only those with or without a guide."""
        for step in range(self._sent.steps):
            for row, owner in enumerate(self._sent.owners):
                if owner is None or owner.is_over or self._tokens[step, row] < 0:
                    continue
                if guided is not None and guided is not (owner.guide is not None):
                    continue
                token = int(self._tokens[step, row]) if self._finite[step, row] else None
                yield owner, token, self._logprobs(step, row, owner)

    def _logprobs(self, step: int, row: int, owner: Generation) -> TokenLogprobs | None:
        """What one row's token was worth, if its request asked."""
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
