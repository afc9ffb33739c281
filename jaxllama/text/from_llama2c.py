"""Builds a tokenizer from llama2.c's `tokenizer.bin`: scored pieces, with spaces as they are.

Called by the reader of llama2.c models. The file has the length of the longest piece, then score,
length and bytes of each piece, little-endian; it ends with the last piece. Tokens 0 to 2 are the
unknown token, begin and end; then come the 256 bytes.
"""

import math
import struct
from pathlib import Path

from jaxllama.errors import BadTokenizer
from jaxllama.formats import ModelText
from jaxllama.text.files import read_vocabulary
from jaxllama.text.normalize import SentencePieceNormalizer
from jaxllama.text.scored import scored_encoder
from jaxllama.text.specials import Special, Specials
from jaxllama.text.tokenizer import Tokenizer, TokenizerRules
from jaxllama.text.vocabulary import Spelling, TokenKind, Vocabulary

LONGEST = struct.Struct("<I")
PIECE = struct.Struct("<fi")
MAX_PIECE = 1 << 12  # bytes
UNKNOWN, BEGIN, END = range(3)
NAMES = ("<unk>", "<s>", "</s>")  # the file writes them between line breaks
FIRST_BYTE, BYTES = 3, 256
FIRST_PIECE = FIRST_BYTE + BYTES


def tokenizer_from_llama2c(path: Path) -> Tokenizer:
    """Build the tokenizer of a tokenizer.bin; raise BadTokenizer if that fails."""
    texts, scores = read_pieces(read_vocabulary(path), str(path))
    pieces = {text: token for token, text in enumerate(texts) if token >= FIRST_PIECE}
    others = {texts[token]: token for token in (UNKNOWN, *range(FIRST_BYTE, FIRST_PIECE))}
    encoder = scored_encoder(
        pieces,
        {text: scores[token] for text, token in pieces.items()},
        others,
        texts[UNKNOWN],
    )
    kinds = [TokenKind.UNKNOWN, TokenKind.CONTROL, TokenKind.CONTROL] + [TokenKind.BYTE] * BYTES
    kinds += [TokenKind.NORMAL] * (len(texts) - FIRST_PIECE)
    control = {texts[token]: Special(token) for token in (BEGIN, END)}
    return Tokenizer(
        (encoder, encoder),
        Vocabulary(texts, bytes(kinds), Spelling.SENTENCEPIECE),
        Specials(control, {}),
        TokenizerRules(
            begin_id=BEGIN,
            end_ids=(END, BEGIN),  # the stories end where the next one begins
            adds_begin=True,
            drops_space=True,
            normalize=SentencePieceNormalizer(
                None, (), adds_prefix=True, removes_extra=False, escapes=False
            ),
        ),
        ModelText(
            begin=texts[BEGIN],
            end=texts[END],
            name=path.resolve().parent.name,
            special=frozenset(control),
        ),
    )


def read_pieces(raw: bytes, where: str) -> tuple[list[str], list[float]]:
    """Return the texts and the scores of all pieces, by id; `raw` are the bytes of file `where`.

    Raise BadTokenizer, naming `where`, if the bytes are not a valid list of pieces.
    """
    longest = LONGEST.unpack_from(raw)[0] if len(raw) >= LONGEST.size else 0
    if not 0 < longest <= MAX_PIECE:
        raise BadTokenizer(
            f"{where} starts with {longest}; expected the bytes of its longest piece, 1 to "
            f"{MAX_PIECE} (is this llama2.c's tokenizer.bin?)"
        )
    texts: list[str] = []
    scores: list[float] = []
    at = LONGEST.size
    while at < len(raw):
        score, text, at = read_piece(raw, at, longest, f"{where}, piece {len(texts)}")
        scores.append(score)
        texts.append(text)
    check_pieces(texts, where)
    texts[: len(NAMES)] = NAMES
    return texts, scores


def read_piece(raw: bytes, at: int, longest: int, where: str) -> tuple[float, str, int]:
    """Return score and text of the piece at byte `at` of `raw`, and the index of its end.

    Raise BadTokenizer, naming `where`, if the piece is damaged or has more than `longest` bytes.
    """
    left = len(raw) - at - PIECE.size
    score, length = PIECE.unpack_from(raw, at) if left >= 0 else (0.0, -1)
    if not math.isfinite(score) or not 0 < length <= min(longest, left):
        raise BadTokenizer(
            f"{where} has score {score} and {length} bytes; expected a finite score and 1 to "
            f"{min(longest, max(left, 0))} bytes: the file is cut off or damaged"
        )
    at += PIECE.size
    try:
        return score, raw[at : at + length].decode(), at + length
    except UnicodeDecodeError as error:
        raise BadTokenizer(f"{where} is no UTF-8: {error.reason}") from error


def check_pieces(texts: list[str], where: str) -> None:
    """Raise BadTokenizer unless `texts` begins as in every llama2.c file and has no text twice.

    `texts` are those of all tokens, by id; errors name the file `where`.
    """
    usual = [*NAMES, *(f"<0x{byte:02X}>" for byte in range(BYTES))]
    for token, text in enumerate(usual):
        found = texts[token].strip("\n") if token < len(texts) else ""
        if found != text:
            raise BadTokenizer(
                f"{where}: piece {token} is {found[:40]!r}; expected {text!r}, as in llama2.c"
            )
    first: dict[str, int] = {}
    for token, text in enumerate(texts):
        if first.setdefault(text, token) != token:
            raise BadTokenizer(
                f"{where}: pieces {first[text]} and {token} are both {text[:40]!r}; expected "
                f"different texts"
            )
