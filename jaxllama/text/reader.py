"""The tokenizer socket: the one file that the author of a tokenizer reader reads.

A reader opens one kind of tokenizer file. It says whether a file or folder is of its kind, and
builds a `Tokenizer` from it. An entry point in the group `jaxllama.tokenizers` makes it known; then
`--tokenizer PATH` and `LLM.load(tokenizer=PATH)` take such files.

    class WordList(TokenizerReader):
        '''One token per line.'''

        @classmethod
        def recognizes(cls, path: Path) -> bool: ...

        @classmethod
        def open(cls, path: Path) -> Tokenizer: ...
"""

from abc import ABC, abstractmethod
from pathlib import Path

from jaxllama.errors import BadTokenizer
from jaxllama.formats import ModelText
from jaxllama.text.files import read_head, read_vocabulary
from jaxllama.text.specials import Special, Specials
from jaxllama.text.tokenizer import Tokenizer, TokenizerParts, TokenizerRules
from jaxllama.text.vocabulary import Spelling, TokenKind, Vocabulary, byte_level_encode

__all__ = [
    "BadTokenizer",
    "ModelText",
    "Special",
    "Specials",
    "Spelling",
    "TokenKind",
    "Tokenizer",
    "TokenizerParts",
    "TokenizerReader",
    "TokenizerRules",
    "Vocabulary",
    "byte_level_encode",
    "read_head",
    "read_vocabulary",
]


class TokenizerReader(ABC):
    """The base of tokenizer readers: opens one kind of tokenizer file."""

    @classmethod
    @abstractmethod
    def recognizes(cls, path: Path) -> bool:
        """Say whether `path`, an existing file or folder, looks like this kind of tokenizer.

        Must be quick.
        """

    @classmethod
    @abstractmethod
    def open(cls, path: Path) -> Tokenizer:
        """Build the tokenizer; raise BadTokenizer, and no other error, if the file is unusable."""
