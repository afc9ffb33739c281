"""The tokenizer: converts text to token ids and back, for vocabularies from any file.

Built by `sources.py`, called by `llm.py` and the service; `Tail` uses it for the bytes of tokens.
Must not know files, templates or the engine.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import tokenizers

from jaxllama.errors import BadTokenizer, InvalidParameter, JaxLlamaError, PromptTooLong
from jaxllama.formats import ModelText
from jaxllama.text.cuts import PIECE, Cuts, find_cuts
from jaxllama.text.specials import Specials
from jaxllama.text.vocabulary import TokenKind, Vocabulary

# Control tokens that end an answer even if the checkpoint does not list them.
END_TEXTS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|end_of_turn|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<eos>",
    "<EOT>",
    "</s>",
    "<｜end▁of▁sentence｜>",  # noqa: RUF001 - DeepSeek spells it with these characters
)


Normalize = Callable[[str], str]


@dataclass(frozen=True)
class TokenizerRules:
    """The begin and end tokens of a checkpoint, how to use them, and how text is normalized."""

    begin_id: int | None = None
    end_ids: tuple[int, ...] = ()  # all tokens that end an answer
    adds_begin: bool = False  # prompts start with the begin-of-text token
    drops_space: bool = False  # the space before a text is an artefact of its encoding
    normalize: Normalize | None = None  # applied to text before the library encodes it


class Tokenizer:
    """Converts text to token ids and back."""

    def __init__(
        self,
        encoders: tuple[tokenizers.Tokenizer, tokenizers.Tokenizer],  # of the first text, of others
        vocabulary: Vocabulary,
        specials: Specials,
        rules: TokenizerRules,
        text: ModelText,
    ) -> None:
        self._encoders = encoders
        self._vocabulary = vocabulary
        self._specials = specials
        self._rules = rules
        self.text = text

    @property
    def encoder(self) -> tokenizers.Tokenizer:
        """Return the tokenizer object of the tokenizers library; exports write it to a file."""
        return self._encoders[0]

    @property
    def vocabulary(self) -> Vocabulary:
        """Return the vocabulary: text and kind of every token, by id."""
        return self._vocabulary

    @property
    def vocab_size(self) -> int:
        """Return the largest id plus one; the model's own table may be padded beyond it."""
        return len(self._vocabulary)

    @property
    def begin_id(self) -> int | None:
        """Return the id of the begin-of-text token; None if the model has none."""
        return self._rules.begin_id

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Return the ids of all tokens that end an answer, the model's own first."""
        return self._rules.end_ids

    @property
    def adds_begin(self) -> bool:
        """Say whether prompts start with the begin-of-text token."""
        return self._rules.adds_begin

    @property
    def drops_space(self) -> bool:
        """Say whether a space at the start of a decoded text is an artefact of its encoding."""
        return self._rules.drops_space

    def encode(
        self,
        text: str,
        *,
        special: bool = False,
        begin: bool | None = None,
        start: bool = True,
        most: int | None = None,
    ) -> list[int]:
        """Convert `text` to token ids; `start=False` means that it continues another text.

        With `special`, control-token text such as `<|im_end|>` is read as the token, except where
        `guard` marked it; without, it is ordinary text. `begin` adds the begin-of-text token, once;
        None adds it if the model was trained with it. If a long text has more than `most` tokens,
        raises PromptTooLong before all of it is read. A shorter text may still have more than
        `most` tokens, so the caller must count them.
        """
        check_unicode(text)
        ids: list[int] = []
        read = 0  # characters
        for part in self._stretches(text, special=special):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self._run(part, bool(ids) or not start)
                read += len(part)
            if most is not None and len(ids) > most and len(text) - read > PIECE:
                raise PromptTooLong(
                    f"prompt has more than {most} tokens: about {read} of its {len(text)} "
                    f"characters are {len(ids)} tokens already; at most {most} fit (send less "
                    f"text, or start with a larger --context)"
                )
        if not (self._rules.adds_begin if begin is None else begin):
            return ids
        if self.begin_id is None:
            raise InvalidParameter(
                "begin is true, but the model has no begin-of-text token", "begin"
            )
        if special and ids[:1] == [self.begin_id]:
            return ids
        return [self.begin_id, *ids]

    def _stretches(self, text: str, *, special: bool) -> Iterator[str | int]:
        """Yield ids of special tokens, and the text between them in pieces of bounded length."""
        for part in self._specials.split(text, control=special):
            if isinstance(part, int) or len(part) <= PIECE:
                yield part
            else:
                yield from self._cuts.pieces(part)

    @cached_property
    def _cuts(self) -> Cuts:
        """Return the positions at which a long text may be cut, found once and then kept."""
        if any(depends_on_neighbours(encoder) for encoder in self._encoders):
            return Cuts()
        tokens = (self.piece(token, special=True) for token in range(self.vocab_size))
        return find_cuts(self._run, tokens)

    def _run(self, text: str, follows: bool) -> list[int]:
        """Return the token ids of a text without special tokens.

        With `follows`, the text continues another one, and no space is put before it.
        """
        normalize = self._rules.normalize
        return run(self._encoders[follows], normalize(text) if normalize else text)

    def guard(self, text: str) -> str:
        """Mark a user's text, so that `encode(special=True)` reads no control token in it.

        Use it on texts that a prompt format embeds; ordinary text keeps its tokens.
        """
        return self._specials.guard(text)

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Return the bytes of one token; b"" for a control or unknown token unless `special`.

        Returns b"" for ids past the vocabulary as well, which the model may still produce.
        """
        if token < 0:
            raise InvalidParameter(f"token id is {token}; expected at least 0")
        if token >= len(self._vocabulary):
            return b""
        return self._vocabulary.piece(token, special=special)

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the vocabulary; with equal digests, all tokens have equal texts."""
        return self._vocabulary.digest

    def texts(self) -> tuple[str, ...]:
        """Return the text of each token alone, by id; bytes that are no UTF-8 become U+FFFD."""
        pieces = map(self.piece, range(self.vocab_size))
        return tuple(piece.decode("utf-8", "replace") for piece in pieces)

    def decode(self, ids: Iterable[int], *, special: bool = False, start: bool = True) -> str:
        """Convert `ids` to text, without control tokens unless `special`.

        `start` says that a text starts here, so that a SentencePiece vocabulary's leading space is
        dropped; a continuation of another text keeps it. Bytes that are no UTF-8 become U+FFFD.
        """
        raw = b"".join([self.piece(token, special=special) for token in ids])
        if start and self.drops_space:
            raw = raw.removeprefix(b" ")
        return raw.decode("utf-8", "replace")


@dataclass(frozen=True)
class TokenizerParts:
    """The parts of a Tokenizer, to which a reader may add tokens and rules before building it."""

    encoder: tokenizers.Tokenizer
    vocabulary: Vocabulary
    specials: Specials
    rules: TokenizerRules
    text: ModelText

    def build(self) -> Tokenizer:
        """Build the tokenizer; text after a special token is encoded like the start of a text."""
        encoders = (self.encoder, self.encoder)
        return Tokenizer(encoders, self.vocabulary, self.specials, self.rules, self.text)


def run(encoder: tokenizers.Tokenizer, text: str) -> list[int]:
    """Return the token ids of a text, without special tokens around it.

    `encoder` is the tokenizers library's object. Raise BadTokenizer if it fails.
    """
    with library_errors("text cannot be encoded"):
        # the batch call computes no offsets and lets other threads run
        return encoder.encode_batch_fast([text], add_special_tokens=False)[0].ids


def depends_on_neighbours(encoder: tokenizers.Tokenizer) -> bool:
    """Say whether the encoder has an added token whose match depends on the text around it."""
    added = encoder.get_added_tokens_decoder().values()
    return any(token.lstrip or token.rstrip or token.single_word for token in added)


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Convert failures of the tokenizers library in a `with` block to BadTokenizer.

    The error's message begins with `what`. Panics of the library are converted, too: they derive
    from BaseException, so `except Exception` does not catch them.
    """
    try:
        yield
    except JaxLlamaError:
        raise
    except Exception as error:
        raise BadTokenizer(f"{what}: {error}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise BadTokenizer(f"{what}: the tokenizers library failed: {error}") from error


def check_unicode(text: str) -> None:
    """Raise InvalidParameter if `text` has a lone surrogate, which no tokenizer can encode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidParameter(
            f"text has the lone surrogate U+{ord(text[error.start]):04X} at character "
            f"{error.start}; expected valid Unicode"
        ) from error


def find_end_ids(own: Iterable[int | None], vocabulary: Vocabulary) -> tuple[int, ...]:
    """Return the ids of all tokens that end an answer, each once.

    First come the ids in `own`, the end tokens that the checkpoint names; None is skipped. Then
    come control tokens whose text is a known end text, such as `<|im_end|>`.
    """
    found = dict.fromkeys(token for token in own if token is not None)
    control = int(TokenKind.CONTROL)
    known = {
        vocabulary.texts[token]: token
        for token, kind in enumerate(vocabulary.kinds)
        if kind == control
    }
    found |= dict.fromkeys(known[text] for text in END_TEXTS if text in known)
    return tuple(found)
