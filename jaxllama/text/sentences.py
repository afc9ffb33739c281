"""Tokenizers of encoders: text to token ids, between the special tokens of the model.

Called by `encoder.py`. Reads tokenizer.json, or BERT's vocab.txt, into an object of the tokenizers
library. The text of a special token in a text is read as that token, as sentence-transformers does.
Must not know weights.
"""

from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing

from jaxllama.errors import BadTokenizer
from jaxllama.text.files import MAX_SIDE_FILE, read_object, read_text
from jaxllama.text.from_json import MAX_TOKENIZER
from jaxllama.text.token_ids import check_ids
from jaxllama.text.tokenizer import check_unicode, library_errors, run

TOKENIZER = "tokenizer.json"
VOCABULARY = "vocab.txt"
CONFIG = "tokenizer_config.json"
FIRST, LAST, UNKNOWN = "[CLS]", "[SEP]", "[UNK]"
BERT_TOKENS = (FIRST, LAST, UNKNOWN, "[PAD]", "[MASK]")
LONGEST_WORD = 100  # characters; BERT reads a longer word as unknown
SAMPLES = ("a", "a b c")


class SentenceTokenizer:
    """Converts texts to the token ids that an encoder reads."""

    def __init__(self, library: tokenizers.Tokenizer, *, lowercases: bool, where: Path) -> None:
        self._library = library
        self._lowercases = lowercases
        self.before, self.after = special_ids(library, where)

    @property
    def special_count(self) -> int:
        """Return the number of special tokens around every text."""
        return len(self.before) + len(self.after)

    def check_size(self, vocab_size: int, where: Path) -> None:
        """Raise BadTokenizer if a token has an id that the embedding of `vocab_size` rows lacks.

        The error names `where`, the encoder's path.
        """
        largest = max(self._library.get_vocab(with_added_tokens=True).values(), default=0)
        if largest >= vocab_size:
            raise BadTokenizer(
                f"{where}: the tokenizer has ids up to {largest}; by config.json the model has "
                f"tokens 0 to {vocab_size - 1} (use the tokenizer of the same model)"
            )

    def encode(self, text: str) -> list[int]:
        """Convert a text to token ids, without the special tokens around it."""
        check_unicode(text)
        return run(self._library, text.lower() if self._lowercases else text)

    def wrap(self, ids: Sequence[int]) -> list[int]:
        """Return the ids of a text with the special tokens before and after them."""
        return [*self.before, *ids, *self.after]


def sentence_tokenizer(folder: Path, *, lowercases: bool = False) -> SentenceTokenizer:
    """Build the tokenizer of an encoder's folder; raise BadTokenizer if that fails.

    With `lowercases`, texts are converted to lower case before they are tokenized.
    """
    path = folder / TOKENIZER
    serialized = read_text(path, MAX_TOKENIZER)
    if serialized is None:
        path = folder / VOCABULARY
        library = from_vocabulary(folder)
    else:
        with library_errors(f"{path} cannot be loaded"):
            library = tokenizers.Tokenizer.from_str(serialized)
            library.no_truncation()
            library.no_padding()
            check_ids(serialized, path, library)
    return SentenceTokenizer(library, lowercases=lowercases, where=path)


def from_vocabulary(folder: Path) -> tokenizers.Tokenizer:
    """Build BERT's tokenizer from the file vocab.txt of a folder, with one token per line."""
    path = folder / VOCABULARY
    text = read_text(path, MAX_SIDE_FILE)
    if text is None:
        raise BadTokenizer(
            f"{folder} has neither {TOKENIZER} nor BERT's {VOCABULARY}; expected one of them"
        )
    lines = text.removesuffix("\n").split("\n")
    ids = {token.rstrip("\r"): number for number, token in enumerate(lines)}
    missing = [token for token in BERT_TOKENS if token not in ids]
    if missing or len(ids) < len(lines):
        why = f"lacks {', '.join(missing)}" if missing else "has a token twice"
        raise BadTokenizer(f"{path} {why}; expected BERT's vocabulary, one token per line")
    config = read_object(folder / CONFIG)
    with library_errors(f"{path} cannot be loaded"):
        library = tokenizers.Tokenizer(
            WordPiece(ids, unk_token=UNKNOWN, max_input_chars_per_word=LONGEST_WORD)
        )
        library.normalizer = BertNormalizer(
            handle_chinese_chars=config.get("tokenize_chinese_chars", True),
            strip_accents=config.get("strip_accents"),
            lowercase=config.get("do_lower_case", True),
        )
        library.pre_tokenizer = BertPreTokenizer()
        library.post_processor = BertProcessing((LAST, ids[LAST]), (FIRST, ids[FIRST]))
        library.add_special_tokens(list(BERT_TOKENS))
    return library


def special_ids(library: tokenizers.Tokenizer, where: Path) -> tuple[list[int], list[int]]:
    """Return the token ids that the library's post-processor puts before and after every text.

    Raise BadTokenizer, naming `where`, if it also puts ids between the tokens of a text.
    """
    found = []
    for sample in SAMPLES:
        with library_errors(f"{where}: the post-processor fails"):
            whole = library.encode(sample, add_special_tokens=True).ids
        bare = run(library, sample)
        starts = range(len(whole) - len(bare) + 1)
        at = next((at for at in starts if bare and whole[at : at + len(bare)] == bare), None)
        if at is not None:
            found.append((whole[:at], whole[at + len(bare) :]))
    if len(found) < len(SAMPLES) or found[0] != found[1]:
        raise BadTokenizer(
            f"{where} puts special tokens between the tokens of a text; expected them only before "
            f"and after it"
        )
    return found[0]
