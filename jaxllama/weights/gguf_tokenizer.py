"""The tokenizer reader of GGUF files, for files with or without tensors.

Found through its entry point.
"""

from pathlib import Path

from jaxllama.text.from_gguf import tokenizer_from_gguf
from jaxllama.text.reader import TokenizerReader
from jaxllama.text.tokenizer import Tokenizer
from jaxllama.weights.binary import BinaryFile
from jaxllama.weights.gguf import GgufCheckpoint
from jaxllama.weights.gguf_header import read_header


class GgufTokenizer(TokenizerReader):
    """The tokenizer in a GGUF file."""

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Say whether `path` is a file that starts with GGUF's magic bytes."""
        return GgufCheckpoint.recognizes(path)

    @classmethod
    def open(cls, path: Path) -> Tokenizer:
        """Build the tokenizer that the metadata of the GGUF file at `path` describes."""
        file = BinaryFile(path)
        try:
            return tokenizer_from_gguf(dict(read_header(file).metadata))
        finally:
            file.close()
