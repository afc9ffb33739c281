"""The table of architectures: what each means by its configuration, and how its files differ.

Read by the readers of GGUF files and Hugging Face folders. To add an architecture, add one entry to
ARCHITECTURES; a property that no other model has yet also needs a field in ModelConfig and code in
`model/`. Opens no file.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from jaxllama.config import Activation, LayerSpec, ModelConfig, Norms, QkNorm
from jaxllama.errors import UnsupportedModel
from jaxllama.weights.encoder_config import FAMILIES as ENCODERS
from jaxllama.weights.fields import shown
from jaxllama.weights.layout import TRANSPOSED, Shift
from jaxllama.weights.rules import Rule, Stack, TensorPart, numbered


@dataclass(frozen=True)
class ExpertNames:
    """The names of a mixture of experts in a Hugging Face folder."""

    count: str  # the field with their number
    width: str  # and with the width of one
    block: str  # the module in a layer
    matrices: tuple[str, str, str]  # gate, up and down
    default_count: int
    default_used: int
    default_width: int
    normed: bool  # default of norm_topk_prob


@dataclass(frozen=True)
class Architecture:
    """One model family. Numbers are defaults for fields that config.json may omit."""

    title: str
    class_name: str  # in config.json: architectures
    model_type: str  # in config.json
    gguf: str  # general.architecture; Mistral and Mixtral are saved as llama
    max_context: int
    kv_heads: int | None = None  # None: as many as query heads
    head_dim: int | None = None  # None: width / heads
    norm_eps: float = 1e-6
    theta: float = 10000.0
    tied: bool = False
    qkv_bias: bool | None = None  # None: attention_bias says
    out_bias: bool | None = None
    may_bias_ffn: bool = False
    qk_norm: bool = False
    qk_norm_over: QkNorm = "head"
    norms: Norms = "before"
    activation: Activation = "silu"
    scales_embedding: bool = False  # by the root of the width
    has_multipliers: bool = False  # of embedding, residuals, scores and logits
    query_scalar: int | None = None  # scores are divided by the root of it; None: of the head size
    attention_cap: float | None = None
    logit_cap: float | None = None
    has_window: bool = False
    asks_for_window: bool = False  # the window counts only if use_sliding_window says so
    window: int | None = None
    full_every: int = 0  # each so many-th layer has no window
    local_theta: float | None = None  # rotary base of layers with a window
    unrotated_every: int = 0  # each so many-th layer has no rotary embedding
    may_rotate_part: bool = False
    experts: ExpertNames | None = None
    adds_one: bool = False  # Hugging Face folders store norms as w - 1
    fused: bool = False  # queries, keys and values are one matrix, gate and up another
    paired: bool = False  # GGUF files keep rotated numbers of a head side by side
    gguf_wide_queries: int = 0  # with so many layers, scores are divided by root(width / heads)


MIXTRAL_NAMES = ExpertNames(
    count="num_local_experts",
    width="intermediate_size",
    block="block_sparse_moe",
    matrices=("w1", "w3", "w2"),
    default_count=8,
    default_used=2,
    default_width=14336,
    normed=True,
)
QWEN_NAMES = ExpertNames(
    count="num_experts",
    width="moe_intermediate_size",
    block="mlp",
    matrices=("gate_proj", "up_proj", "down_proj"),
    default_count=128,
    default_used=8,
    default_width=768,
    normed=False,
)
GEMMA = Architecture(
    title="Gemma",
    class_name="GemmaForCausalLM",
    model_type="gemma",
    gguf="gemma",
    max_context=8192,
    head_dim=256,
    tied=True,
    activation="gelu_tanh",
    scales_embedding=True,
    adds_one=True,
)
GEMMA2 = replace(
    GEMMA,
    title="Gemma 2",
    class_name="Gemma2ForCausalLM",
    model_type="gemma2",
    gguf="gemma2",
    kv_heads=4,
    norms="around",
    query_scalar=256,
    attention_cap=50.0,
    logit_cap=30.0,
    has_window=True,
    window=4096,
    full_every=2,
    gguf_wide_queries=46,
)

ARCHITECTURES = (
    Architecture(
        title="Llama",
        class_name="LlamaForCausalLM",
        model_type="llama",
        gguf="llama",
        max_context=2048,
        may_bias_ffn=True,
        paired=True,
    ),
    Architecture(
        title="Mistral",
        class_name="MistralForCausalLM",
        model_type="mistral",
        gguf="llama",
        max_context=131072,
        kv_heads=8,
        qkv_bias=False,
        out_bias=False,
        has_window=True,
        window=4096,
        paired=True,
    ),
    Architecture(
        title="Qwen2",
        class_name="Qwen2ForCausalLM",
        model_type="qwen2",
        gguf="qwen2",
        max_context=32768,
        kv_heads=32,
        qkv_bias=True,
        out_bias=False,
        has_window=True,
        asks_for_window=True,
        window=4096,
    ),
    Architecture(
        title="Qwen3",
        class_name="Qwen3ForCausalLM",
        model_type="qwen3",
        gguf="qwen3",
        max_context=32768,
        kv_heads=32,
        head_dim=128,
        qk_norm=True,
        has_window=True,
        asks_for_window=True,
        window=4096,
    ),
    Architecture(
        title="SmolLM3",
        class_name="SmolLM3ForCausalLM",
        model_type="smollm3",
        gguf="smollm3",
        max_context=32768,
        kv_heads=4,
        theta=2e6,
        tied=True,
        may_bias_ffn=True,
        has_window=True,
        asks_for_window=True,
        unrotated_every=4,
        paired=True,
    ),
    Architecture(
        title="Phi-3",
        class_name="Phi3ForCausalLM",
        model_type="phi3",
        gguf="phi3",
        max_context=4096,
        norm_eps=1e-5,
        qkv_bias=False,
        out_bias=False,
        has_window=True,
        may_rotate_part=True,
        fused=True,
    ),
    GEMMA,
    GEMMA2,
    replace(
        GEMMA2,
        title="Gemma 3",
        class_name="Gemma3ForCausalLM",
        model_type="gemma3_text",
        gguf="gemma3",
        max_context=131072,
        theta=1e6,
        qk_norm=True,
        attention_cap=None,
        logit_cap=None,
        full_every=6,
        local_theta=10000.0,
        gguf_wide_queries=62,
    ),
    Architecture(
        title="OLMo 2",
        class_name="Olmo2ForCausalLM",
        model_type="olmo2",
        gguf="olmo2",
        max_context=2048,
        norm_eps=1e-5,
        qk_norm=True,
        qk_norm_over="all",
        norms="after",
    ),
    Architecture(
        title="Granite",
        class_name="GraniteForCausalLM",
        model_type="granite",
        gguf="granite",
        max_context=2048,
        has_multipliers=True,
        may_bias_ffn=True,
        paired=True,
    ),
    Architecture(
        title="Mixtral",
        class_name="MixtralForCausalLM",
        model_type="mixtral",
        gguf="llama",
        max_context=131072,
        kv_heads=8,
        norm_eps=1e-5,
        theta=1e6,
        qkv_bias=False,
        out_bias=False,
        has_window=True,
        experts=MIXTRAL_NAMES,
        paired=True,
    ),
    Architecture(
        title="Qwen3-MoE",
        class_name="Qwen3MoeForCausalLM",
        model_type="qwen3_moe",
        gguf="qwen3moe",
        max_context=32768,
        kv_heads=4,
        qk_norm=True,
        has_window=True,
        asks_for_window=True,
        window=4096,
        experts=QWEN_NAMES,
    ),
)

# Known architectures that are not supported, by any of their names, and what they need.
EXPERTS_OF_ITS_OWN = "shared experts or another router"
IMAGES = "images; the text model alone is supported as a GGUF file"
LACKING = {
    "deepseek2": "latent attention",
    "DeepseekV2ForCausalLM": "latent attention",
    "DeepseekV3ForCausalLM": "latent attention",
    "falcon": "layer norms and parallel blocks",
    "FalconForCausalLM": "layer norms and parallel blocks",
    "Gemma3ForConditionalGeneration": IMAGES,
    "gemma3": IMAGES,
    "gemma3n": "per-layer embeddings",
    "Gemma3nForConditionalGeneration": "per-layer embeddings",
    "gpt2": "layer norms and learned positions",
    "GPT2LMHeadModel": "layer norms and learned positions",
    "gpt-oss": "attention sinks",
    "GptOssForCausalLM": "attention sinks",
    "granitemoe": EXPERTS_OF_ITS_OWN,
    "GraniteMoeForCausalLM": EXPERTS_OF_ITS_OWN,
    "llama4": "chunked attention and shared experts",
    "Llama4ForConditionalGeneration": "chunked attention and shared experts",
    "mamba": "state space layers",
    "MambaForCausalLM": "state space layers",
    "olmo": "layer norms without weights",
    "OlmoForCausalLM": "layer norms without weights",
    "phi2": "layer norms and parallel blocks",
    "PhiForCausalLM": "layer norms and parallel blocks",
    "phimoe": EXPERTS_OF_ITS_OWN,
    "PhimoeForCausalLM": EXPERTS_OF_ITS_OWN,
    "qwen2moe": "shared experts",
    "Qwen2MoeForCausalLM": "shared experts",
    "qwen3next": "linear attention",
    "Qwen3NextForCausalLM": "linear attention",
}


def by_class_name(name: object, where: str) -> Architecture:
    """Return the architecture with the class name `name`, as config.json gives it.

    Raise UnsupportedModel if no supported architecture has that name; the error names the file
    `where`.
    """
    found = next((each for each in ARCHITECTURES if each.class_name == name), None)
    if found is None:
        raise unsupported(name, where, (each.class_name for each in ARCHITECTURES))
    return found


def by_gguf_name(name: object, where: str) -> Architecture:
    """Return the first architecture whose `general.architecture` in GGUF files is `name`.

    Raise UnsupportedModel if there is none; the error names the file `where`.
    """
    found = next((each for each in ARCHITECTURES if each.gguf == name), None)
    if found is None:
        raise unsupported(name, where, dict.fromkeys(each.gguf for each in ARCHITECTURES))
    return found


def class_name_of(model_type: str) -> str | None:
    """Return the class name, such as LlamaForCausalLM, for a `model_type` of config.json.

    An unknown type is returned unchanged; an empty type gives None.
    """
    names = {each.model_type: each.class_name for each in ARCHITECTURES}
    return names.get(model_type, model_type or None)


def family_of(config: ModelConfig) -> Architecture:
    """Return the architecture to name in the file when a model with this configuration is written.

    The architecture may be unable to describe some properties of the model. So the writer must
    read the file back and compare the configurations.
    """
    return by_class_name(class_name_for(config), config.name)


def class_name_for(config: ModelConfig) -> str:
    """Return the class name of the first architecture that can describe the model's properties.

    This is LlamaForCausalLM unless a property needs another one.
    """
    has_multipliers = config.residual_scale != 1.0 or config.logit_scale != 1.0
    is_scaled = config.embed_scale != 1.0 or config.query_scale is not None
    choices = {
        "Qwen3MoeForCausalLM": config.experts is not None and config.qk_norm,
        "MixtralForCausalLM": config.experts is not None,
        "Olmo2ForCausalLM": config.norms == "after",
        "Gemma3ForCausalLM": config.norms == "around" and config.qk_norm,
        "Gemma2ForCausalLM": config.norms == "around",
        "GemmaForCausalLM": config.activation == "gelu_tanh",
        "GraniteForCausalLM": has_multipliers or is_scaled,
        "Phi3ForCausalLM": config.rotary_dim is not None or config.rope.scaled_factors,
        "SmolLM3ForCausalLM": not all(spec.rotated for spec in config.pattern),
        "Qwen3ForCausalLM": config.qk_norm,
        "Qwen2ForCausalLM": config.qkv_bias and not config.out_bias,
        "MistralForCausalLM": config.window is not None,
    }
    return next((name for name, suits in choices.items() if suits), "LlamaForCausalLM")


def unsupported(name: object, where: str, expected: Iterable[str]) -> UnsupportedModel:
    """Return the error that the architecture `name` in the file `where` is not supported.

    `expected` are the supported names, which the message lists.
    """
    if str(name) in ENCODERS:
        return UnsupportedModel(
            f"{where}: architecture {shown(name)} makes vectors of texts, and no text; give the "
            f"model to `jaxllama serve --embedding-model`"
        )
    lacking = LACKING.get(str(name))
    return UnsupportedModel(
        f"{where}: architecture {shown(name)} is not supported"
        f"{f' ({lacking})' if lacking else ''}; expected one of {', '.join(expected)}"
    )


def pattern_of(specs: list[LayerSpec]) -> tuple[LayerSpec, ...]:
    """Return the shortest pattern of layers that gives `specs` when it is repeated.

    The last repetition may be incomplete.
    """
    for size in range(1, len(specs)):
        if all(spec == specs[i % size] for i, spec in enumerate(specs)):
            return tuple(specs[:size])
    return tuple(specs)


# Rules that change the readers' tables.


def fused_rules(config: ModelConfig, qkv: str, gate_up: str) -> dict[str, Rule]:
    """Return the rules that read projections from fused matrices, by parameter path.

    `qkv` and `gate_up` are the names of the fused matrices in the file, with `{i}` for the layer.
    """
    parts = {
        qkv: {
            "attention.q": config.heads * config.head_dim,
            "attention.k": config.kv_heads * config.head_dim,
            "attention.v": config.kv_heads * config.head_dim,
        },
        gate_up: {"ffn.gate": config.ffn_width, "ffn.up": config.ffn_width},
    }
    rules = {}
    for theirs, sizes in parts.items():
        start = 0
        for ours, size in sizes.items():
            cut = TensorPart(0, start, start + size)
            rules[f"blocks.{{i}}.{ours}.weight"] = Rule(theirs, TRANSPOSED, cut=cut)
            start += size
    return rules


def expert_rules(names: ExpertNames, count: int) -> dict[str, Rule]:
    """Return the rules that read the experts and the router of every layer, by parameter path.

    A Hugging Face folder has one tensor for each of the `count` experts; the rules stack these
    tensors. `names` are the folder's names of the mixture-of-experts module and its matrices.
    """
    block = f"model.layers.{{i}}.{names.block}"
    rules = {"blocks.{i}.ffn.router.weight": Rule(f"{block}.gate.weight", TRANSPOSED)}
    for ours, theirs in zip(("gate", "up", "down"), names.matrices, strict=True):
        each = numbered(f"{block}.experts.{{n}}.{theirs}.weight", count)
        rules[f"blocks.{{i}}.ffn.{ours}.weight"] = Rule(each, TRANSPOSED, join=Stack())
    return rules


def shifted(table: Mapping[str, Rule]) -> dict[str, Rule]:
    """Return a copy of `table` in which the rules for norm weights add 1 when they read.

    `table` maps parameter paths to rules. For families whose files store w - 1.
    """
    return {
        path: replace(rule, steps=(Shift(1.0),)) if path.endswith("norm.weight") else rule
        for path, rule in table.items()
    }
