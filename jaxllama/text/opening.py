"""Opens a tokenizer file or folder with the first installed reader that recognises it.

Called by `loading.py` and the CLI. Knows no reader by name: they come through entry points.
"""

from pathlib import Path

from jaxllama.errors import BadTokenizer, BrokenPlugin, JaxLlamaError
from jaxllama.registry import TOKENIZERS, load_plugins
from jaxllama.text.reader import TokenizerReader
from jaxllama.text.tokenizer import Tokenizer


def open_tokenizer(path: Path | str) -> Tokenizer:
    """Build the tokenizer of a file or folder; raise a CheckpointError if there is none in it."""
    path = Path(path)
    plugins = load_plugins(TOKENIZERS, TokenizerReader)  # type: ignore[type-abstract]
    try:
        if not path.is_dir() and not path.is_file():
            raise BadTokenizer(
                f"{path} is no file and no folder; expected a tokenizer, such as a tokenizer.json "
                f"or tokenizer.model"
            )
        for name, reader in plugins.loaded.items():
            if recognizes(name, reader, path):
                return reader.open(path)
    except (OSError, ValueError) as error:
        raise BadTokenizer(f"{path} cannot be read: {error}") from error
    broken = "".join(f"; {error}" for error in plugins.broken.values())
    raise BadTokenizer(
        f"{path} is no tokenizer in a known format; formats: "
        f"{', '.join(plugins.loaded) or 'none'}{broken}"
    )


def recognizes(name: str, reader: type[TokenizerReader], path: Path) -> bool:
    """Say whether a reader recognises `path`; raise BrokenPlugin if the reader itself fails.

    `name` is the reader's name, for the error.
    """
    try:
        return reader.recognizes(path)
    except (JaxLlamaError, OSError):
        raise
    except Exception as error:
        raise BrokenPlugin(
            f"tokenizer reader {name!r} failed on {path}: {type(error).__name__}: {error}"
        ) from error
