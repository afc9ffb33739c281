"""Tokenizer files: bounded reads of regular files, with one error class.

Called by the tokenizer readers. Knows bytes, UTF-8 and JSON; no kind of tokenizer.
"""

import json
import os
from pathlib import Path
from typing import Any

from jaxllama.errors import BadTokenizer

MAX_SIDE_FILE = 16 << 20  # bytes of a JSON file or template
MAX_VOCABULARY = 16 << 20  # bytes of a tokenizer.model or tokenizer.bin; the largest take 5 MB
MAX_HEAD = 64 << 10  # bytes that a recogniser reads


def read_vocabulary(path: Path) -> bytes:
    """Return all bytes of a vocabulary file; raise BadTokenizer if it is absent or too long."""
    raw = read_bytes(path, MAX_VOCABULARY)
    if raw is None:
        raise BadTokenizer(f"{path} is missing; expected a tokenizer file")
    return raw


def read_head(path: Path) -> tuple[bytes, bool]:
    """Return the first MAX_HEAD bytes of a file, and whether the file has no more.

    For anything but a regular file: no bytes, and True.
    """
    if not path.is_file():
        return b"", True
    with path.open("rb") as file:
        raw = file.read(MAX_HEAD + 1)
    return raw[:MAX_HEAD], len(raw) <= MAX_HEAD


def read_bytes(path: Path, longest: int) -> bytes | None:
    """Return all bytes of a file; None if it is absent.

    Raise BadTokenizer if it is no regular file, has more than `longest` bytes or cannot be read.
    """
    try:
        if not path.exists():
            return None
        if not path.is_file():  # reading a pipe or a device may never end
            raise BadTokenizer(f"{path} is no regular file")
        with path.open("rb") as file:
            # Python takes memory for all bytes that are asked for before it reads one.
            raw = file.read(min(longest, os.fstat(file.fileno()).st_size) + 1)
    except (OSError, ValueError) as error:
        raise BadTokenizer(f"{path} cannot be read: {error}") from error
    if len(raw) > longest:
        raise BadTokenizer(f"{path} has more than {longest} bytes, the most that is read")
    return raw


def read_text(path: Path, longest: int) -> str | None:
    """Return the text of a UTF-8 file of at most `longest` bytes; None if it is absent."""
    raw = read_bytes(path, longest)
    if raw is None:
        return None
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise BadTokenizer(f"{path} cannot be read: {error}") from error


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; {} if the file is absent.

    Raise BadTokenizer if the file is too long or holds anything else.
    """
    text = read_text(path, MAX_SIDE_FILE)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadTokenizer(f"{path} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadTokenizer(f"{path} holds a {type(value).__name__}; expected an object")
    return value
