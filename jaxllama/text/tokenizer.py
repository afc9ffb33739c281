"""The tokenizer: text to token ids and back, whatever file the vocabulary came from.

Built by `sources.py`, called by `llm.py` and the service; `Tail` asks it for the bytes of tokens.
Must not know files, templates or the engine.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import tokenizers

from jaxllama.errors import BadTokenizer, InvalidParameter, JaxLlamaError, PromptTooLong
from jaxllama.formats import ModelText
from jaxllama.text.cuts import PIECE, Cuts, find_cuts
from jaxllama.text.specials import Specials
from jaxllama.text.vocabulary import Kind, Vocabulary

# Control tokens that end an answer even where the checkpoint forgets to say so.
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


@dataclass(frozen=True)
class Rules:
    """What a checkpoint says about the ends of a text."""

    begin_id: int | None = None
    end_ids: tuple[int, ...] = ()  # all tokens that end an answer
    adds_begin: bool = False  # prompts start with the begin-of-text token
    drops_space: bool = False  # the space before a text is an artefact of its encoding


class Tokenizer:
    """Text to token ids and back."""

    def __init__(
        self,
        encoders: tuple[tokenizers.Tokenizer, tokenizers.Tokenizer],  # of the first stretch, others
        vocabulary: Vocabulary,
        specials: Specials,
        rules: Rules,
        text: ModelText,
    ) -> None:
        self._encoders = encoders
        self._vocabulary = vocabulary
        self._specials = specials
        self._rules = rules
        self.text = text

    @property
    def vocab_size(self) -> int:
        """One more than the largest id; the model's own table may be padded beyond it."""
        return len(self._vocabulary)

    @property
    def begin_id(self) -> int | None:
        """The begin-of-text token, if the model has one."""
        return self._rules.begin_id

    @property
    def end_ids(self) -> tuple[int, ...]:
        """All tokens that end an answer, the model's own first."""
        return self._rules.end_ids

    @property
    def adds_begin(self) -> bool:
        """Whether prompts start with the begin-of-text token."""
        return self._rules.adds_begin

    @property
    def drops_space(self) -> bool:
        """Whether a space at the start of a decoded text is an artefact of its encoding."""
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
        """Token ids of `text`; without `start` it goes on after other text.

        With `special`, control-token text such as `<|im_end|>` is read as the token, except where
        `guard` marked it; without, it is ordinary text. `begin` adds the begin-of-text token,
        once; None does what the model was trained with. A long text that has more than `most`
        tokens is given up with PromptTooLong before all of it is read; the caller counts the rest.
        """
        check_unicode(text)
        ids: list[int] = []
        read = 0  # characters
        for part in self._stretches(text, special=special):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += run(self._encoders[bool(ids) or not start], part)
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
        """Ids of special tokens, and what stands between them in pieces of bounded length."""
        for part in self._specials.split(text, control=special):
            if isinstance(part, int) or len(part) <= PIECE:
                yield part
            else:
                yield from self._cuts.pieces(part)

    @cached_property
    def _cuts(self) -> Cuts:
        """Where a long text may be cut."""
        if any(reaches_out(encoder) for encoder in self._encoders):
            return Cuts()
        tokens = (self.piece(token, special=True) for token in range(self.vocab_size))
        return find_cuts(lambda text, follows: run(self._encoders[follows], text), tokens)

    def guard(self, text: str) -> str:
        """Mark a user's text, so that `encode(special=True)` reads no control token in it.

        For what a prompt format embeds; ordinary text keeps its tokens.
        """
        return self._specials.guard(text)

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of one token; control tokens have none unless `special`.

        Ids past the vocabulary, which the model may still produce, have none either.
        """
        if token < 0:
            raise InvalidParameter(f"token id is {token}; expected at least 0")
        if token >= len(self._vocabulary):
            return b""
        return self._vocabulary.piece(token, special=special)

    def texts(self) -> tuple[str, ...]:
        """The text of every token by itself; bytes that are no UTF-8 become U+FFFD."""
        pieces = map(self.piece, range(self.vocab_size))
        return tuple(piece.decode("utf-8", "replace") for piece in pieces)

    def decode(self, ids: Iterable[int], *, special: bool = False, start: bool = True) -> str:
        """The text of `ids`, without control tokens unless `special`.

        `start` says that a text begins here, so that a SentencePiece vocabulary's leading space is
        dropped; a continuation of another text keeps it. Bytes that are no UTF-8 become U+FFFD.
        """
        raw = b"".join([self.piece(token, special=special) for token in ids])
        if start and self.drops_space:
            raw = raw.removeprefix(b" ")
        return raw.decode("utf-8", "replace")


def run(encoder: tokenizers.Tokenizer, text: str) -> list[int]:
    """Ids of a stretch without special tokens."""
    with contained("text cannot be encoded"):
        # the batch call computes no offsets and lets other threads run
        return encoder.encode_batch_fast([text], add_special_tokens=False)[0].ids


def reaches_out(encoder: tokenizers.Tokenizer) -> bool:
    """Whether a token that is read in any text takes what stands beside it into account."""
    added = encoder.get_added_tokens_decoder().values()
    return any(token.lstrip or token.rstrip or token.single_word for token in added)


@contextmanager
def contained(what: str) -> Iterator[None]:
    """Turn failures of the tokenizers library into BadTokenizer.

    A panic inside it derives from BaseException, past every `except Exception`.
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
    """Refuse lone surrogates: they are no characters, and no tokenizer can encode them."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidParameter(
            f"text has the lone surrogate U+{ord(text[error.start]):04X} at character "
            f"{error.start}; expected valid Unicode"
        ) from error


def find_end_ids(own: Iterable[int | None], vocabulary: Vocabulary) -> tuple[int, ...]:
    """The checkpoint's own end tokens, then the control tokens that are known to end an answer."""
    found = dict.fromkeys(token for token in own if token is not None)
    control = int(Kind.CONTROL)
    known = {
        vocabulary.texts[token]: token
        for token, kind in enumerate(vocabulary.kinds)
        if kind == control
    }
    found |= dict.fromkeys(known[text] for text in END_TEXTS if text in known)
    return tuple(found)
