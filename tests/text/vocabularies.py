"""Small vocabularies and the token ids that llama.cpp and SentencePiece give for them."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from jaxllama.text.from_gguf import tokenizer_from_gguf
from jaxllama.text.tokenizer import Tokenizer

GOLDEN = Path(__file__).parent / "golden.json"
BYTE_LEVEL_RULES = ("default", "gpt-2", "llama-bpe", "qwen2", "smaug-bpe", "smollm")
SCORED = ("llama", "llama-no-prefix")
CONTROL = ("<|begin_of_text|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>")
USER_DEFINED = ("[INST]", " \n\n")


@cache
def golden() -> dict[str, Any]:
    """Vocabularies, texts and ids; see make_goldens.py."""
    return json.loads(GOLDEN.read_text())


def metadata(kind: str) -> dict[str, Any]:
    """GGUF metadata of one of the small vocabularies."""
    return (
        scored_metadata(golden()["pieces"], golden()["scores"], kind)
        if kind in SCORED
        else byte_level_metadata(golden()["tokens"], golden()["merges"], kind)
    )


def byte_level_metadata(tokens: list[str], merges: list[str], rule: str) -> dict[str, Any]:
    """Byte-level BPE with the special tokens of these tests behind the vocabulary."""
    specials = (*CONTROL, *USER_DEFINED)
    return {
        "general.name": f"tiny {rule}",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": rule,
        "tokenizer.ggml.tokens": [*tokens, *specials],
        "tokenizer.ggml.token_type": [1] * len(tokens) + [3] * len(CONTROL) + [4] * 2,
        "tokenizer.ggml.merges": list(merges),
        "tokenizer.ggml.bos_token_id": len(tokens),
        "tokenizer.ggml.eos_token_id": len(tokens) + 1,
        "tokenizer.ggml.add_bos_token": False,
    }


def scored_metadata(pieces: list[str], scores: list[float], kind: str) -> dict[str, Any]:
    """SentencePiece BPE: <unk>, <s>, </s>, the 256 bytes, pieces, then special tokens."""
    extra = (*CONTROL[2:4], *USER_DEFINED)
    head = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    return {
        "general.name": f"tiny {kind}",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [*head, *pieces, *extra],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(pieces) + [3, 3, 4, 4],
        "tokenizer.ggml.scores": [0.0] * len(head) + list(scores) + [-1000.0] * len(extra),
        "tokenizer.ggml.add_space_prefix": kind == "llama",
        "tokenizer.ggml.add_bos_token": False,
    }


@cache
def tokenizer(kind: str) -> Tokenizer:
    """One of the small tokenizers; built once."""
    return tokenizer_from_gguf(metadata(kind))
