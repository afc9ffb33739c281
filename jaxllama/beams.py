"""Beam search: the likeliest answers to a prompt, found by extending several prefixes at a time.

Used by LLM, which provides the next tokens through `Expand`, and by the server. Plain Python; knows
token ids and log-probabilities, and must not know the engine.

The end of a search and the score are as in Hugging Face's generate: of all prefixes extended by one
token, the search continues the `width` likeliest that do not end. An answer that ends is kept if it
is among the `width` likeliest. Its score is its log-probability over `length ** length_penalty`;
the end token counts in the length.

With a beam length the search is ExLlama's: it looks so many tokens ahead, settles the first token
of the likeliest prefix, and drops the prefixes that begin otherwise. It finds one answer.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from jaxllama.errors import InvalidParameter
from jaxllama.limits import check
from jaxllama.request import GenerationRequest

TokenIds = tuple[int, ...]
Likeliest = Sequence[tuple[int, float]]  # token ids and log-probabilities, best first
Expand = Callable[[Sequence[TokenIds]], Sequence[Likeliest]]  # next tokens of each prefix

EarlyStopping = bool | Literal["never"]


class Beam(NamedTuple):
    """A prefix of an answer, and its log-probability."""

    tokens: TokenIds
    logprob: float


class BeamAnswer(NamedTuple):
    """A whole answer; its last token is an end token, unless it reached `max_tokens`."""

    tokens: TokenIds
    logprob: float
    score: float


@dataclass(frozen=True)
class SearchRules:
    """The settings of a search, and the rule that ends it.

    Once `width` answers are whole, the search ends: with early stopping, at once; without, when the
    best prefix would score no better if it ended now; with "never", when it could score no better
    at any length.
    """

    width: int
    max_tokens: int
    end_ids: frozenset[int] = frozenset()
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False
    beam_length: int | None = None  # tokens to look ahead; None: to the end of the answers

    @property
    def candidates(self) -> int:
        """Return the number of likeliest next tokens that the search needs for each prefix.

        It is the number of prefixes extended at a time, plus the number of end tokens.
        """
        return self.width + len(self.end_ids)

    def score(self, logprob: float, length: int) -> float:
        """Return the score of an answer: its log-probability over `length ** length_penalty`."""
        return logprob / float(length**self.length_penalty)

    def ends(self, beam: Beam) -> bool:
        """Say whether the last token of a prefix is an end token."""
        return beam.tokens[-1] in self.end_ids

    def can_improve(self, best: Beam, found: Sequence[BeamAnswer]) -> bool:
        """Say whether to continue the search, because it may still improve the answers.

        `best` is the likeliest prefix; `found` are the best answers so far, at most `width`, best
        first.
        """
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
    beam_length: int | None = None,
) -> SearchRules:
    """Check the settings of a beam search and return them; raise InvalidParameter for wrong ones.

    `request` sets `max_tokens` and the end tokens (`stop_ids`). `width`: number of prefixes that
    are extended at a time. `length_penalty`: an answer's log-probability is divided by its length
    to this power. `early_stopping`: True, False or "never". `listed`: number of likeliest next
    tokens that the engine can return for a prefix. `beam_length`: tokens to look ahead as ExLlama
    does; None: the usual search.
    """
    check("width", width)
    check("beam_length", beam_length)
    check("length_penalty", length_penalty)
    if not (isinstance(early_stopping, bool) or early_stopping == "never"):
        raise InvalidParameter(
            f'early_stopping is {early_stopping!r}; expected true, false or "never"',
            "early_stopping",
        )
    ends = frozenset(request.stop_ids)
    rules = SearchRules(
        width, request.max_tokens, ends, float(length_penalty), early_stopping, beam_length
    )
    if rules.candidates > listed:
        raise InvalidParameter(
            f"width is {width} and there are {len(ends)} end tokens; together they may be at most "
            f"{listed} (lower the width or give fewer stop_ids)",
            "width",
        )
    return rules


def search(expand: Expand, rules: SearchRules) -> list[BeamAnswer]:
    """Search for the `width` best answers; return them best first.

    `rules` has the settings of the search. `expand` is called with a list of prefixes, and returns
    the likeliest next tokens of each.
    """
    steps = searching(rules)
    prefixes = next(steps)
    while True:
        try:
            prefixes = steps.send(expand(prefixes))
        except StopIteration as end:
            found: list[BeamAnswer] = end.value
            return found


def searching(
    rules: SearchRules,
) -> Generator[list[TokenIds], Sequence[Likeliest], list[BeamAnswer]]:
    """Search in steps: yield a list of prefixes, receive the likeliest next tokens of each prefix.

    `rules` has the settings of the search. The generator returns the answers, best first. For
    callers that get next tokens asynchronously.
    """
    if rules.beam_length is not None:
        return (yield from settling(rules, rules.beam_length))
    running, found = [Beam((), 0.0)], list[BeamAnswer]()
    for length in range(1, rules.max_tokens + 1):
        following = yield [beam.tokens for beam in running]
        extended = extend(running, following)
        is_last = length == rules.max_tokens
        whole = [beam for beam in extended[: rules.width] if is_last or rules.ends(beam)]
        found += [BeamAnswer(*beam, rules.score(beam.logprob, length)) for beam in whole]
        found = sorted(found, key=lambda each: -each.score)[: rules.width]
        running = [beam for beam in extended if not rules.ends(beam)][: rules.width]
        if not running or not rules.can_improve(running[0], found):
            break
    return found


def settling(
    rules: SearchRules, beam_length: int
) -> Generator[list[TokenIds], Sequence[Likeliest], list[BeamAnswer]]:
    """Search in steps as ExLlama does: yield prefixes, receive next tokens, return one answer.

    `rules` has the settings of the search. The generator looks `beam_length` tokens ahead, then
    fixes the first token of the best prefix, and continues from there. A prefix that ends is kept
    unchanged, and competes with longer ones.
    """
    settled: TokenIds = ()
    running = [Beam((), 0.0)]
    while len(settled) < rules.max_tokens and not (settled and settled[-1] in rules.end_ids):
        growing = [beam for beam in running if not (beam.tokens and rules.ends(beam))]
        ahead = min(beam_length, rules.max_tokens - len(settled))
        if growing and len(growing[0].tokens) < ahead:
            following = yield [(*settled, *beam.tokens) for beam in growing]
            whole = [beam for beam in running if beam not in growing]
            longer = extend(growing, following)
            running = sorted([*whole, *longer], key=lambda beam: -beam.logprob)[: rules.width]
            continue
        first = running[0].tokens[0]
        settled = (*settled, first)
        running = [
            Beam(beam.tokens[1:], beam.logprob) for beam in running if beam.tokens[0] == first
        ]
    logprob = running[0].logprob
    return [BeamAnswer(settled, logprob, rules.score(logprob, len(settled)))]


def extend(running: Sequence[Beam], following: Sequence[Likeliest]) -> list[Beam]:
    """Extend every prefix by each of its next tokens; return the results likeliest first.

    `following` has the likeliest next tokens of each prefix in `running`, at the same index.
    """
    extended = [
        Beam((*beam.tokens, token), beam.logprob + logprob)
        for beam, likeliest in zip(running, following, strict=True)
        for token, logprob in likeliest
    ]
    return sorted(extended, key=lambda beam: -beam.logprob)


def first_of_each_stem(prompts: Sequence[tuple[int, ...]]) -> list[int]:
    """Return all indexes into `prompts`: first one index per group, then all others.

    Prompts that differ only in their last token form a group.
    """
    firsts: dict[tuple[int, ...], int] = {}
    others = []
    for index, prompt in enumerate(prompts):
        if firsts.setdefault(prompt[:-1], index) != index:
            others.append(index)
    return [*firsts.values(), *others]
