"""Converts params.json of Meta's folders to a ModelConfig.

Called by the Meta reader. The file omits what Meta's programs know: sizes of the feed-forward and
of some vocabularies, the trained context, and how Llama 3.1 and later stretch it. Knows no tensors
but their shapes.
"""

from collections.abc import Mapping

from jaxllama.config import ModelConfig, Rope
from jaxllama.errors import BadHeader, UnsupportedModel
from jaxllama.weights.fields import MAX_CONTEXT, MAX_HEADS, MAX_SIZE, CheckedFields, read_layers
from jaxllama.weights.meta_names import EMBEDDING, GATE, HEAD
from jaxllama.weights.stored import Shape

REFUSED = {  # fields of models that are more than a Llama
    "quantization_args": "a quantized model",
    "lora_args": "a model with adapters",
    "moe": "a mixture of experts",
    "moe_args": "a mixture of experts",
    "vision_num_layers": "a model that sees images",
    "vision_chunk_size": "a model that sees images",
    "vision_args": "a model that sees images",
    "vision_encoder": "a model that sees images",
}
ALIASES = {  # names of the same fields in Hugging Face's config.json, which some tools write
    "dim": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_layers": "num_hidden_layers",
    "norm_eps": "rms_norm_eps",
}
SCALED_CONTEXT = 131072
SCALED_ORIGINAL = 8192
SMALL_WIDTH = 3072  # Llama 3.2 1B and 3B are at most so wide; both stretch by 32, others by 8
SMALL_FACTOR, FACTOR = 32.0, 8.0
LLAMA3_THETA, CODE_THETA = 500000.0, 1e6
LLAMA1_EPS = 1e-6


def read_config(
    fields: CheckedFields, name: str, shapes: Mapping[str, Shape], shards: int
) -> ModelConfig:
    """Return the configuration of the model `name` from the fields of its params.json.

    `shapes` are those of the tensors in the first shard, `shards` is the number of shards.
    """
    for key, model in REFUSED.items():
        if fields.has(key):
            raise UnsupportedModel(
                f"{fields.where}: {key} says that this is {model}, which is not supported"
            )
    width = fields.whole(alias(fields, "dim"))
    heads = fields.whole(alias(fields, "n_heads"), high=MAX_HEADS)
    try:
        return ModelConfig(
            vocab_size=read_vocab(fields, width, shapes, shards),
            width=width,
            layers=read_layers(fields, alias(fields, "n_layers"), len(shapes)),
            heads=heads,
            kv_heads=fields.whole("n_kv_heads", heads, high=MAX_HEADS),
            head_dim=fields.whole("head_dim", max(1, width // heads), high=MAX_HEADS),
            ffn_width=read_ffn_width(fields, width, shapes, shards),
            max_context=read_context(fields),
            norm_eps=fields.real(alias(fields, "norm_eps"), 1e-5),
            rope=read_rope(fields, width),
            tied=HEAD not in shapes,
            window=fields.whole("sliding_window", high=MAX_CONTEXT)
            if fields.has("sliding_window")
            else None,
            name=name,
        )
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{fields.where}: {error}") from error


def alias(fields: CheckedFields, key: str) -> str:
    """Return `key`, or its name in Hugging Face's config.json if the file has only that."""
    return key if fields.has(key) or not fields.has(ALIASES[key]) else ALIASES[key]


def read_vocab(fields: CheckedFields, width: int, shapes: Mapping[str, Shape], shards: int) -> int:
    """Return the size of the vocabulary.

    If the file says -1, as for Llama 1 and 2, compute the size from `shapes`, those of the tensors
    in the first of `shards` shards; `width` is the length of a hidden state.
    """
    stated = fields.whole("vocab_size", -1, low=-1)
    if stated > 0:
        return stated
    embedding = shapes.get(EMBEDDING, ())
    rows = embedding[:1] if embedding[1:] != (width,) else (embedding[0] * shards,)
    if HEAD in shapes:
        rows = tuple(size * shards for size in shapes[HEAD][:1])
    if stated == 0 or not rows or not 1 <= rows[0] <= MAX_SIZE:
        raise BadHeader(
            f"{fields.where}: vocab_size is {stated}, and the embedding has shape "
            f"{list(embedding)}; expected a positive number, or -1 and an embedding"
        )
    return rows[0]


def read_ffn_width(
    fields: CheckedFields, width: int, shapes: Mapping[str, Shape], shards: int
) -> int:
    """Return the width of the feed-forward: as stated, else by Meta's rule, else from `shapes`.

    Meta's rule: 8/3 of `width`, times `ffn_dim_multiplier`, rounded up to a multiple of
    `multiple_of`. `width` is the length of a hidden state; `shapes` are those of the tensors in the
    first of `shards` shards.
    """
    if fields.has("hidden_dim"):
        return fields.whole("hidden_dim")
    if not fields.has("multiple_of"):
        return max(shapes.get(GATE, ())[:1], default=0) * shards
    multiple = fields.whole("multiple_of")
    factor = fields.real("ffn_dim_multiplier", 1.0, above=0)
    found = -(-int(min(factor, MAX_SIZE) * int(8 * width / 3)) // multiple) * multiple
    if not 1 <= found <= MAX_SIZE:
        raise BadHeader(
            f"{fields.where}: multiple_of {multiple} and ffn_dim_multiplier {factor:g} make a "
            f"feed-forward {found} wide; expected at most {MAX_SIZE}"
        )
    return found


def read_context(fields: CheckedFields) -> int:
    """Return the model's context length; if the file lacks it, infer it from the Llama version."""
    if fields.has("max_seq_len"):
        return fields.whole("max_seq_len", high=MAX_CONTEXT)
    theta = fields.real("rope_theta", 10000.0)
    if fields.flag("use_scaled_rope", False):
        return SCALED_CONTEXT
    if theta >= CODE_THETA:
        return 16384
    if theta >= LLAMA3_THETA:
        return SCALED_ORIGINAL
    return 2048 if fields.real(alias(fields, "norm_eps"), 1e-5) <= LLAMA1_EPS else 4096


def read_rope(fields: CheckedFields, width: int) -> Rope:
    """Return the rotary embedding; with `use_scaled_rope`, it follows Llama 3.1's scaling rule.

    The default factor of the rule depends on `width`, the length of a hidden state.
    """
    theta = fields.real("rope_theta", 10000.0, above=1)
    if not fields.flag("use_scaled_rope", False):
        return Rope(theta)
    usual = SMALL_FACTOR if width <= SMALL_WIDTH else FACTOR
    factor = fields.real("rope_scaling_factor", usual, above=0)
    return Rope(theta, "llama3", factor, original_context=SCALED_ORIGINAL)
