"""The shape of a model and the size of the engine: frozen, hashable, validated configurations.

Built by weight readers and `llm.py`, read by all modules, static under jit. Knows no arrays.
"""

import math
from dataclasses import dataclass
from typing import Literal

from jaxllama.errors import ConfigError, InvalidParameter, PromptTooLong, UnsupportedModel

RopeKind = Literal["none", "linear", "ntk", "llama3", "yarn", "factors"]
Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]
EncoderPooling = Literal["mean", "mean_sqrt", "cls", "max", "last"]
DTYPES = ("float32", "bfloat16", "float16")
CACHE_DTYPES = (*DTYPES, "int8")  # int8 with one float32 scale per token and head
SAMPLING_DEFAULTS = ("auto", "none")  # auto: the model maker's recommended sampling is the default
MOST_STEPS = 1024  # of one decode call: its results take memory for each step
MOST_SYNC_MS = 10_000.0
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
    attention_factor: float | None = None  # yarn: scale of cos and sin; None = 0.1 ln(factor) + 1
    factors: tuple[float, ...] = ()  # factors: one divisor per rotated pair

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
        if not all(math.isfinite(factor) and factor > 0 for factor in self.factors):
            raise UnsupportedModel("rope factors must all be positive numbers")
        if self.original_context < 1:
            raise UnsupportedModel(
                f"rope original context is {self.original_context}; it must be at least 1"
            )

    @property
    def scaled(self) -> bool:
        """Say whether cos and sin have an explicit scale."""
        return self.attention_factor is not None


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
    qk_norm: bool = False  # Qwen3: RMSNorm over each query and key head
    window: int | None = None  # Mistral: a token attends to this many newest positions
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
        if self.rope.factors and len(self.rope.factors) != self.head_dim // 2:
            raise UnsupportedModel(
                f"{len(self.rope.factors)} rope factors; head size {self.head_dim} needs "
                f"{self.head_dim // 2}"
            )

    @property
    def group(self) -> int:
        """Return the number of query heads that share one key/value head."""
        return self.heads // self.kv_heads


@dataclass(frozen=True)
class EngineConfig:
    """The size of the engine: every number that fixes the shape of a compiled program."""

    slots: int = 16
    context: int = 4096  # tokens a slot holds, prompt and generated together
    prefill_chunk: int = 32  # most prompt tokens of one prefill call, between two decode calls
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

    def __post_init__(self) -> None:
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

    @property
    def columns(self) -> int:
        """Return the number of KV-cache columns: the context, rounded up to whole key blocks."""
        return -(-self.context // KEY_BLOCK) * KEY_BLOCK

    def check_slots(self, needed: int) -> None:
        """Refuse a request that needs more slots than the engine has."""
        if needed > self.slots:
            raise InvalidParameter(
                f"the request needs {needed} slots at a time, one of them for its "
                f"negative_prompt; this engine has {self.slots} (start it with more --slots)",
                "negative_prompt",
            )

    def check_stop_ids(self, count: int) -> None:
        """Refuse more stop ids than a row stores; `count` includes the model's own end tokens."""
        if count > self.max_stop_ids:
            raise InvalidParameter(
                f"the request has {count} stop ids together with the model's end tokens; this "
                f"engine takes at most {self.max_stop_ids} (give fewer stop_ids)",
                "stop_ids",
            )

    def check_length(self, prompt: int, new: int) -> None:
        """Raise PromptTooLong if a prompt with `new` further tokens does not fit in a slot."""
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
