"""Builds a tokenizer from GGUF metadata: byte-level BPE (`gpt2`) or scored SentencePiece (`llama`).

Called by the GGUF weight format with a plain mapping of metadata. Every value is checked, because
the file may be hostile; must not know the layout of the file.

`add_eos_token` is not read: a prompt to continue must not end with the end token.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import tokenizers
from tokenizers.models import BPE
from tokenizers.normalizers import Normalizer, Prepend, Replace
from tokenizers.normalizers import Sequence as Normalizers

from jaxllama.errors import BadTokenizer
from jaxllama.formats import ModelText
from jaxllama.text.pretokenize import Cutting, find_cutting
from jaxllama.text.scored import scored_encoder
from jaxllama.text.specials import Special, Specials
from jaxllama.text.tokenizer import Tokenizer, TokenizerRules, find_end_ids, library_errors
from jaxllama.text.vocabulary import SPACE, Spelling, TokenKind, Vocabulary, is_byte

logger = logging.getLogger(__name__)

PREFIX = "tokenizer.ggml."
MODELS = ("gpt2", "llama")


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """Build the tokenizer that a GGUF file describes; raise BadTokenizer if that fails."""
    fields = TokenizerMetadata(metadata)
    model = fields.text(PREFIX + "model")
    if model not in MODELS:
        raise BadTokenizer(
            f"{PREFIX}model is {model!r}; supported are {', '.join(map(repr, MODELS))}"
        )
    texts = read_texts(fields)
    spelling = Spelling.BYTE_LEVEL if model == "gpt2" else Spelling.SENTENCEPIECE
    vocabulary = Vocabulary(texts, read_kinds(fields, texts), spelling)
    if model == "gpt2":
        return build_byte_level(fields, vocabulary)
    return build_scored(fields, vocabulary)


def build_byte_level(fields: "TokenizerMetadata", vocabulary: Vocabulary) -> Tokenizer:
    """Build a byte-level BPE tokenizer from the file's ranked merges and its rule for words."""
    cutting = read_cutting(fields)
    ids = ids_of(vocabulary, {TokenKind.NORMAL, TokenKind.USER_DEFINED, TokenKind.UNUSED})
    merges = read_merges(fields, vocabulary, ids)
    with library_errors(f"{PREFIX}merges do not fit {PREFIX}tokens"):
        encoder = tokenizers.Tokenizer(BPE(ids, merges, ignore_merges=cutting.ignores_merges))
    encoder.pre_tokenizer = cutting.build()
    rules = read_rules(fields, vocabulary, adds_begin=cutting.adds_begin)
    return assemble(fields, encoder, vocabulary, rules)


def build_scored(fields: "TokenizerMetadata", vocabulary: Vocabulary) -> Tokenizer:
    """Build a SentencePiece BPE tokenizer: merges follow from scores, and a whole text is one word.

    Characters without a token become byte tokens.
    """
    scores = fields.scores(PREFIX + "scores", len(vocabulary))
    mergeable = ids_of(vocabulary, {TokenKind.NORMAL, TokenKind.USER_DEFINED, TokenKind.UNUSED})
    others = ids_of(vocabulary, {TokenKind.BYTE, TokenKind.UNKNOWN})
    unknown = fields.token(PREFIX + "unknown_token_id", len(vocabulary), default=0)
    unknown_text = vocabulary.texts[unknown] if unknown is not None else None
    encoder = scored_encoder(
        mergeable,
        {text: scores[token] for text, token in mergeable.items()},
        others,
        unknown_text if unknown_text in mergeable.keys() | others.keys() else None,
    )
    has_prefix = fields.flag(PREFIX + "add_space_prefix", default=True)
    spaces: list[Normalizer] = [Replace(" ", SPACE)]
    encoder.normalizer = Normalizers([Prepend(SPACE), *spaces] if has_prefix else spaces)
    rules = read_rules(fields, vocabulary, adds_begin=True, drops_space=has_prefix)
    return assemble(fields, encoder, vocabulary, rules)


def assemble(
    fields: "TokenizerMetadata",
    encoder: tokenizers.Tokenizer,
    vocabulary: Vocabulary,
    rules: TokenizerRules,
) -> Tokenizer:
    """Build the Tokenizer from its parts, with the chat template and model name in `fields`.

    `encoder` is the tokenizers library's object; `rules` has the begin and end tokens.
    """
    control = special_texts(vocabulary, {TokenKind.CONTROL, TokenKind.UNKNOWN})
    text = ModelText(
        template=fields.text("tokenizer.chat_template", default=None),
        begin="" if rules.begin_id is None else vocabulary.texts[rules.begin_id],
        end=vocabulary.texts[rules.end_ids[0]] if rules.end_ids else "",
        name=fields.text("general.name", default="") or "",
        special=frozenset(control),
    )
    always = special_texts(vocabulary, {TokenKind.USER_DEFINED})
    return Tokenizer((encoder, encoder), vocabulary, Specials(control, always), rules, text)


def read_cutting(fields: "TokenizerMetadata") -> Cutting:
    """Return the rule that splits text into words, by its name in the file, or the default rule."""
    name = fields.text(PREFIX + "pre", default=None)
    if name is None:
        logger.warning("%spre is missing; words are cut by the rule 'default'", PREFIX)
    return find_cutting(name or "default")


def read_texts(fields: "TokenizerMetadata") -> list[str]:
    """Return the text of every token, by id; an empty one gets a unique name.

    Raise BadTokenizer if two tokens have the same text.
    """
    key = PREFIX + "tokens"
    texts = [text or f"[EMPTY_{token}]" for token, text in enumerate(fields.texts(key))]
    if not texts:
        raise BadTokenizer(f"{key} is empty; expected one text per token")
    if len(set(texts)) != len(texts):
        first: dict[str, int] = {}
        for token, text in enumerate(texts):
            if first.setdefault(text, token) != token:
                raise BadTokenizer(
                    f"{key} holds {text[:40]!r} twice, at {first[text]} and {token}; "
                    f"expected different texts"
                )
    return texts


def read_kinds(fields: "TokenizerMetadata", texts: Sequence[str]) -> bytes:
    """Return the TokenKind of every token, one byte each; NORMAL if the file does not say."""
    key = PREFIX + "token_type"
    if key not in fields.metadata:
        return bytes([TokenKind.NORMAL]) * len(texts)
    kinds = fields.numbers(key, len(texts), "iu")
    if set(np.unique(kinds).tolist()) - set(TokenKind):
        raise BadTokenizer(
            f"{key} holds {kinds.min()} to {kinds.max()}; expected 1 to {len(TokenKind)}"
        )
    for token in np.flatnonzero(kinds == TokenKind.BYTE).tolist():
        if not is_byte(texts[token]):
            raise BadTokenizer(
                f"{key} calls token {token}, {texts[token][:40]!r}, a byte; expected '<0xNN>'"
            )
    return kinds.astype(np.uint8).tobytes()


def read_merges(
    fields: "TokenizerMetadata", vocabulary: Vocabulary, ids: Mapping[str, int]
) -> list[tuple[str, str]]:
    """Return the pairs of token texts to merge, best first, that involve only the tokens in `ids`.

    `ids` maps texts to token ids. Raise BadTokenizer if a part or the union of a pair in the file
    is no token of `vocabulary`.
    """
    key = PREFIX + "merges"
    lines = fields.texts(key)
    pairs = [(left, right) for left, _, right in (line.partition(" ") for line in lines)]
    used = {*map("".join, pairs), *chain.from_iterable(pairs)}
    if unknown := used.difference(vocabulary.texts):
        rank, line = next(
            (rank, line)
            for rank, line in enumerate(lines)
            if unknown & {*pairs[rank], "".join(pairs[rank])}
        )
        raise BadTokenizer(
            f"{key}[{rank}] is {line[:60]!r}; expected two tokens whose union is a token"
        )
    hidden = used - ids.keys()
    return [pair for pair in pairs if not hidden or hidden.isdisjoint((*pair, "".join(pair)))]


def read_rules(
    fields: "TokenizerMetadata",
    vocabulary: Vocabulary,
    *,
    adds_begin: bool,
    drops_space: bool = False,
) -> TokenizerRules:
    """Return the begin and end tokens; a SentencePiece file that omits them gets the ids 1 and 2.

    `adds_begin` says whether prompts start with the begin token, if the file does not say it.
    `drops_space` is copied to the result: decoding removes a space at the start of a text.
    """
    size = len(vocabulary)
    scored = vocabulary.spelling == Spelling.SENTENCEPIECE
    begin = fields.token(PREFIX + "bos_token_id", size, default=1 if scored else None)
    ends = [fields.token(PREFIX + "eos_token_id", size, default=2 if scored else None)]
    ends += [fields.token(PREFIX + key, size) for key in ("eot_token_id", "eom_token_id")]
    adds_begin = fields.flag(PREFIX + "add_bos_token", default=adds_begin)
    return TokenizerRules(
        begin_id=begin,
        end_ids=find_end_ids(ends, vocabulary),
        adds_begin=adds_begin and begin is not None,
        drops_space=drops_space,
    )


def ids_of(vocabulary: Vocabulary, kinds: set[TokenKind]) -> dict[str, int]:
    """Map the text of every token of one of these kinds to its id."""
    wanted = bytes(kinds)
    tokens = zip(vocabulary.texts, vocabulary.kinds, range(len(vocabulary)), strict=True)
    return {text: token for text, kind, token in tokens if kind in wanted}


def special_texts(vocabulary: Vocabulary, kinds: set[TokenKind]) -> dict[str, Special]:
    """Map the text of every token of one of these kinds to a Special with its id."""
    return {text: Special(token) for text, token in ids_of(vocabulary, kinds).items()}


@dataclass(frozen=True)
class TokenizerMetadata:
    """A mapping of metadata whose values are type-checked; errors name the key."""

    metadata: Mapping[str, Any]

    REQUIRED = object()

    def text(self, key: str, default: Any = REQUIRED) -> Any:
        """Return the metadata field `key` as a string; `default` if it is absent."""
        value = self.value(key, default)
        if value is not default and not isinstance(value, str):
            raise BadTokenizer(f"{key} is {value!r:.60}; expected text")
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        """Return the metadata field `key` as a boolean; `default` if it is absent."""
        value = self.value(key, default)
        if not isinstance(value, bool | np.bool_):
            raise BadTokenizer(f"{key} is {value!r:.60}; expected true or false")
        return bool(value)

    def token(self, key: str, size: int, default: int | None = None) -> int | None:
        """Return field `key` as a token id; raise BadTokenizer unless it is below `size`.

        If the field is absent, return `default`, or None if `default` is not below `size`.
        """
        if key not in self.metadata:
            return default if default is not None and default < size else None
        value = self.metadata[key]
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise BadTokenizer(f"{key} is {value!r:.60}; expected a token id")
        if not 0 <= value < size:
            raise BadTokenizer(f"{key} is {value}; the vocabulary has {size} tokens")
        return int(value)

    def texts(self, key: str) -> list[str]:
        """Return the required metadata field `key` as a list of strings."""
        value = self.value(key, self.REQUIRED)
        if not isinstance(value, Sequence | np.ndarray) or isinstance(value, str | bytes):
            raise BadTokenizer(f"{key} is a {type(value).__name__}; expected an array of text")
        texts = list(value)
        for kind in set(map(type, texts)):
            if not issubclass(kind, str):
                raise BadTokenizer(f"{key} holds {kind.__name__}; expected text only")
        return texts

    def scores(self, key: str, size: int) -> list[float]:
        """Return the required metadata field `key` as `size` finite floats, one per token."""
        scores = self.numbers(key, size, "f")
        if not np.isfinite(scores).all():
            raise BadTokenizer(f"{key} holds numbers that are not finite")
        return scores.tolist()

    def numbers(self, key: str, size: int, kinds: str) -> np.ndarray[Any, Any]:
        """Return the required metadata field `key` as a NumPy array of `size` numbers.

        `kinds` are the NumPy kind letters that its dtype may have: "iu" for integers, "f" for
        floats.
        """
        value = self.value(key, self.REQUIRED)
        word = "whole numbers" if kinds == "iu" else "floating-point numbers"
        try:
            numbers = np.asarray(value)
        except ValueError as error:  # lists of different lengths
            raise BadTokenizer(f"{key} is no array; expected {size} {word}") from error
        if numbers.ndim != 1 or numbers.dtype.kind not in kinds:
            raise BadTokenizer(
                f"{key} is {numbers.dtype} of shape {numbers.shape}; expected {size} {word}"
            )
        if len(numbers) != size:
            raise BadTokenizer(
                f"{key} has {len(numbers)} entries; {PREFIX}tokens has {size}, and each needs one"
            )
        return numbers

    def value(self, key: str, default: Any) -> Any:
        """Return the metadata field `key`, or `default` if it is absent.

        Raise BadTokenizer if it is absent and `default` is REQUIRED.
        """
        if key in self.metadata:
            return self.metadata[key]
        if default is self.REQUIRED:
            raise BadTokenizer(f"{key} is missing; the file has no usable tokenizer")
        return default
