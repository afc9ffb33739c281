"""Builds the tokenizer of Llama 3 from a tiktoken file: one base64 token and its rank per line.

Called by the readers of `tokenizer.model` files. The file says neither how text is split into words
nor which special tokens follow its tokens; Llama 3 and later releases are the models whose
`tokenizer.model` has this form, so both are theirs.
"""

import base64
import binascii
from pathlib import Path

import tokenizers
from tokenizers.models import BPE

from jaxllama.errors import BadTokenizer
from jaxllama.formats import ModelText
from jaxllama.text.files import read_vocabulary
from jaxllama.text.pretokenize import find_cutting
from jaxllama.text.scored import merges_of
from jaxllama.text.specials import Special, Specials
from jaxllama.text.tokenizer import (
    Tokenizer,
    TokenizerParts,
    TokenizerRules,
    find_end_ids,
    library_errors,
)
from jaxllama.text.vocabulary import Spelling, TokenKind, Vocabulary, byte_level_encode

BYTES = 256
MAX_TOKENS = 1 << 20
NUM_SPECIAL = 256
BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"
# In the order of their ids; Llama 3.0 reserves places where 3.1 has more.
NAMED = (
    *(BEGIN, END, "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"),
    *("<|finetune_right_pad_id|>", "<|step_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eom_id|>", "<|eot_id|>", "<|python_tag|>"),
)
SPECIAL = (
    *NAMED,
    *(f"<|reserved_special_token_{2 + place}|>" for place in range(NUM_SPECIAL - len(NAMED))),
)
# Files of other models have the same form, but other words and special tokens.
FOREIGN = {
    50256: "r50k_base (GPT-2)",
    50280: "p50k_base",
    100256: "cl100k_base (GPT-4)",
    151643: "Qwen",
    199998: "o200k_base (GPT-4o)",
    200000: "Llama 4",
}


def tokenizer_from_tiktoken(path: Path) -> Tokenizer:
    """Build the tokenizer of a tiktoken file; raise BadTokenizer if that fails."""
    return tiktoken_parts(path).build()


def tiktoken_parts(path: Path) -> TokenizerParts:
    """Return the parts of a file's tokenizer, to which a caller may add tokens and rules."""
    tokens = read_tokens(read_vocabulary(path), str(path))
    ranks = {byte_level_encode(token): rank for rank, token in enumerate(tokens)}
    cutting = find_cutting("llama-bpe")
    merges = merges_of({text: -rank for text, rank in ranks.items()})
    with library_errors(f"{path}: the tokens do not build a vocabulary"):
        encoder = tokenizers.Tokenizer(BPE(ranks, merges, ignore_merges=cutting.ignores_merges))
    encoder.pre_tokenizer = cutting.build()
    vocabulary = Vocabulary(
        (*ranks, *SPECIAL),
        bytes([TokenKind.NORMAL]) * len(ranks) + bytes([TokenKind.CONTROL]) * NUM_SPECIAL,
        Spelling.BYTE_LEVEL,
    )
    specials = {text: len(ranks) + place for place, text in enumerate(SPECIAL)}
    return TokenizerParts(
        encoder,
        vocabulary,
        Specials({text: Special(token) for text, token in specials.items()}, {}),
        TokenizerRules(
            begin_id=specials[BEGIN],
            end_ids=find_end_ids([specials[END]], vocabulary),
            adds_begin=True,
        ),
        ModelText(
            begin=BEGIN, end=END, name=path.resolve().parent.name, special=frozenset(specials)
        ),
    )


def read_tokens(raw: bytes, where: str) -> list[bytes]:
    """Return the bytes of all tokens, in the order of their ranks.

    Raise BadTokenizer, naming `where`, unless ranks have no gaps, tokens differ, and every single
    byte is a token.
    """
    found: dict[int, bytes] = {}
    for number, line in enumerate(raw.splitlines(), 1):
        if not line:
            continue
        token, rank = read_line(line, f"{where}, line {number}")
        if found.setdefault(rank, token) != token or len(found) > MAX_TOKENS:
            raise BadTokenizer(
                f"{where}, line {number}: rank {rank} is the {len(found)}. or is given twice; "
                f"expected at most {MAX_TOKENS} different ones"
            )
    count = len(found)
    if count in FOREIGN:
        raise BadTokenizer(
            f"{where} has {count} tokens, as the vocabulary {FOREIGN[count]}; of tiktoken's files "
            f"only those of Llama 3 are supported (use the model's tokenizer.json)"
        )
    tokens = [found[rank] for rank in range(count) if rank in found]
    different = set(tokens)
    if len(tokens) != count or len(different) != count:
        raise BadTokenizer(
            f"{where}: {count} lines have {len(tokens)} of the ranks 0 to {count - 1}, and "
            f"{len(different)} different tokens; expected {count}"
        )
    missing = [byte for byte in range(BYTES) if bytes((byte,)) not in different]
    if missing:
        raise BadTokenizer(
            f"{where}: {len(missing)} single bytes are no token, the first is {missing[0]}; "
            f"expected all {BYTES}"
        )
    return tokens


def read_line(line: bytes, where: str) -> tuple[bytes, int]:
    """Return the bytes and the rank of the token in one line.

    Raise BadTokenizer, naming `where`, if the line is malformed.
    """
    text, _, number = line.partition(b" ")
    try:
        token = base64.b64decode(text, validate=True)
    except binascii.Error:
        token = b""
    if not token or not number.isdigit() or len(number) > len(str(MAX_TOKENS)):
        raise BadTokenizer(f"{where} is {line[:60]!r}; expected a token in base64 and its rank")
    return token, int(number)
