"""Tokens as basilisk makes them: no begin-of-text token, unless the text has a mark for it.

The character STX stands for the begin-of-text token and ETX for the end token, in every text;
with `special_convert`, `<s>` and `</s>` do as well. Called off the event loop.
"""

import re

from jaxllama.errors import InvalidParameter
from jaxllama.service import Model
from jaxllama.text.tokenizer import Tokenizer

BEGIN, END = "\x02", "\x03"
MARKS = re.compile(f"({BEGIN}|{END})")


def encode(model: Model, text: str, *, special_convert: bool) -> list[int]:
    """Convert a text to token ids; the characters STX and ETX become the begin and the end token.

    With `special_convert`, `<s>` and `</s>` do as well.
    """
    if special_convert:
        text = text.replace("<s>", BEGIN).replace("</s>", END)
    tokenizer = model.intake.tokenizer
    ids: list[int] = []
    for part in MARKS.split(text):
        if part == BEGIN:
            ids.append(begin_of(tokenizer))
        elif part == END:
            ids.append(tokenizer.end_ids[0])
        elif part:
            start = not ids
            ids += tokenizer.encode(part, begin=False, start=start, most=model.intake.most)
    return ids


def begin_of(tokenizer: Tokenizer) -> int:
    """Return the id of the begin-of-text token; raise InvalidParameter if the model has none."""
    if tokenizer.begin_id is None:
        raise InvalidParameter(
            "the prompt asks for a begin-of-text token, but this model has none; remove it",
            "prompt",
        )
    return tokenizer.begin_id


def fragments_of(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """Return the text of each token by itself, with the space that it may begin with."""
    return [tokenizer.decode([id_], special=True, start=False) for id_ in ids]
