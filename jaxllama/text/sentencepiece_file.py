"""SentencePiece files: the pieces and settings in a `tokenizer.model` or `spiece.model`.

Called by `from_sentencepiece.py`. Knows the fields of the file and checks all that can be wrong in
them; must not know encoders.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

from jaxllama.errors import BadTokenizer
from jaxllama.text.protobuf import ProtobufMessage, read_message
from jaxllama.text.vocabulary import TokenKind, is_byte

# Field numbers, and the names of the algorithms by number.
PIECES, TRAINER, NORMALIZER, DENORMALIZER = 1, 2, 3, 5
TEXT, SCORE, KIND = 1, 2, 3
MODEL_TYPE, SUFFIX, BYTE_FALLBACK, BEGIN_PIECE, END_PIECE = 3, 24, 35, 46, 47
CHARSMAP, ADD_PREFIX, REMOVE_EXTRA, ESCAPE = 2, 3, 4, 5
UNIGRAM, BPE, WORD, CHAR = 1, 2, 3, 4
ALGORITHMS = {UNIGRAM: "unigram", BPE: "BPE", WORD: "word", CHAR: "character"}
BYTES = 256


@dataclass(frozen=True)
class SentencePieceModel:
    """The contents of one file, checked."""

    texts: Sequence[str]
    scores: Sequence[float]
    kinds: bytes  # a TokenKind per piece
    is_unigram: bool  # else BPE
    falls_back: bool  # unknown characters become bytes
    begin: str
    end: str
    charsmap: bytes  # rules that normalize characters, compiled; b"" for none
    adds_prefix: bool  # a space comes before the text
    removes_extra: bool  # runs of spaces become one, none stay at the ends
    escapes: bool  # spaces become U+2581

    def ids_of(self, *kinds: TokenKind) -> Iterator[tuple[str, int]]:
        """Yield text and id of every piece of one of these kinds, by id."""
        wanted = bytes(kinds)
        pieces = zip(self.texts, self.kinds, strict=True)
        return ((text, token) for token, (text, kind) in enumerate(pieces) if kind in wanted)

    def with_control(self, ids: Collection[int]) -> Self:
        """Return a copy in which text pieces with these ids are control tokens instead."""
        kinds = bytearray(self.kinds)
        for token in ids:
            if token < len(kinds) and kinds[token] in (TokenKind.NORMAL, TokenKind.USER_DEFINED):
                kinds[token] = TokenKind.CONTROL
        return replace(self, kinds=bytes(kinds))


def read_model(raw: bytes, where: str) -> SentencePieceModel:
    """Return the checked contents of a SentencePiece file, whose bytes are `raw`.

    Raise BadTokenizer, naming `where`, if they are damaged or not supported.
    """
    whole = read_message(raw, where)
    trainer, normalizer = whole.message(TRAINER), whole.message(NORMALIZER)
    algorithm = trainer.whole(MODEL_TYPE, UNIGRAM)
    check_supported(whole, trainer, algorithm)
    texts, scores, kinds = read_pieces(whole)
    falls_back = trainer.flag(BYTE_FALLBACK, default=False)
    check_pieces(where, texts, kinds, falls_back=falls_back)
    return SentencePieceModel(
        texts,
        scores,
        kinds,
        is_unigram=algorithm == UNIGRAM,
        falls_back=falls_back,
        begin=trainer.text(BEGIN_PIECE, "<s>"),
        end=trainer.text(END_PIECE, "</s>"),
        charsmap=normalizer.raw(CHARSMAP),
        adds_prefix=normalizer.flag(ADD_PREFIX, default=True),
        removes_extra=normalizer.flag(REMOVE_EXTRA, default=True),
        escapes=normalizer.flag(ESCAPE, default=True),
    )


def check_supported(whole: ProtobufMessage, trainer: ProtobufMessage, algorithm: int) -> None:
    """Raise BadTokenizer if the file needs a feature that is not supported; the error names it.

    `whole` is the protobuf message of the file, `trainer` the trainer message in it, and
    `algorithm` the number of the model type.
    """
    if algorithm not in (UNIGRAM, BPE):
        name = ALGORITHMS.get(algorithm, f"number {algorithm}")
        raise BadTokenizer(
            f"{whole.where}: the algorithm is {name}; supported are unigram and BPE (use the "
            f"model's tokenizer.json)"
        )
    if trainer.flag(SUFFIX, default=False):
        raise BadTokenizer(
            f"{whole.where}: treat_whitespace_as_suffix is set, which is not supported (use the "
            f"model's tokenizer.json)"
        )
    if whole.message(DENORMALIZER).raw(CHARSMAP):
        raise BadTokenizer(
            f"{whole.where}: decoded text is denormalized by rules, which is not supported (use "
            f"the model's tokenizer.json)"
        )


def read_pieces(whole: ProtobufMessage) -> tuple[list[str], list[float], bytes]:
    """Return the texts, scores and kinds of all pieces in the message `whole`, each by id."""
    texts: list[str] = []
    scores: list[float] = []
    kinds = bytearray()
    for token, part in enumerate(whole.parts(PIECES)):
        piece = read_message(part, f"{whole.where}, piece {token}")
        text, score = piece.text(TEXT, ""), piece.real(SCORE)
        kind = piece.whole(KIND, TokenKind.NORMAL)
        if not text or not math.isfinite(score) or kind not in set(TokenKind):
            raise BadTokenizer(
                f"{piece.where} is {text[:40]!r} with score {score} and kind {kind}; expected a "
                f"text, a finite score and a kind from 1 to {len(TokenKind)}"
            )
        texts.append(text)
        scores.append(score)
        kinds.append(kind)
    return texts, scores, bytes(kinds)


def check_pieces(where: str, texts: Sequence[str], kinds: bytes, *, falls_back: bool) -> None:
    """Raise BadTokenizer if a text occurs twice, or a piece is missing that every file needs.

    `texts` and `kinds` have the text and the kind of every piece, by id; errors name `where`.
    Needed are one piece for unknown characters and, with `falls_back`, one for each byte.
    """
    first: dict[str, int] = {}
    for token, text in enumerate(texts):
        if first.setdefault(text, token) != token:
            raise BadTokenizer(
                f"{where}: pieces {first[text]} and {token} are both {text[:40]!r}; expected "
                f"different texts"
            )
    if kinds.count(TokenKind.UNKNOWN) != 1:
        raise BadTokenizer(
            f"{where}: {kinds.count(TokenKind.UNKNOWN)} pieces of {len(texts)} stand for unknown "
            f"characters; expected one"
        )
    found = {text for text, kind in zip(texts, kinds, strict=True) if kind == TokenKind.BYTE}
    if any(not is_byte(text) or text[3:5].upper() != text[3:5] for text in found):
        raise BadTokenizer(f"{where}: a piece for a byte has another text than '<0xNN>'")
    if len(found) != (BYTES if falls_back else 0):
        raise BadTokenizer(
            f"{where}: {len(found)} pieces stand for bytes; expected "
            f"{BYTES if falls_back else 'none'}, as byte_fallback is {str(falls_back).lower()}"
        )
