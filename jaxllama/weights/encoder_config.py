"""Converts the JSON files of a sentence-transformers folder to an EncoderConfig.

Called by `sentence_transformers.py`. An absent field means its default in transformers. Knows the
names that each architecture gives its tensors, and reads none.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxllama.config import Activation, EncoderConfig, EncoderPooling
from jaxllama.errors import UnsupportedModel
from jaxllama.weights.fields import MAX_CONTEXT, MAX_HEADS, CheckedFields, read_layers, shown

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
# Names in pooling's config.json, as a field of its own and as value of `pooling_mode`.
POOLINGS: dict[str, EncoderPooling] = {
    "mean_tokens": "mean",
    "mean": "mean",
    "cls_token": "cls",
    "cls": "cls",
    "max_tokens": "max",
    "max": "max",
    "lasttoken": "last",
    "mean_sqrt_len_tokens": "mean_sqrt",
}
POOLING_FLAG = "pooling_mode_"
MPNET_BUCKETS = 32  # transformers uses so many, whatever a config.json says

BERT_NAMES = {
    "embed": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "types": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
    "blocks.{i}.q": "encoder.layer.{i}.attention.self.query",
    "blocks.{i}.k": "encoder.layer.{i}.attention.self.key",
    "blocks.{i}.v": "encoder.layer.{i}.attention.self.value",
    "blocks.{i}.o": "encoder.layer.{i}.attention.output.dense",
    "blocks.{i}.attention_norm": "encoder.layer.{i}.attention.output.LayerNorm",
    "blocks.{i}.up": "encoder.layer.{i}.intermediate.dense",
    "blocks.{i}.down": "encoder.layer.{i}.output.dense",
    "blocks.{i}.ffn_norm": "encoder.layer.{i}.output.LayerNorm",
}
MPNET_NAMES = BERT_NAMES | {
    "distances": "encoder.relative_attention_bias",
    "blocks.{i}.q": "encoder.layer.{i}.attention.attn.q",
    "blocks.{i}.k": "encoder.layer.{i}.attention.attn.k",
    "blocks.{i}.v": "encoder.layer.{i}.attention.attn.v",
    "blocks.{i}.o": "encoder.layer.{i}.attention.attn.o",
    "blocks.{i}.attention_norm": "encoder.layer.{i}.attention.LayerNorm",
}
DISTILBERT_NAMES = BERT_NAMES | {
    "blocks.{i}.q": "transformer.layer.{i}.attention.q_lin",
    "blocks.{i}.k": "transformer.layer.{i}.attention.k_lin",
    "blocks.{i}.v": "transformer.layer.{i}.attention.v_lin",
    "blocks.{i}.o": "transformer.layer.{i}.attention.out_lin",
    "blocks.{i}.attention_norm": "transformer.layer.{i}.sa_layer_norm",
    "blocks.{i}.up": "transformer.layer.{i}.ffn.lin1",
    "blocks.{i}.down": "transformer.layer.{i}.ffn.lin2",
    "blocks.{i}.ffn_norm": "transformer.layer.{i}.output_layer_norm",
}


@dataclass(frozen=True)
class EncoderFamily:
    """The properties of an architecture that its config.json does not state."""

    prefix: str  # of tensor names, where the encoder was saved inside a larger model
    names: Mapping[str, str] = field(default_factory=lambda: BERT_NAMES)
    padding: int | None = None  # default id, after which positions start; None: they start at 0
    token_types: int = 0  # default; 0: the architecture has none
    has_distances: bool = False  # attention is biased by the distance of tokens
    keys: Mapping[str, str] = field(default_factory=dict)  # field -> the architecture's own name


BERT = EncoderFamily("bert.", token_types=2)
ROBERTA = EncoderFamily("roberta.", padding=1, token_types=2)
FAMILIES: dict[str, EncoderFamily] = {
    "BertModel": BERT,
    "BertForMaskedLM": BERT,
    "RobertaModel": ROBERTA,
    "RobertaForMaskedLM": ROBERTA,
    "XLMRobertaModel": ROBERTA,
    "XLMRobertaForMaskedLM": ROBERTA,
    "CamembertModel": ROBERTA,
    "MPNetModel": EncoderFamily("mpnet.", MPNET_NAMES, padding=1, has_distances=True),
    "MPNetForMaskedLM": EncoderFamily("mpnet.", MPNET_NAMES, padding=1, has_distances=True),
    "DistilBertModel": EncoderFamily(
        "distilbert.",
        DISTILBERT_NAMES,
        keys={
            "hidden_size": "dim",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "intermediate_size": "hidden_dim",
            "hidden_act": "activation",
        },
    ),
}


@dataclass(frozen=True)
class SentenceSteps:
    """The steps from hidden states to a vector, as the folder's modules say."""

    pooling: EncoderPooling = "mean"
    normalizes: bool = False
    max_length: int | None = None  # tokens; None: as many as the model has positions


def encoder_family(fields: CheckedFields) -> EncoderFamily:
    """Return the encoder family of the architecture that config.json names.

    `fields` are the fields of config.json. Raise UnsupportedModel if the model is not a supported
    encoder.
    """
    stated = fields.items("architectures")
    architecture = stated[0] if stated else None
    if not isinstance(architecture, str) or architecture not in FAMILIES:
        raise UnsupportedModel(
            f"{fields.where}: architecture {shown(architecture)} is not supported as an encoder; "
            f"expected one of {', '.join(FAMILIES)}"
        )
    position = fields.text("position_embedding_type", "absolute")
    if position != "absolute":
        raise UnsupportedModel(
            f"{fields.where}: position_embedding_type is {shown(position)}; expected 'absolute'"
        )
    if fields.flag("is_decoder", False):
        raise UnsupportedModel(f"{fields.where}: is_decoder is true; expected an encoder")
    return FAMILIES[architecture]


def read_encoder_config(
    fields: CheckedFields, steps: SentenceSteps, name: str, tensors: int
) -> EncoderConfig:
    """Return the configuration of the encoder `name` from the fields of its config.json.

    `steps` say how hidden states become a vector; `tensors`, the number of tensors in the file,
    limits the number of layers.
    """
    family = encoder_family(fields)

    def key(own: str) -> str:
        return family.keys.get(own, own)

    act = fields.text(key("hidden_act"), "gelu")
    if act not in ACTIVATIONS:
        raise UnsupportedModel(
            f"{fields.where}: {key('hidden_act')} is {shown(act)}; expected one of "
            f"{', '.join(ACTIVATIONS)}"
        )
    positions = fields.whole("max_position_embeddings", 512, high=MAX_CONTEXT)
    first = 0
    if family.padding is not None:
        first = fields.whole("pad_token_id", family.padding, low=0) + 1
    most = max(1, positions - first)
    buckets = fields.whole("relative_attention_num_buckets", 32, low=4, high=4096)
    if family.has_distances and buckets != MPNET_BUCKETS:
        raise UnsupportedModel(
            f"{fields.where}: relative_attention_num_buckets is {buckets}; expected {MPNET_BUCKETS}"
        )
    types = fields.whole("type_vocab_size", family.token_types, low=0) if family.token_types else 0
    try:
        return EncoderConfig(
            vocab_size=fields.whole("vocab_size"),
            width=fields.whole(key("hidden_size")),
            layers=read_layers(fields, key("num_hidden_layers"), tensors),
            heads=fields.whole(key("num_attention_heads"), high=MAX_HEADS),
            ffn_width=fields.whole(key("intermediate_size")),
            positions=positions,
            max_length=most if steps.max_length is None else min(most, steps.max_length),
            first_position=first,
            token_types=types,
            relative_buckets=buckets if family.has_distances else 0,
            norm_eps=fields.real("layer_norm_eps", 1e-12),
            activation=ACTIVATIONS[act],
            pooling=steps.pooling,
            normalizes=steps.normalizes,
            name=name,
        )
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{fields.where}: {error}") from error


def read_pooling(fields: CheckedFields) -> EncoderPooling:
    """Return the method by which the hidden states of a text become one vector.

    `fields` are those of the pooling module's config.json. Raise UnsupportedModel unless they name
    exactly one known method.
    """
    if fields.has("pooling_mode"):
        modes = [fields.text("pooling_mode")]
    else:
        flags = [key for key in fields.values if key.startswith(POOLING_FLAG)]
        modes = [key.removeprefix(POOLING_FLAG) for key in flags if fields.flag(key, False)]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise UnsupportedModel(
            f"{fields.where}: pooling is {' and '.join(modes)[:100] or 'not stated'}; expected one "
            f"of {', '.join(POOLINGS)}"
        )
    return POOLINGS[modes[0]]


def tensor_names(family: EncoderFamily, layers: int) -> dict[str, str]:
    """Map the parameter path of every module to its name in the file.

    Paths and names lack their last part, `.weight` or `.bias`. `layers` is the number of layers.
    """
    names: dict[str, str] = {}
    for path, name in family.names.items():
        if "{i}" not in path:
            names[path] = name
            continue
        for i in range(layers):
            names[path.replace("{i}", str(i))] = name.replace("{i}", str(i))
    return names
