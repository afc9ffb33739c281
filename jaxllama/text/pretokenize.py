"""Pre-tokenizers: rules that split text into words before byte-pair merging, by their GGUF name.

Called by `from_gguf.py`. Knows regular expressions; must not know vocabularies. The expressions
come from the models' own tokenizer files; llama.cpp writes some of them differently.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split

from jaxllama.errors import BadTokenizer

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
MARKS_AND_SPACES = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{CONTRACTIONS}|{WORDS}|\p{{N}}{{1,3}}|{MARKS_AND_SPACES}"
QWEN2 = rf"{CONTRACTIONS}|{WORDS}|\p{{N}}|{MARKS_AND_SPACES}"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Cutting:
    """One rule that splits text into words, with the tokenizer settings that go with it."""

    build: Callable[[], PreTokenizer]
    ignores_merges: bool = False  # a whole word that is in the vocabulary is one token
    adds_begin: bool = False


def cut_by(*expressions: str) -> PreTokenizer:
    """Return a pre-tokenizer that splits text by each regular expression in turn.

    Matches and the text between matches both become words, written in byte-level characters.
    """
    cuts = [Split(Regex(expression), "isolated") for expression in expressions]
    return Sequence([*cuts, ByteLevel(add_prefix_space=False, use_regex=False)])


def cut_single_digits() -> PreTokenizer:
    """Return a pre-tokenizer that makes a word of every digit, then splits by GPT-2's rule."""
    return Sequence([Digits(individual_digits=True), cut_by(GPT2)])


def cut_as_default() -> PreTokenizer:
    """Return llama.cpp's default pre-tokenizer: it cuts punctuation, words and digit triples."""
    return cut_by(r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")


CUTTINGS = {
    "default": Cutting(cut_as_default),
    "gpt-2": Cutting(lambda: cut_by(GPT2)),
    "llama-bpe": Cutting(lambda: cut_by(LLAMA3), ignores_merges=True, adds_begin=True),
    "qwen2": Cutting(lambda: cut_by(QWEN2)),
    "smaug-bpe": Cutting(lambda: cut_by(LLAMA3)),
    "smollm": Cutting(cut_single_digits),
}

ALIASES = {
    "a.x-4.0": "gpt-2",
    "codeshell": "smollm",
    "command-r": "smollm",
    "dbrx": "smaug-bpe",
    "deepseek-r1-qwen": "qwen2",
    "exaone": "smollm",
    "exaone4": "gpt-2",
    "f2llmv2": "qwen2",
    "falcon-h1": "llama-bpe",
    "falcon3": "llama-bpe",
    "gigachat": "gpt-2",
    "gpt2": "gpt-2",
    "granite-docling": "gpt-2",
    "hunyuan": "qwen2",
    "jais": "gpt-2",
    "kormo": "qwen2",
    "lfm2": "llama-bpe",
    "llama-v3": "llama-bpe",
    "llama3": "llama-bpe",
    "megrez": "qwen2",
    "mellum": "gpt-2",
    "midm-2.0": "llama-bpe",
    "minerva-7b": "smollm",
    "mpt": "gpt-2",
    "olmo": "gpt-2",
    "phi-2": "gpt-2",
    "pixtral": "llama-bpe",
    "refact": "smollm",
    "solar-open": "qwen2",
    "stablelm2": "qwen2",
    "starcoder": "smollm",
    "trillion": "gpt-2",
}


def find_cutting(name: str) -> Cutting:
    """Return the rule that splits text into words and has the name `name` in GGUF files.

    Raise BadTokenizer, which lists the known names, if there is no such rule.
    """
    found = CUTTINGS.get(ALIASES.get(name, name))
    if found is None:
        known = ", ".join(sorted({*CUTTINGS, *ALIASES}))
        raise BadTokenizer(
            f"tokenizer.ggml.pre is {name!r}; known pre-tokenizers are {known}: convert the model "
            f"to a folder with tokenizer.json, or to one of these"
        )
    return found
