"""Beams: the likeliest answers to a prompt, found by following several beginnings at a time.

Used by LLM, which says through `Expand` what may follow. Keeps the score in plain Python; knows
token ids and log-probabilities, and must not know the engine.

What ends a search and how answers of different lengths compare is as in Hugging Face's generate: of
all beginnings made one token longer, the `width` likeliest that do not end are followed. One that
ends is kept if it is among the `width` likeliest, by its score, which is its log-probability over
`length ** length_penalty`; its end token counts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from jaxllama.errors import InvalidParameter
from jaxllama.limits import check
from jaxllama.request import GenerationRequest

Tokens = tuple[int, ...]
Likeliest = Sequence[tuple[int, float]]  # token ids and log-probabilities, best first
Expand = Callable[[Sequence[Tokens]], Sequence[Likeliest]]  # what may follow each beginning

EarlyStopping = bool | Literal["never"]


class Beam(NamedTuple):
    """The beginning of an answer, and how likely it is."""

    tokens: Tokens
    logprob: float


class Found(NamedTuple):
    """A whole answer; an end token is its last."""

    tokens: Tokens
    logprob: float
    score: float


@dataclass(frozen=True)
class SearchRules:
    """What is looked for, and when the search is over.

    Once `width` answers are whole it is over at once with early stopping; without, when the best
    beginning would score no better if it ended now; with "never", when it could not at any length.
    """

    width: int
    max_tokens: int
    end_ids: frozenset[int] = frozenset()
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False

    @property
    def candidates(self) -> int:
        """How many continuations of each beginning decide: as many as may end, and `width`."""
        return self.width + len(self.end_ids)

    def score(self, logprob: float, length: int) -> float:
        """What an answer of this length is worth."""
        return logprob / float(length**self.length_penalty)

    def ends(self, beam: Beam) -> bool:
        """Whether an answer is whole by its last token."""
        return beam.tokens[-1] in self.end_ids

    def has_hope(self, best: Beam, found: Sequence[Found]) -> bool:
        """Whether going on with the best beginning may improve what is found."""
        if len(found) < self.width:
            return True
        if self.early_stopping is True:
            return False
        patient = self.early_stopping == "never" and self.length_penalty > 0
        length = self.max_tokens if patient else len(best.tokens)
        return self.score(best.logprob, length) > found[-1].score


def rules_of(
    request: GenerationRequest,
    *,
    width: int,
    length_penalty: float,
    early_stopping: EarlyStopping,
    listed: int,
) -> SearchRules:
    """The checked rules of a search; the engine lists at most so many tokens at a place."""
    check("width", width)
    check("length_penalty", length_penalty)
    if not (isinstance(early_stopping, bool) or early_stopping == "never"):
        raise InvalidParameter(
            f'early_stopping is {early_stopping!r}; expected true, false or "never"',
            "early_stopping",
        )
    ends = frozenset(request.stop_ids)
    rules = SearchRules(width, request.max_tokens, ends, float(length_penalty), early_stopping)
    if rules.candidates > listed:
        raise InvalidParameter(
            f"width is {width} and there are {len(ends)} end tokens; together they may be at most "
            f"{listed} (lower the width or give fewer stop_ids)",
            "width",
        )
    return rules


def search(expand: Expand, rules: SearchRules) -> list[Found]:
    """The `width` best answers, best first."""
    running, found = [Beam((), 0.0)], list[Found]()
    for length in range(1, rules.max_tokens + 1):
        grown = grow(running, expand([beam.tokens for beam in running]))
        is_last = length == rules.max_tokens
        whole = [beam for beam in grown[: rules.width] if is_last or rules.ends(beam)]
        found += [Found(*beam, rules.score(beam.logprob, length)) for beam in whole]
        found = sorted(found, key=lambda each: -each.score)[: rules.width]
        running = [beam for beam in grown if not rules.ends(beam)][: rules.width]
        if not running or not rules.has_hope(running[0], found):
            break
    return found


def grow(running: Sequence[Beam], following: Sequence[Likeliest]) -> list[Beam]:
    """Every beginning with each of its continuations, likeliest first."""
    grown = [
        Beam((*beam.tokens, token), beam.logprob + logprob)
        for beam, likeliest in zip(running, following, strict=True)
        for token, logprob in likeliest
    ]
    return sorted(grown, key=lambda beam: -beam.logprob)
