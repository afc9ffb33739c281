"""Merges of a scored vocabulary: SentencePiece BPE in the terms of plain byte-pair encoding.

Called by the readers of SentencePiece vocabularies. Knows texts and scores, nothing of tokens.

SentencePiece joins, of all neighbours whose union is a piece, those with the best-scored union,
leftmost first. Byte-pair encoding joins the neighbours whose pair ranks first. Ranking every way
to split a piece by the score of the piece makes the two agree, with one care: two ways to make the
same piece can overlap, and the left one must win.
"""

from collections.abc import Mapping

from jaxllama.errors import BadTokenizer

LONGEST = 256  # characters of a piece; the number of its splits grows with the square


def merges_of(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every split of every piece into two pieces, best first."""
    ranked: list[tuple[float, bool, str, int]] = []
    for piece, score in scores.items():
        if len(piece) > LONGEST:
            raise BadTokenizer(
                f"scored piece {piece[:40]!r} has {len(piece)} characters; "
                f"expected at most {LONGEST}"
            )
        for cut in range(1, len(piece)):
            if piece[:cut] in scores and piece[cut:] in scores:
                ranked.append((-score, is_overtaken(piece, cut), piece, cut))
    ranked.sort()
    return [(piece[:cut], piece[cut:]) for _, _, piece, cut in ranked]


def is_overtaken(piece: str, cut: int) -> bool:
    """Whether another split of `piece` can overlap this one from the left.

    In `ab|a|ba` both `ab+a` and `a+ba` make `aba`; the other split starts where this one's left
    part also ends the piece.
    """
    return piece.endswith(piece[:cut]) and not piece.startswith(piece[cut:])
