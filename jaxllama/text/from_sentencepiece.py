"""Builds a tokenizer from a SentencePiece file: BPE by score, or unigram.

Called by the readers of `tokenizer.model` files. `sentencepiece_file.py` has checked the file; this
file knows how its pieces are expressed in the tokenizers library's objects.

SentencePiece reads the text of control tokens, bytes and the unknown token as ordinary text, and
user-defined pieces whole, in any text. The library's BPE makes tokens by merges only, so the former
have none and the latter are added tokens. The library's unigram model reads every piece that it
has, so the former get a text that no piece of a text can match.
"""

from collections.abc import Collection, Iterable
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import PreTokenizer, Sequence, Split

from jaxllama.errors import BadTokenizer
from jaxllama.formats import ModelText
from jaxllama.text.charsmap import CharacterMap
from jaxllama.text.files import read_vocabulary
from jaxllama.text.normalize import SentencePieceNormalizer
from jaxllama.text.scored import scored_encoder
from jaxllama.text.sentencepiece_file import SentencePieceModel, read_model
from jaxllama.text.specials import Special, Specials, unused_mark
from jaxllama.text.tokenizer import (
    Tokenizer,
    TokenizerParts,
    TokenizerRules,
    find_end_ids,
    library_errors,
)
from jaxllama.text.vocabulary import Spelling, TokenKind, Vocabulary

MERGEABLE = (TokenKind.NORMAL, TokenKind.USER_DEFINED, TokenKind.UNUSED)
BONUS = 0.1  # what a user-defined piece of a unigram model costs beside its bytes


def tokenizer_from_sentencepiece(path: Path) -> Tokenizer:
    """Build the tokenizer of a SentencePiece file; raise BadTokenizer if that fails."""
    return sentencepiece_parts(path).build()


def sentencepiece_parts(path: Path, control: Collection[int] = ()) -> TokenizerParts:
    """Return the parts of a file's tokenizer, to which a caller may add tokens and rules.

    Tokens with an id in `control` become control tokens, even if the file has them as text.
    """
    where = str(path)
    model = read_model(read_vocabulary(path), where)
    model = model.with_control(control)
    encoder = unigram_encoder(model) if model.is_unigram else bpe_encoder(model, where)
    vocabulary = Vocabulary(model.texts, model.kinds, Spelling.SENTENCEPIECE)
    specials = dict(model.ids_of(TokenKind.CONTROL))
    begin, end = specials.get(model.begin), specials.get(model.end)
    return TokenizerParts(
        encoder,
        vocabulary,
        Specials({text: Special(token) for text, token in specials.items()}, {}),
        TokenizerRules(
            begin_id=begin,
            end_ids=find_end_ids([end], vocabulary),
            adds_begin=begin is not None,
            drops_space=model.adds_prefix or model.removes_extra,
            normalize=normalizer_of(model, where),
        ),
        ModelText(
            begin="" if begin is None else model.begin,
            end="" if end is None else model.end,
            name=path.resolve().parent.name,
            special=frozenset(specials),
        ),
    )


def normalizer_of(model: SentencePieceModel, where: str) -> SentencePieceNormalizer:
    """Build the normalizer that the file describes; errors name the file `where`."""
    return SentencePieceNormalizer(
        CharacterMap(model.charsmap, where) if model.charsmap else None,
        [text for text, _ in model.ids_of(TokenKind.USER_DEFINED)],
        adds_prefix=model.adds_prefix,
        removes_extra=model.removes_extra,
        escapes=model.escapes,
    )


def bpe_encoder(model: SentencePieceModel, where: str) -> tokenizers.Tokenizer:
    """Build the library's BPE encoder for a model; errors name `where`.

    User-defined pieces become added tokens: they are read whole, and nothing merges with them.
    """
    pieces = dict(model.ids_of(*MERGEABLE))
    check_unused(model, pieces, where)
    ((unknown, unknown_id),) = model.ids_of(TokenKind.UNKNOWN)
    if len(unknown) == 1:  # a character that a text may have: give it a text that none has
        unknown = unused_mark(model.texts) * 2
    encoder = scored_encoder(
        pieces,
        {text: model.scores[token] for text, token in pieces.items()},
        {**dict(model.ids_of(TokenKind.BYTE)), unknown: unknown_id},
        unknown,
        falls_back=model.falls_back,
    )
    with library_errors(f"{where}: the user-defined pieces cannot be used"):
        encoder.add_tokens(
            [AddedToken(text, normalized=False) for text, _ in model.ids_of(TokenKind.USER_DEFINED)]
        )
    return encoder


def check_unused(model: SentencePieceModel, pieces: Iterable[str], where: str) -> None:
    """Raise BadTokenizer if merges of `pieces` could make a piece that the file calls unused.

    SentencePiece splits such a piece again, which is not supported. Errors name `where`.
    """
    known = frozenset(pieces)
    for text, token in model.ids_of(TokenKind.UNUSED):
        if any(text[:cut] in known and text[cut:] in known for cut in range(1, len(text))):
            raise BadTokenizer(
                f"{where}: piece {token}, {text[:40]!r}, is marked as unused and is a union of "
                f"two pieces, which is not supported in a BPE vocabulary (use the model's "
                f"tokenizer.json)"
            )


def unigram_encoder(model: SentencePieceModel) -> tokenizers.Tokenizer:
    """Build a unigram encoder: it splits a text into the pieces with the highest sum of scores."""
    normal = [model.scores[token] for _, token in model.ids_of(TokenKind.NORMAL)] or [0.0]
    mark = unused_mark(model.texts)
    pieces: list[tuple[str, float]] = []
    for token, text in enumerate(model.texts):
        kind, score = model.kinds[token], model.scores[token]
        if kind == TokenKind.USER_DEFINED:
            score = len(text.encode()) * max(normal) - BONUS
        elif kind == TokenKind.BYTE:
            score = max(normal)  # never compared: `apart` keeps texts from matching
        elif kind != TokenKind.NORMAL:
            text, score = f"{mark}{token}", max(normal)  # noqa: PLW2901 - a text that none matches
        pieces.append((text, score))
    ((_, unknown_id),) = model.ids_of(TokenKind.UNKNOWN)
    with library_errors("the pieces do not build a vocabulary"):
        encoder = tokenizers.Tokenizer(
            Unigram(pieces, unk_id=unknown_id, byte_fallback=model.falls_back)
        )
        encoder.pre_tokenizer = apart(mark, model)
    return encoder


def apart(mark: str, model: SentencePieceModel) -> PreTokenizer:
    """Build a pre-tokenizer that keeps ordinary text from becoming control or byte tokens.

    It splits text at `mark`, with which the texts of control tokens begin, and within `<0xNN>`, so
    that no piece of the text is the text of such a token.
    """
    rules: list[PreTokenizer] = [Split(mark, "isolated")]
    if model.falls_back:
        rules.append(Split(Regex("<(?=0x[0-9A-F]{2}>)"), "merged_with_previous"))
    return Sequence(rules)
