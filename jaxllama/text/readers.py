"""The built-in tokenizer readers, except GGUF's, which is in `weights/gguf.py`.

Found through their entry points.
"""

from pathlib import Path

from jaxllama.errors import BadTokenizer
from jaxllama.text.files import MAX_VOCABULARY, read_head
from jaxllama.text.from_folder import TOKENIZER_JSON, tokenizer_from_folder
from jaxllama.text.from_llama2c import read_pieces, tokenizer_from_llama2c
from jaxllama.text.from_sentencepiece import tokenizer_from_sentencepiece
from jaxllama.text.from_tiktoken import tokenizer_from_tiktoken
from jaxllama.text.model_file import TOKENIZER_MODEL, is_sentencepiece, is_tiktoken
from jaxllama.text.reader import TokenizerReader
from jaxllama.text.tokenizer import Tokenizer


class HuggingFaceTokenizer(TokenizerReader):
    """A Hugging Face folder, or its tokenizer.json."""

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Say whether `path` is a tokenizer.json, or a folder that a tokenizer can be built from.

        Such a folder has a tokenizer.json or a tokenizer.model.
        """
        if path.is_dir():
            return (path / TOKENIZER_JSON).is_file() or (path / TOKENIZER_MODEL).is_file()
        return path.name == TOKENIZER_JSON

    @classmethod
    def open(cls, path: Path) -> Tokenizer:
        """Build the tokenizer of the folder, or of the folder in which the tokenizer.json lies."""
        return tokenizer_from_folder(path if path.is_dir() else path.parent)


class SentencePieceTokenizer(TokenizerReader):
    """A SentencePiece file: tokenizer.model of Llama 1 and 2, Mistral and others."""

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Say whether the file begins like a SentencePiece model, with a piece."""
        return is_sentencepiece(read_head(path)[0])

    @classmethod
    def open(cls, path: Path) -> Tokenizer:
        """Build the tokenizer of a SentencePiece file."""
        return tokenizer_from_sentencepiece(path)


class TiktokenTokenizer(TokenizerReader):
    """A tiktoken file: tokenizer.model of Llama 3."""

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Say whether the file starts with a token in base64 and its rank."""
        return is_tiktoken(read_head(path)[0])

    @classmethod
    def open(cls, path: Path) -> Tokenizer:
        """Build the tokenizer of a tiktoken file, with the rules of Llama 3."""
        return tokenizer_from_tiktoken(path)


class Llama2cTokenizer(TokenizerReader):
    """A tokenizer.bin of llama2.c."""

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Say whether the file holds a list of scored pieces and nothing else."""
        head, is_all = read_head(path)
        if not head or (not is_all and path.stat().st_size > MAX_VOCABULARY):
            return False
        try:
            read_pieces(path.read_bytes(), str(path))
        except BadTokenizer:
            return False
        return True

    @classmethod
    def open(cls, path: Path) -> Tokenizer:
        """Build the tokenizer of a tokenizer.bin file."""
        return tokenizer_from_llama2c(path)
