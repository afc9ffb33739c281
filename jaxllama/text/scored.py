"""Scored vocabularies: expresses SentencePiece BPE as plain byte-pair encoding.

Called by the readers of vocabularies whose merges are no list, but follow from a score or rank of
each piece. Knows texts, scores and ids; must not know files.

SentencePiece joins, of all neighbours whose union is a piece, the pair with the best-scored union,
leftmost first. Byte-pair encoding joins the neighbours whose pair ranks first. If every split of a
piece is ranked by the score of the piece, both agree, with one exception: two splits of the same
piece can overlap in a text, and then the left one must win.
"""

from collections.abc import Mapping

import tokenizers
from tokenizers.models import BPE

from jaxllama.errors import BadTokenizer
from jaxllama.text.tokenizer import library_errors

LONGEST = 256  # characters of a piece; the number of its splits grows with the square


def scored_encoder(
    pieces: Mapping[str, int],
    scores: Mapping[str, float],
    others: Mapping[str, int],
    unknown: str | None,
    *,
    falls_back: bool = True,
) -> tokenizers.Tokenizer:
    """Build an encoder that reads a text as one word and merges `pieces` by their scores.

    `pieces` and `others` map texts to ids; `scores` maps the texts of pieces to scores. `others`
    are tokens that no merge makes: bytes, and the token with the text `unknown` (None: there is
    none). A character without a piece becomes byte tokens if `falls_back`, else `unknown`.
    """
    merges = merges_of(scores)
    with library_errors("the pieces do not build a vocabulary"):
        return tokenizers.Tokenizer(
            BPE(
                {**pieces, **others},
                merges,
                unk_token=unknown,
                fuse_unk=True,
                byte_fallback=falls_back,
            )
        )


def merges_of(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return the merges of all pairs of pieces whose union is a piece, the best score first.

    `scores` has the score of every piece. Raise BadTokenizer for a piece longer than LONGEST.
    """
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
    """Say whether the split of `piece` at `cut` must rank after other splits of the same piece.

    `cut` is the length of the left part. Example: with the pieces `a`, `ab` and `ba`, both `ab+a`
    and `a+ba` make `aba`. In the tokens `ab|a|ba` both could be merged, and they overlap;
    SentencePiece merges the left one, `ab+a`. So the split `a+ba` must rank after `ab+a`.
    """
    return piece.endswith(piece[:cut]) and not piece.startswith(piece[cut:])
