"""Scores as merge ranks."""

import heapq
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE

from jaxllama.errors import BadTokenizer
from jaxllama.text.scored import LONGEST, is_overtaken, merges_of

LETTERS = ("a", "b")
WORDS = ["".join(word) for size in (2, 3, 4, 5) for word in itertools.product("ab", repeat=size)]


def join_by_score(text: str, scores: dict[str, float]) -> list[str]:
    """SentencePiece's rule, word for word: best-scored union first, leftmost among equals."""
    symbols: list[str] = list(text)
    while True:
        unions = [
            (-scores[left + right], place)
            for place, (left, right) in enumerate(itertools.pairwise(symbols))
            if left + right in scores
        ]
        if not unions:
            return symbols
        _, place = heapq.nsmallest(1, unions)[0]
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]


def join_by_rank(text: str, merges: list[tuple[str, str]], scores: dict[str, float]) -> list[str]:
    return Tokenizer(BPE({piece: i for i, piece in enumerate(scores)}, merges)).encode(text).tokens


def reachable(words: list[str]) -> dict[str, float]:
    """Pieces with falling scores, each made of two earlier ones, as training leaves them."""
    scores = {letter: -1000.0 - place for place, letter in enumerate(LETTERS)}
    for word in words:
        if any(word[:cut] in scores and word[cut:] in scores for cut in range(1, len(word))):
            scores[word] = -float(len(scores))
    return scores


@settings(deadline=None)
@given(st.permutations(WORDS), st.lists(st.text("ab", min_size=1, max_size=40), max_size=20))
def test_ranks_join_what_scores_join(words, texts):
    scores = reachable(words[:20])
    merges = merges_of(scores)
    for text in texts:
        assert join_by_rank(text, merges, scores) == join_by_score(text, scores)


def test_of_two_overlapping_ways_to_make_a_piece_the_left_one_wins():
    scores = {"a": -9.0, "b": -8.0, "ab": -1.0, "ba": -2.0, "aba": -3.0}
    assert is_overtaken("aba", 1)
    assert not is_overtaken("aba", 2)
    merges = merges_of(scores)
    assert merges.index(("ab", "a")) < merges.index(("a", "ba"))


def test_the_comparison_sees_a_wrong_order():
    scores = {"a": -9.0, "b": -8.0, "ab": -1.0, "ba": -2.0}
    assert join_by_score("aba", scores) == ["ab", "a"]
    assert join_by_rank("aba", merges_of(scores)[::-1], scores) == ["a", "ba"]


def test_a_piece_too_long_to_split_is_refused():
    with pytest.raises(BadTokenizer, match=f"at most {LONGEST}"):
        merges_of({"x" * (LONGEST + 1): 0.0})
