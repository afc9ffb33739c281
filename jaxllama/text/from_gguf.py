"""A tokenizer out of GGUF metadata: byte-level BPE (`gpt2`) and scored SentencePiece (`llama`).

Called by the GGUF weight format with a plain mapping of metadata. Every value is checked, because
the file may be hostile; must not know how the file is laid out.

`add_eos_token` is not read: a prompt that is to be continued never ends with the end token.
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
from jaxllama.text.scored import merges_of
from jaxllama.text.specials import Special, Specials
from jaxllama.text.tokenizer import Rules, Tokenizer, contained, find_end_ids
from jaxllama.text.vocabulary import SPACE, Kind, Spelling, Vocabulary, is_byte

logger = logging.getLogger(__name__)

PREFIX = "tokenizer.ggml."
MODELS = ("gpt2", "llama")


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that a GGUF file describes."""
    fields = Fields(metadata)
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


def build_byte_level(fields: "Fields", vocabulary: Vocabulary) -> Tokenizer:
    """Byte-level BPE: words are cut by a named rule, then merged by rank."""
    cutting = read_cutting(fields)
    ids = ids_of(vocabulary, {Kind.NORMAL, Kind.USER_DEFINED, Kind.UNUSED})
    merges = read_merges(fields, vocabulary, ids)
    with contained(f"{PREFIX}merges do not fit {PREFIX}tokens"):
        encoder = tokenizers.Tokenizer(BPE(ids, merges, ignore_merges=cutting.ignores_merges))
    encoder.pre_tokenizer = cutting.build()
    rules = read_rules(fields, vocabulary, adds_begin=cutting.adds_begin)
    return assemble(fields, encoder, vocabulary, rules)


def build_scored(fields: "Fields", vocabulary: Vocabulary) -> Tokenizer:
    """SentencePiece BPE: the whole text is one word; unknown characters fall back to bytes."""
    scores = fields.scores(PREFIX + "scores", len(vocabulary))
    mergeable = ids_of(vocabulary, {Kind.NORMAL, Kind.USER_DEFINED, Kind.UNUSED})
    merges = merges_of({text: scores[token] for text, token in mergeable.items()})
    ids = mergeable | ids_of(vocabulary, {Kind.BYTE, Kind.UNKNOWN})
    unknown = fields.token(PREFIX + "unknown_token_id", len(vocabulary), default=0)
    unknown_text = vocabulary.texts[unknown] if unknown is not None else None
    with contained(f"{PREFIX}tokens do not build a vocabulary"):
        encoder = tokenizers.Tokenizer(
            BPE(
                ids,
                merges,
                unk_token=unknown_text if unknown_text in ids else None,
                fuse_unk=True,
                byte_fallback=True,
            )
        )
    has_prefix = fields.flag(PREFIX + "add_space_prefix", default=True)
    spaces: list[Normalizer] = [Replace(" ", SPACE)]
    encoder.normalizer = Normalizers([Prepend(SPACE), *spaces] if has_prefix else spaces)
    rules = read_rules(fields, vocabulary, adds_begin=True, drops_space=has_prefix)
    return assemble(fields, encoder, vocabulary, rules)


def assemble(
    fields: "Fields", encoder: tokenizers.Tokenizer, vocabulary: Vocabulary, rules: Rules
) -> Tokenizer:
    """The tokenizer and what the file says about its text."""
    control = special_texts(vocabulary, {Kind.CONTROL, Kind.UNKNOWN})
    text = ModelText(
        template=fields.text("tokenizer.chat_template", default=None),
        begin="" if rules.begin_id is None else vocabulary.texts[rules.begin_id],
        end=vocabulary.texts[rules.end_ids[0]] if rules.end_ids else "",
        name=fields.text("general.name", default="") or "",
        special=frozenset(control),
    )
    always = special_texts(vocabulary, {Kind.USER_DEFINED})
    return Tokenizer((encoder, encoder), vocabulary, Specials(control, always), rules, text)


def read_cutting(fields: "Fields") -> Cutting:
    """How text is cut into words."""
    name = fields.text(PREFIX + "pre", default=None)
    if name is None:
        logger.warning("%spre is missing; words are cut by the rule 'default'", PREFIX)
    return find_cutting(name or "default")


def read_texts(fields: "Fields") -> list[str]:
    """The text of every token, all different; empty ones get a name of their own."""
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


def read_kinds(fields: "Fields", texts: Sequence[str]) -> bytes:
    """The kind of every token."""
    key = PREFIX + "token_type"
    if key not in fields.metadata:
        return bytes([Kind.NORMAL]) * len(texts)
    kinds = fields.numbers(key, len(texts), "iu")
    if set(np.unique(kinds).tolist()) - set(Kind):
        raise BadTokenizer(f"{key} holds {kinds.min()} to {kinds.max()}; expected 1 to {len(Kind)}")
    for token in np.flatnonzero(kinds == Kind.BYTE).tolist():
        if not is_byte(texts[token]):
            raise BadTokenizer(
                f"{key} calls token {token}, {texts[token][:40]!r}, a byte; expected '<0xNN>'"
            )
    return kinds.astype(np.uint8).tobytes()


def read_merges(
    fields: "Fields", vocabulary: Vocabulary, ids: Mapping[str, int]
) -> list[tuple[str, str]]:
    """Pairs to join, best first; those that would spell a control token are left out."""
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
    fields: "Fields", vocabulary: Vocabulary, *, adds_begin: bool, drops_space: bool = False
) -> Rules:
    """The ends of a text; SentencePiece files may leave the usual ids unsaid."""
    size = len(vocabulary)
    scored = vocabulary.spelling == Spelling.SENTENCEPIECE
    begin = fields.token(PREFIX + "bos_token_id", size, default=1 if scored else None)
    ends = [fields.token(PREFIX + "eos_token_id", size, default=2 if scored else None)]
    ends += [fields.token(PREFIX + key, size) for key in ("eot_token_id", "eom_token_id")]
    adds_begin = fields.flag(PREFIX + "add_bos_token", default=adds_begin)
    return Rules(
        begin_id=begin,
        end_ids=find_end_ids(ends, vocabulary),
        adds_begin=adds_begin and begin is not None,
        drops_space=drops_space,
    )


def ids_of(vocabulary: Vocabulary, kinds: set[Kind]) -> dict[str, int]:
    """Token ids by text, of these kinds."""
    wanted = bytes(kinds)
    tokens = zip(vocabulary.texts, vocabulary.kinds, range(len(vocabulary)), strict=True)
    return {text: token for text, kind, token in tokens if kind in wanted}


def special_texts(vocabulary: Vocabulary, kinds: set[Kind]) -> dict[str, Special]:
    """The tokens of these kinds that are written as a fixed text."""
    return {text: Special(token) for text, token in ids_of(vocabulary, kinds).items()}


@dataclass(frozen=True)
class Fields:
    """Metadata values of the expected type, or an error that names the key."""

    metadata: Mapping[str, Any]

    REQUIRED = object()

    def text(self, key: str, default: Any = REQUIRED) -> Any:
        """A string."""
        value = self.value(key, default)
        if value is not default and not isinstance(value, str):
            raise BadTokenizer(f"{key} is {value!r:.60}; expected text")
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        """A truth value."""
        value = self.value(key, default)
        if not isinstance(value, bool | np.bool_):
            raise BadTokenizer(f"{key} is {value!r:.60}; expected true or false")
        return bool(value)

    def token(self, key: str, size: int, default: int | None = None) -> int | None:
        """A token id; `default` counts only if the vocabulary has it."""
        if key not in self.metadata:
            return default if default is not None and default < size else None
        value = self.metadata[key]
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise BadTokenizer(f"{key} is {value!r:.60}; expected a token id")
        if not 0 <= value < size:
            raise BadTokenizer(f"{key} is {value}; the vocabulary has {size} tokens")
        return int(value)

    def texts(self, key: str) -> list[str]:
        """A list of strings."""
        value = self.value(key, self.REQUIRED)
        if not isinstance(value, Sequence | np.ndarray) or isinstance(value, str | bytes):
            raise BadTokenizer(f"{key} is a {type(value).__name__}; expected an array of text")
        texts = list(value)
        for kind in set(map(type, texts)):
            if not issubclass(kind, str):
                raise BadTokenizer(f"{key} holds {kind.__name__}; expected text only")
        return texts

    def scores(self, key: str, size: int) -> list[float]:
        """One finite number per token."""
        scores = self.numbers(key, size, "f")
        if not np.isfinite(scores).all():
            raise BadTokenizer(f"{key} holds numbers that are not finite")
        return scores.tolist()

    def numbers(self, key: str, size: int, kinds: str) -> np.ndarray[Any, Any]:
        """An array of `size` numbers of one of NumPy's `kinds`."""
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
        """The value, the default, or an error."""
        if key in self.metadata:
            return self.metadata[key]
        if default is self.REQUIRED:
            raise BadTokenizer(f"{key} is missing; the file has no usable tokenizer")
        return default
