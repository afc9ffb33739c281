"""Files called `tokenizer.model`: SentencePiece's or tiktoken's, told apart by their first bytes.

Called by the readers of folders that hold such a file, Meta's and Hugging Face's.
"""

import base64
import binascii
from collections.abc import Collection
from pathlib import Path

from jaxllama.errors import BadTokenizer
from jaxllama.text.files import read_head
from jaxllama.text.from_sentencepiece import sentencepiece_parts
from jaxllama.text.from_tiktoken import tiktoken_parts
from jaxllama.text.tokenizer import Tokenizer, TokenizerParts

TOKENIZER_MODEL = "tokenizer.model"
PIECE_TAG = 0x0A  # field 1 of a message, of any length


def tokenizer_from_model(path: Path) -> Tokenizer:
    """Build the tokenizer of a tokenizer.model; raise BadTokenizer if that fails."""
    return model_parts(path).build()


def model_parts(path: Path, control: Collection[int] = ()) -> TokenizerParts:
    """Return the parts of a file's tokenizer, to which a caller may add tokens and rules.

    Tokens with an id in `control` become control tokens, even if a SentencePiece file has them as
    text.
    """
    try:
        head, _ = read_head(path)
    except OSError as error:
        raise BadTokenizer(f"{path} cannot be read: {error}") from error
    return tiktoken_parts(path) if is_tiktoken(head) else sentencepiece_parts(path, control)


def is_tiktoken(head: bytes) -> bool:
    """Say whether a file with these first bytes has lines of base64 and a number."""
    text, _, number = head.partition(b"\n")[0].partition(b" ")
    try:
        token = base64.b64decode(text, validate=True)
    except binascii.Error:
        return False
    return bool(token) and number.strip().isdigit()


def is_sentencepiece(head: bytes) -> bool:
    """Say whether a file with these first bytes begins like a SentencePiece model, with a piece."""
    if len(head) < 4 or head[0] != PIECE_TAG or head[2] != PIECE_TAG:  # noqa: PLR2004
        return False
    length, text_length = head[1], head[3]  # below 128, as a first piece is short
    return 0 < text_length <= length - 2 < 126  # noqa: PLR2004
