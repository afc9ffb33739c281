"""A tokenizer without a file: every byte is a token, followed by four special tokens.

For tests that need text but no model's vocabulary. Ids are below `models.TINY.vocab_size`.
"""

import tokenizers
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from jaxllama.formats import ModelText
from jaxllama.text.specials import Special, Specials
from jaxllama.text.tokenizer import Tokenizer, TokenizerRules
from jaxllama.text.vocabulary import BYTE_LEVEL, Spelling, TokenKind, Vocabulary

BYTES = 256
BEGIN_ID, END_ID, TURN_ID, TURN_END_ID = range(BYTES, BYTES + 4)
SPECIALS = {"<s>": BEGIN_ID, "</s>": END_ID, "<|im_start|>": TURN_ID, "<|im_end|>": TURN_END_ID}


class ByteTokenizer(Tokenizer):
    """Ids 0 to 255 are bytes; 256 to 259 are <s>, </s>, <|im_start|> and <|im_end|>."""

    def __init__(self, *, adds_begin: bool = False, template: str | None = None) -> None:
        encoder = tokenizers.Tokenizer(BPE(vocab=dict(BYTE_LEVEL), merges=[]))
        encoder.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
        bytes_ = sorted(BYTE_LEVEL, key=BYTE_LEVEL.__getitem__)
        kinds = [TokenKind.NORMAL] * BYTES + [TokenKind.CONTROL] * len(SPECIALS)
        super().__init__(
            (encoder, encoder),
            Vocabulary((*bytes_, *SPECIALS), bytes(kinds), Spelling.BYTE_LEVEL),
            Specials({text: Special(id_) for text, id_ in SPECIALS.items()}, {}),
            TokenizerRules(BEGIN_ID, (END_ID, TURN_END_ID), adds_begin=adds_begin),
            ModelText(template=template, begin="<s>", end="</s>", name="bytes"),
        )
