"""Checks the token ids of a tokenizer.json, because the tokenizers library changes wrong ids.

Called by `from_json.py`. The library gives an added token a new id, without an error, if the
file's id is taken or leaves a gap. The weights still mean the file's id, so an end token of such a
file would never end an answer.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers

from jaxllama.errors import BadTokenizer

REMEDY = "fetch the file again, or one of the same model"
ADDED = re.compile(r'"added_tokens"\s*:\s*(?=\[)')


def check_ids(serialized: str, path: Path, encoder: tokenizers.Tokenizer) -> None:
    """Raise BadTokenizer unless every token has a unique id, equal to its id in the file.

    `serialized` is the text of the tokenizer.json at `path`, `encoder` the tokenizer that the
    library built from it.
    """
    owners: dict[int, str] = {}
    for text, token in encoder.get_vocab(with_added_tokens=False).items():
        claim_id(owners, token, text, path)
    for text, token in added_tokens(serialized):
        claim_id(owners, token, text, path)
        given = encoder.token_to_id(text)
        if given != token:
            raise BadTokenizer(
                f"{path}: added token {text!r:.60} has id {token}; expected {given}, the next id "
                f"after the tokens before it ({REMEDY})"
            )


def claim_id(owners: dict[int, str], token: int, text: str, path: Path) -> None:
    """Record in `owners` that id `token` belongs to the token `text`.

    Raise BadTokenizer, naming `path`, if it already belongs to another token.
    """
    if owners.setdefault(token, text) != text:
        raise BadTokenizer(
            f"{path}: tokens {owners[token]!r:.60} and {text!r:.60} both have id {token}; "
            f"expected different ids ({REMEDY})"
        )


def added_tokens(serialized: str) -> Iterator[tuple[str, int]]:
    """Yield text and id of every entry of `added_tokens` in the text of a tokenizer.json."""
    found = ADDED.search(serialized)
    if found is None:
        return
    entries: list[Any]
    entries, _ = json.JSONDecoder().raw_decode(serialized, found.end())
    for entry in entries:  # the library has read them, so they have both fields
        yield entry["content"], entry["id"]
