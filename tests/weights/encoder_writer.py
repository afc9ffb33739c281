"""Writes tiny encoders as sentence-transformers saves them, with random weights.

Called by tests and by `tests/golden/make_encoders.py`. Shares no name table with the reader: names
are spelled here as transformers spells them.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from safetensors.numpy import save_file
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

WIDTH, INNER, LAYERS, HEADS, POSITIONS, LONGEST = 32, 48, 2, 4, 40, 32
KINDS = ("bert", "roberta", "mpnet", "distilbert")
ARCHITECTURES = {
    "bert": "BertModel",
    "roberta": "XLMRobertaModel",
    "mpnet": "MPNetModel",
    "distilbert": "DistilBertModel",
}
MODEL_TYPES = {"roberta": "xlm-roberta"}
POOLINGS = {"bert": "mean_tokens", "roberta": "cls_token", "mpnet": "mean_tokens"}
POOLINGS["distilbert"] = "max_tokens"
NORMALIZING = ("bert", "mpnet")
PROMPTS = {"query": "find: ", "passage": ""}
BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROBERTA_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?':-"
WORDS = ("the", "cat", "sleeps", "market", "a", "find", "##s", "##ing")
TEXTS = (
    "The cat sleeps.",
    "A market, a cat: the cat!",
    "find the cats",
    "x",
    "Ünïcödé and 42 unknown ☃ signs",
    "the market " * 7,
)


def write_encoder(folder: Path, kind: str = "bert", **changes: Any) -> Path:
    """A folder as SentenceTransformer.save leaves it; `changes` replace fields of config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    size = write_tokenizer(folder, kind)
    save_file(tensors(kind, size), folder / "model.safetensors", {"format": "pt"})
    write(folder / "config.json", config(kind, size) | changes)
    write(folder / "sentence_bert_config.json", {"max_seq_length": LONGEST, "do_lower_case": False})
    write(folder / "config_sentence_transformers.json", {"prompts": PROMPTS})
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
    flags = {f"pooling_mode_{mode}": mode == POOLINGS[kind] for mode in modes}
    (folder / "1_Pooling").mkdir(exist_ok=True)
    write(folder / "1_Pooling/config.json", {"word_embedding_dimension": WIDTH} | flags)
    steps = ["Transformer", "Pooling", *(["Normalize"] if kind in NORMALIZING else [])]
    write(folder / "modules.json", [module(i, step) for i, step in enumerate(steps)])
    return folder


def module(number: int, step: str) -> dict[str, Any]:
    path = f"{number}_{step}" if number else ""
    kind = f"sentence_transformers.models.{step}"
    return {"idx": number, "name": str(number), "path": path, "type": kind}


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def specials(kind: str) -> tuple[str, ...]:
    return ROBERTA_SPECIALS if kind in ("roberta", "mpnet") else BERT_SPECIALS


def vocabulary(kind: str) -> dict[str, int]:
    tokens = [*specials(kind), *LETTERS, *(f"##{letter}" for letter in LETTERS), *WORDS]
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


def write_tokenizer(folder: Path, kind: str) -> int:
    """tokenizer.json with padding and truncation, as published ones have; returns its size."""
    ids, named = vocabulary(kind), specials(kind)
    first, last, unknown = (
        ("<s>", "</s>", "<unk>")
        if named is ROBERTA_SPECIALS
        else (
            "[CLS]",
            "[SEP]",
            "[UNK]",
        )
    )
    library = tokenizers.Tokenizer(WordPiece(ids, unk_token=unknown))
    library.normalizer = BertNormalizer(lowercase=True)
    library.pre_tokenizer = BertPreTokenizer()
    library.post_processor = TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=[(first, ids[first]), (last, ids[last])]
    )
    library.add_special_tokens(list(named))
    pad = "<pad>" if named is ROBERTA_SPECIALS else "[PAD]"
    library.enable_padding(pad_id=ids[pad], pad_token=pad, length=16)
    library.enable_truncation(12)
    library.save(str(folder / "tokenizer.json"))
    write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": LONGEST,
            "pad_token": pad,
            "unk_token": unknown,
            "cls_token": first,
            "sep_token": last,
            "mask_token": named[-1],
        },
    )
    return len(ids)


def config(kind: str, vocab: int) -> dict[str, Any]:
    """config.json."""
    said = {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": MODEL_TYPES.get(kind, kind),
        "vocab_size": vocab,
        "max_position_embeddings": POSITIONS,
        "pad_token_id": 1 if kind in ("roberta", "mpnet") else 0,
    }
    if kind == "distilbert":
        sizes = {"dim": WIDTH, "hidden_dim": INNER, "n_layers": LAYERS, "n_heads": HEADS}
        return said | sizes | {"activation": "gelu"}
    sizes = {
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "hidden_act": "gelu_new" if kind == "roberta" else "gelu",
        "layer_norm_eps": 1e-5 if kind == "roberta" else 1e-12,
    }
    if kind == "mpnet":
        return said | sizes | {"relative_attention_num_buckets": 32}
    return said | sizes | {"type_vocab_size": 1 if kind == "roberta" else 2}


def shapes(kind: str, vocab: int) -> dict[str, tuple[int, ...]]:
    """Every tensor's shape by transformers' name, without the ones of no use."""
    found: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (vocab, WIDTH),
        "embeddings.position_embeddings.weight": (POSITIONS, WIDTH),
        "embeddings.LayerNorm.weight": (WIDTH,),
        "embeddings.LayerNorm.bias": (WIDTH,),
    }
    if kind in ("bert", "roberta"):
        types = 1 if kind == "roberta" else 2
        found["embeddings.token_type_embeddings.weight"] = (types, WIDTH)
    if kind == "mpnet":
        found["encoder.relative_attention_bias.weight"] = (32, HEADS)
    for layer in range(LAYERS):
        for name, shape in layer_shapes(kind).items():
            root = "transformer" if kind == "distilbert" else "encoder"
            found[f"{root}.layer.{layer}.{name}.weight"] = shape
            found[f"{root}.layer.{layer}.{name}.bias"] = shape[:1]
    return found


def layer_shapes(kind: str) -> dict[str, tuple[int, ...]]:
    square, up, down, norm = (WIDTH, WIDTH), (INNER, WIDTH), (WIDTH, INNER), (WIDTH,)
    if kind == "distilbert":
        parts = {f"attention.{name}_lin": square for name in ("q", "k", "v", "out")}
        rest = {"sa_layer_norm": norm, "ffn.lin1": up, "ffn.lin2": down, "output_layer_norm": norm}
        return parts | rest
    rest = {"intermediate.dense": up, "output.dense": down, "output.LayerNorm": norm}
    if kind == "mpnet":
        parts = {f"attention.attn.{name}": square for name in "qkvo"}
        return parts | {"attention.LayerNorm": norm} | rest
    parts = {f"attention.self.{name}": square for name in ("query", "key", "value")}
    return parts | {"attention.output.dense": square, "attention.output.LayerNorm": norm} | rest


def tensors(kind: str, vocab: int) -> dict[str, np.ndarray]:
    """Seeded weights, large enough for every part to matter."""
    random = np.random.RandomState(7)  # its numbers never change
    found = {}
    for name, shape in shapes(kind, vocab).items():
        noise = random.standard_normal(shape)
        is_norm = "norm" in name.lower()
        if is_norm and name.endswith("weight"):
            value = 1 + 0.2 * noise
        elif len(shape) == 1:
            value = 0.2 * noise
        elif "embeddings" in name or "relative" in name:
            value = noise
        else:
            value = 1.5 * noise / np.sqrt(shape[-1])
        found[name] = value.astype(np.float32)
    return found
