"""The shape of a model and the size of the engine: frozen, hashable, validated configurations.

Built by weight readers and `llm.py`, read by all modules, static under jit. Knows no arrays.
"""

import math
from dataclasses import dataclass
from typing import Literal

from jaxllama.errors import ConfigError, InvalidParameter, PromptTooLong, UnsupportedModel

RopeKind = Literal["none", "linear", "ntk", "llama3", "yarn", "factors"]
Norms = Literal["before", "after", "around"]  # where a block norms: its inputs, its results or both
QkNorm = Literal["head", "all"]  # what a norm of queries and keys spans: a head, or all heads
Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]
EncoderPooling = Literal["mean", "mean_sqrt", "cls", "max", "last"]
DTYPES = ("float32", "bfloat16", "float16")
CACHE_DTYPES = (*DTYPES, "int8")  # int8 with one float32 scale per token and head
SAMPLING_DEFAULTS = ("auto", "none")  # auto: the model maker's recommended sampling is the default
MOST_DRAFTS = 16  # tokens that a step may draft for a row
MOST_STEPS = 1024  # of one decode call: its results take memory for each step
MOST_SYNC_MS = 10_000.0
RANK_STEP = 16  # ranks of adapters are padded to a multiple of this
MOST_RANK = 256
MOST_ADAPTERS = 64
KEY_BLOCK = 128  # cache columns attended per step of the blocked attention loop


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: base frequency and the rule that stretches it to long contexts."""

    theta: float = 10000.0
    kind: RopeKind = "none"
    factor: float = 1.0  # linear, llama3, yarn: how much longer than trained; ntk: alpha
    original_context: int = 8192  # llama3, yarn: context the model was trained with
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    # yarn, factors: scale of cos and sin; None: 0.1 ln(factor) + 1 for yarn, 1 for factors
    attention_factor: float | None = None
    factors: tuple[float, ...] = ()  # factors: one divisor per rotated pair
    # factors: the divisors in a slot that holds more than `original_context` tokens; () = `factors`
    long_factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in (
            "theta",
            "factor",
            "beta_fast",
            "beta_slow",
            *("attention_factor",) * self.scaled,
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise UnsupportedModel(f"rope {name} is {value}; it must be a positive number")
        if self.kind == "yarn" and self.theta <= 1:
            raise UnsupportedModel(f"rope theta is {self.theta}; yarn needs more than 1")
        if self.kind == "llama3" and not 0 < self.low_freq_factor < self.high_freq_factor:
            raise UnsupportedModel(
                f"rope frequency factors are {self.low_freq_factor} and {self.high_freq_factor}; "
                f"the low one must be positive and below the high one"
            )
        if (self.kind == "factors") != bool(self.factors):
            raise UnsupportedModel(
                f"rope kind {self.kind!r} comes with {len(self.factors)} factors"
            )
        if len(self.long_factors) not in (0, len(self.factors)):
            raise UnsupportedModel(
                f"there are {len(self.long_factors)} long rope factors and {len(self.factors)} "
                f"short ones; expected as many"
            )
        if not all(math.isfinite(each) and each > 0 for each in self.factors + self.long_factors):
            raise UnsupportedModel("rope factors must all be positive numbers")
        if self.original_context < 1:
            raise UnsupportedModel(
                f"rope original context is {self.original_context}; it must be at least 1"
            )

    @property
    def scaled(self) -> bool:
        """Say whether the config has a factor for cosines and sines (`attention_factor`)."""
        return self.attention_factor is not None

    @property
    def scaled_factors(self) -> bool:
        """Say whether the rotary frequencies are divided as in Phi-3 (its "longrope").

        True for frequency divisors that come with an attention factor, or with a second set of
        divisors for long texts.
        """
        return self.kind == "factors" and (self.scaled or bool(self.long_factors))


@dataclass(frozen=True)
class LayerSpec:
    """Which of the model's options one layer uses: window, rotary embedding, experts.

    A field has no effect in a model without the option.
    """

    windowed: bool = True  # attends within the model's window
    rotated: bool = True  # SmolLM3: False for layers without rotary embedding
    sparse: bool = True  # its feed-forward is the model's mixture of experts


@dataclass(frozen=True)
class Experts:
    """A mixture of experts: for each token a router chooses a few of many feed-forwards."""

    count: int
    used: int  # per token
    width: int  # of the feed-forward of one expert
    normed: bool = True  # the weights of the used experts add up to 1

    def __post_init__(self) -> None:
        if not 1 <= self.used <= self.count:
            raise UnsupportedModel(
                f"{self.used} experts are used per token; expected 1 to {self.count}, their number"
            )
        if self.width < 1:
            raise UnsupportedModel(f"an expert's width is {self.width}; it must be at least 1")


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a Llama-family model."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_width: int
    max_context: int
    norm_eps: float = 1e-5
    rope: Rope = Rope()
    tied: bool = False  # the output head is the transposed embedding
    qkv_bias: bool = False  # Qwen2
    out_bias: bool = False  # bias of the attention output projection
    ffn_bias: bool = False
    qk_norm: bool = False  # Qwen3: RMSNorm of queries and keys
    qk_norm_over: QkNorm = "head"  # OLMo 2: all heads together
    window: int | None = None  # Mistral: a token attends to this many newest positions
    # The layers' differences, one per layer, repeated from the start: Gemma 2 alternates two.
    pattern: tuple[LayerSpec, ...] = (LayerSpec(),)
    rotary_dim: int | None = None  # Phi-4-mini: the first numbers of a head rotate; None: all
    local_rope: Rope | None = None  # Gemma 3: of layers with a window; None: `rope`
    norms: Norms = "before"  # OLMo 2: after; Gemma: around
    activation: Activation = "silu"  # silu, or Gemma: gelu_tanh
    experts: Experts | None = None  # Mixtral, Qwen3-MoE
    query_scale: float | None = None  # of attention scores; None: 1 / sqrt(head size)
    attention_cap: float | None = None  # Gemma 2: scores become cap * tanh(score / cap)
    logit_cap: float | None = None  # Gemma 2: the same for logits
    embed_scale: float = 1.0  # Gemma, Granite: token vectors are multiplied by it
    residual_scale: float = 1.0  # Granite: so are the results of attention and feed-forward
    logit_scale: float = 1.0  # Granite: and the logits
    name: str = ""

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "ffn_width")
        for name in (*sizes, "max_context"):
            if getattr(self, name) < 1:
                raise UnsupportedModel(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.heads % self.kv_heads:
            raise UnsupportedModel(
                f"{self.heads} query heads do not divide into {self.kv_heads} key/value heads"
            )
        if self.head_dim % 2 or (self.rope.kind == "ntk" and self.head_dim == 2):  # noqa: PLR2004
            raise UnsupportedModel(
                f"head size is {self.head_dim}; rotary embedding needs it even, and above 2 for ntk"
            )
        if self.window is not None and self.window < 1:
            raise UnsupportedModel(f"sliding window is {self.window}; it must be at least 1")
        if not 0 < self.norm_eps < 1:
            raise UnsupportedModel(f"norm epsilon is {self.norm_eps}; it must lie in (0, 1)")
        self._check_rotation()
        self._check_layers()
        self._check_scales()

    @property
    def group(self) -> int:
        """Return the number of query heads that share one key/value head."""
        return self.heads // self.kv_heads

    @property
    def rotated(self) -> int:
        """Return how many dimensions of a head the rotary embedding rotates."""
        return self.rotary_dim or self.head_dim

    @property
    def specs(self) -> tuple[LayerSpec, ...]:
        """Return the `LayerSpec` of every layer, the first layer first."""
        return tuple(self.pattern[i % len(self.pattern)] for i in range(self.layers))

    @property
    def reads_tokens(self) -> bool:
        """Say whether the model has its embedding; later pipeline stages read hidden states."""
        return True

    @property
    def gives_logits(self) -> bool:
        """Say whether the model has its final norm and head; earlier pipeline stages lack them."""
        return True

    @property
    def parameters(self) -> int:
        """Return the number of weights in matrices; norms and biases are not counted."""
        count = 0 if self.experts is None else self.experts.count
        ends = self.vocab_size * self.width * (1 if self.tied else 2)
        return ends + self._parameters_of_layers(count)

    @property
    def parameters_per_token(self) -> int:
        """Return the number of weights that compute one token.

        Of the experts of a layer, only as many count as a token uses.
        """
        used = 0 if self.experts is None else self.experts.used
        return self.vocab_size * self.width + self._parameters_of_layers(used)

    def _parameters_of_layers(self, experts: int) -> int:
        """Return the number of weights in the matrices of all layers.

        `experts` is the number of experts counted in each layer.
        """
        attention = 2 * self.width * self.head_dim * (self.heads + self.kv_heads)
        dense, mixture = 3 * self.width * self.ffn_width, 0
        if self.experts is not None:
            router = self.experts.count * self.width
            one = 3 * experts * self.width * self.experts.width + router
            mixture = sum(layer.sparse for layer in self.specs) * (one - dense)
        return self.layers * (attention + dense) + mixture

    def window_of(self, layer: LayerSpec) -> int | None:
        """Return the attention window of a layer in tokens; None if it attends to all positions."""
        return self.window if layer.windowed else None

    def rope_of(self, layer: LayerSpec) -> Rope | None:
        """Return the rotary embedding of a layer; None if it has none."""
        if not layer.rotated:
            return None
        return self.local_rope if self.local_rope and self.window_of(layer) else self.rope

    def experts_of(self, layer: LayerSpec) -> Experts | None:
        """Return the mixture of experts of a layer; None if it has one feed-forward."""
        return self.experts if layer.sparse else None

    def _check_rotation(self) -> None:
        if self.rotated % 2 or not 0 < self.rotated <= self.head_dim:
            raise UnsupportedModel(
                f"{self.rotated} numbers of a head of {self.head_dim} rotate; expected an even "
                f"number up to {self.head_dim}"
            )
        for rope in (self.rope, self.local_rope or self.rope):
            if rope.factors and len(rope.factors) != self.rotated // 2:
                raise UnsupportedModel(
                    f"{len(rope.factors)} rope factors; head size {self.rotated} needs "
                    f"{self.rotated // 2}"
                )

    def _check_layers(self) -> None:
        if not 1 <= len(self.pattern) <= self.layers:
            raise UnsupportedModel(
                f"{len(self.pattern)} layers are described; expected 1 to {self.layers}"
            )

    def _check_scales(self) -> None:
        positive = ("query_scale", "attention_cap", "logit_cap")
        for name in (*positive, "embed_scale", "residual_scale", "logit_scale"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UnsupportedModel(f"{name} is {value}; it must be a positive number")


@dataclass(frozen=True)
class StageConfig(ModelConfig):
    """The shape of one stage of a model: neighbouring layers, which have devices of their own."""

    index: int = 0
    stages: int = 1  # of the model

    @property
    def reads_tokens(self) -> bool:
        """Say whether this is the first stage, which has the embedding."""
        return self.index == 0

    @property
    def gives_logits(self) -> bool:
        """Say whether this is the last stage, which has the final norm and the head."""
        return self.index == self.stages - 1


@dataclass(frozen=True)
class EngineConfig:
    """The size of the engine: every number that fixes the shape of a compiled program."""

    slots: int = 16
    context: int = 4096  # tokens a slot holds, prompt and generated together
    prefill_chunk: int = 32  # most prompt tokens of one prefill call, between two decode calls
    pack_prompts: bool = False  # short prompts of several requests share a prefill call
    steps_per_sync: int = 4  # most decode steps of one call
    sync_ms: float = 50.0  # about the longest decode call; a fifth while clients share the engine
    candidates: int = 256  # tokens that a filter sees at first; more if it keeps the last of them
    max_stop_ids: int = 32  # of a request, together with the model's end tokens
    max_top_logprobs: int = 20
    queue_limit: int = 100_000
    kernels: str = "xla"  # name of a body in kernels/
    dtype: str = "float32"  # of dense weights, one of the body's dtypes
    packed: bool = False  # plain JAX only: keep 4- to 8-bit weights packed, unpack at every use
    cache_dtype: str = "float32"
    data_parallel: int = 1  # mesh axis `data`: slots
    model_parallel: int = 1  # mesh axis `model`: heads, ffn, vocabulary
    stage_layers: tuple[int, ...] = ()  # layers of each stage of a pipeline; (): no stages
    adapter_slots: int = 0  # low-rank adapters that can be loaded at the same time; 0: none
    adapter_rank: int = RANK_STEP  # highest rank of an adapter
    draft_tokens: int = 0  # most tokens that a decode step drafts for a row; 0: no speculation
    row_cost: float = 1.0  # time of one more row, relative to a step with one row; see drafts.py
    draft_model: ModelConfig | None = None  # drafts tokens, from a cache with the same slots

    def __post_init__(self) -> None:
        self._check_adapters()
        self._check_stages()
        if not 0 <= self.draft_tokens <= MOST_DRAFTS:
            raise ConfigError(f"draft_tokens is {self.draft_tokens}; it must be 0 to {MOST_DRAFTS}")
        if self.draft_model is not None and not self.draft_tokens:
            raise ConfigError(
                f"draft_tokens is 0 with the draft model {self.draft_model.name!r}; expected 1 to "
                f"{MOST_DRAFTS}, or no draft model"
            )
        positive = ("slots", "context", "prefill_chunk", "steps_per_sync", "candidates")
        more = ("max_stop_ids", "data_parallel", "model_parallel", "queue_limit")
        for name in (*positive, *more):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.steps_per_sync > MOST_STEPS:
            raise ConfigError(
                f"steps_per_sync is {self.steps_per_sync}; it must be at most {MOST_STEPS}"
            )
        if not 0 < self.sync_ms <= MOST_SYNC_MS:
            raise ConfigError(
                f"sync_ms is {self.sync_ms}; it must be above 0 and at most {MOST_SYNC_MS:g}"
            )
        if self.cache_dtype not in CACHE_DTYPES:
            raise ConfigError(
                f"cache_dtype is {self.cache_dtype!r}; expected one of {CACHE_DTYPES}"
            )
        if self.slots % self.data_parallel:
            raise ConfigError(
                f"{self.slots} slots do not divide over data={self.data_parallel}; "
                f"choose --slots as a multiple of it"
            )

    def _check_adapters(self) -> None:
        if not 0 <= self.adapter_slots <= MOST_ADAPTERS:
            raise ConfigError(
                f"adapter_slots is {self.adapter_slots}; it must be 0 to {MOST_ADAPTERS}"
            )
        if self.adapter_rank % RANK_STEP or not RANK_STEP <= self.adapter_rank <= MOST_RANK:
            raise ConfigError(
                f"adapter_rank is {self.adapter_rank}; it must be a multiple of {RANK_STEP}, at "
                f"most {MOST_RANK}"
            )

    def _check_stages(self) -> None:
        if len(self.stage_layers) == 1 or any(layers < 1 for layers in self.stage_layers):
            raise ConfigError(
                f"stages have {self.stage_layers} layers; expected two stages or more, of at least "
                f"one layer each, or none"
            )
        if self.stage_layers and self.adapter_slots:
            raise ConfigError(
                f"adapter_slots is {self.adapter_slots} with {len(self.stage_layers)} stages; "
                f"expected 0: LoRA adapters need a mesh without the axis stage"
            )
        if self.stage_layers and self.pack_prompts:
            raise ConfigError(
                f"pack_prompts is set with {len(self.stage_layers)} stages; expected it unset: "
                f"prompts share a prefill call only on a mesh without the axis stage"
            )

    @property
    def stages(self) -> int:
        """Return the number of stages of the pipeline; 1: all layers have the same devices."""
        return max(1, len(self.stage_layers))

    @property
    def devices(self) -> int:
        """Return the number of devices of the whole mesh."""
        return self.stages * self.data_parallel * self.model_parallel

    @property
    def columns(self) -> int:
        """Return the number of columns (positions) of the KV cache.

        It is the context length, rounded up to a multiple of 128.
        """
        return -(-self.context // KEY_BLOCK) * KEY_BLOCK

    def check_slots(self, needed: int) -> None:
        """Raise InvalidParameter if a request needs more slots than the engine has."""
        if needed > self.slots:
            raise InvalidParameter(
                f"the request needs {needed} slots at a time, one of them for its "
                f"negative_prompt; this engine has {self.slots} (start it with more --slots)",
                "negative_prompt",
            )

    def check_stop_ids(self, count: int) -> None:
        """Raise InvalidParameter if a request has more stop ids than the engine accepts.

        `count` includes the model's own end tokens.
        """
        if count > self.max_stop_ids:
            raise InvalidParameter(
                f"the request has {count} stop ids together with the model's end tokens; this "
                f"engine takes at most {self.max_stop_ids} (give fewer stop_ids)",
                "stop_ids",
            )

    def check_length(self, prompt: int, new: int) -> None:
        """Raise PromptTooLong if a prompt and its answer do not fit in a slot.

        `prompt` and `new` are their numbers of tokens; an empty prompt is refused, too.
        """
        if not 1 <= prompt < self.context:
            raise PromptTooLong(
                f"prompt has {prompt} tokens; this engine accepts 1 to {self.context - 1} "
                f"(start it with a larger --context)"
            )
        if prompt + new > self.context:
            raise PromptTooLong(
                f"prompt has {prompt} tokens and max_tokens is {new}, together "
                f"{prompt + new}; a slot holds {self.context} (lower max_tokens or start "
                f"with a larger --context)"
            )


@dataclass(frozen=True)
class EncoderConfig:
    """The shape of a BERT-family encoder, and how it makes one vector of a text."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    ffn_width: int
    positions: int  # rows of the position table
    max_length: int  # tokens of a text, special ones included
    first_position: int = 0  # row of the first token; RoBERTa and MPNet leave rows free
    token_types: int = 0  # rows of the table of token types, of which texts use the first; 0: none
    relative_buckets: int = 0  # MPNet: attention biases by distance, in so many classes
    norm_eps: float = 1e-12
    activation: Activation = "gelu"
    pooling: EncoderPooling = "mean"
    normalizes: bool = False  # vectors have length 1
    name: str = ""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "layers", "heads", "ffn_width", "max_length"):
            if getattr(self, name) < 1:
                raise UnsupportedModel(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.width % self.heads:
            raise UnsupportedModel(
                f"a width of {self.width} does not divide into {self.heads} heads"
            )
        if self.first_position + self.max_length > self.positions:
            raise UnsupportedModel(
                f"texts of {self.max_length} tokens need {self.first_position + self.max_length} "
                f"positions; the model has {self.positions}"
            )
        if not 0 < self.norm_eps < 1:
            raise UnsupportedModel(f"norm epsilon is {self.norm_eps}; it must lie in (0, 1)")

    @property
    def head_dim(self) -> int:
        """Return the size of a head."""
        return self.width // self.heads
