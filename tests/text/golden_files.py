"""Tokenizer files and what the libraries that they come from say; see golden/make_tokenizers.py."""

import json
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

from jaxllama.text.opening import open_tokenizer
from jaxllama.text.tokenizer import Tokenizer

ZIP = Path(__file__).parents[1] / "golden/tokenizers.zip"
SENTENCEPIECE = ("llama", "gemma", "open", "ruled", "unigram", "bytes")
FILES = {
    **{kind: f"{kind}.model" for kind in SENTENCEPIECE},
    "tiktoken": "tiktoken.model",
    "llama2c": "tokenizer.bin",
}


def content(name: str) -> bytes:
    """The bytes of one of the files."""
    with zipfile.ZipFile(ZIP) as found:
        return found.read(name)


@cache
def goldens() -> dict[str, Any]:
    """Texts, and the ids of each kind."""
    return json.loads(content("ids.json"))


@cache
def built(kind: str) -> Tokenizer:
    """The tokenizer of one of the files; built once."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILES[kind]
        path.write_bytes(content(FILES[kind]))
        return open_tokenizer(path)


def write_folder(folder: Path) -> Path:
    """A Hugging Face folder with tokenizer.model and files that add tokens."""
    (folder / "tokenizer.model").write_bytes(content("llama.model"))
    for name in ("tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"):
        (folder / name).write_bytes(content(name))
    return folder
