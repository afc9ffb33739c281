"""Costs: bytes, operations and seconds of a model on chips, from the chips' data sheets.

Used by `simulate.py` and `scaling.py`. Every time here is a floor: it counts what must be read,
multiplied and sent, at the rates of `jaxllama/chips.py`. Loads no model and starts no JAX.
"""

from dataclasses import dataclass

from jaxllama.chips import Chip
from jaxllama.config import ModelConfig, Rope

BF16, FLOAT32 = 2, 4  # bytes of a number
SUMS_PER_LAYER = 2  # after the output projection of attention, and after the down projection
HOP_SECONDS = (
    2e-6  # from the end of one device's send to the start of the next one's: an assumption
)
USABLE = 0.9  # of a chip's memory, as in `jaxllama inspect`: the rest is for programs

MODELS = {
    "SmolLM2-135M": ModelConfig(49152, 576, 30, 9, 3, 64, 1536, 8192, rope=Rope(1e5), tied=True),
    "Llama-3.2-1B": ModelConfig(128256, 2048, 16, 32, 8, 64, 8192, 131072, tied=True),
    "Llama-3.1-8B": ModelConfig(128256, 4096, 32, 32, 8, 128, 14336, 131072),
    "Llama-3.1-70B": ModelConfig(128256, 8192, 80, 64, 8, 128, 28672, 131072),
}
FORMS = {"bf16": 16.0, "int8": 8.5, "int4": 4.5}  # bits of a weight, with a float16 scale for 32


@dataclass(frozen=True)
class Costs:
    """The costs of one model in one form, split over `parts` equal chips on the axis `model`."""

    model: ModelConfig
    chip: Chip
    parts: int = 1
    form: str = "bf16"
    cache_number: int = BF16  # bytes of a number in the KV cache

    @property
    def weight_bytes(self) -> float:
        """The bytes of all weights of the model."""
        return self.model.parameters * FORMS[self.form] / 8

    @property
    def step_weight_bytes(self) -> float:
        """The bytes of weights that a decode step reads: all but an embedding that is no head."""
        return self.model.parameters_per_token * FORMS[self.form] / 8

    @property
    def token_bytes(self) -> int:
        """The bytes of one token in the KV cache: keys and values in all layers."""
        heads = self.model.kv_heads * self.model.head_dim
        return 2 * self.model.layers * heads * self.cache_number

    @property
    def can_split(self) -> bool:
        """Whether the parts can have equal numbers of key/value heads, as a mesh requires."""
        return self.model.kv_heads % self.parts == 0

    def slots(self, context: int) -> int:
        """Return how many slots of `context` tokens fit beside the weights; negative: none do."""
        room = USABLE * self.chip.memory * self.parts - self.weight_bytes
        return int(room // (context * self.token_bytes))

    def step(self, rows: float, depth: float) -> float:
        """Return the seconds of a decode step of `rows` rows that have `depth` tokens each."""
        return self.reading(rows, depth) + self.sending(rows)

    def reading(self, rows: float, depth: float) -> float:
        """Return the seconds of a step in which the chips read memory, or multiply if longer."""
        read = self.step_weight_bytes + rows * depth * self.token_bytes
        operations = 2 * self.model.parameters_per_token * rows
        return max(read / self.chip.bandwidth, operations / self.chip.flops) / self.parts

    def sending(self, rows: float) -> float:
        """Return the seconds of a step in which the chips add up their parts of the layers.

        The partial sums are float32. The embeddings are added up once, too, as the vocabulary is
        split. What the choice of a token sends is not counted.
        """
        sums = SUMS_PER_LAYER * self.model.layers + 1
        return sums * self.sum_seconds(rows * self.model.width * FLOAT32)

    def sum_seconds(self, payload: float) -> float:
        """Return the seconds of one all-reduce of `payload` bytes around a ring of the parts."""
        if self.parts == 1:
            return 0.0
        hops = 2 * (self.parts - 1)
        return hops * (payload / self.parts / self.chip.link + HOP_SECONDS)

    def prompt(self, tokens: float) -> float:
        """Return the seconds until a prompt of `tokens` tokens is in the cache."""
        attention = 2 * self.model.layers * self.model.heads * self.model.head_dim * tokens**2
        operations = 2 * self.model.parameters_per_token * tokens + attention
        return operations / self.chip.flops / self.parts + self.sending(tokens)
