"""Hugging Face folders: config.json, safetensors or pytorch_model.bin, and a tokenizer.

Found through its entry point. `shards.py` finds and checks the files; the meaning of config.json is
in `huggingface_config.py`. Code in the folder is never run.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from jaxllama.config import ModelConfig
from jaxllama.errors import UnsupportedModel
from jaxllama.weights import float8
from jaxllama.weights.architectures import Architecture, expert_rules, fused_rules, shifted
from jaxllama.weights.base import Checkpoint
from jaxllama.weights.fields import read_json, shown
from jaxllama.weights.huggingface_config import find_architecture, read_config
from jaxllama.weights.layout import TRANSPOSED
from jaxllama.weights.quantized import find_quantized, is_part, read_scheme
from jaxllama.weights.recommended import from_generation_config
from jaxllama.weights.rules import Rule, expand
from jaxllama.weights.shards import (
    SAFETENSORS,
    TensorFile,
    check_index,
    check_unused,
    find_kind,
    find_shards,
    join_shards,
    read_index,
)
from jaxllama.weights.stored import Index, Shape, Stored, unpacked, whole

if TYPE_CHECKING:
    from jaxllama.text.exchange import TokenizerSource
    from jaxllama.text.tokenizer import Tokenizer

CONFIG = "config.json"
MAX_CONFIG = 1 << 20  # bytes
DTYPES = ("F32", "F16", "BF16")
BIASES = {  # the field of ModelConfig that says whether a layer has one
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv_bias"),
    "o_proj": "out_bias",
    **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), "ffn_bias"),
}
MAX_BIAS = 1 << 20  # bytes of a bias that is read to see whether it is zero
SUPERFLUOUS = ".rotary_emb.inv_freq"  # buffers that old versions saved; computed, never loaded

TABLE: dict[str, Rule] = {
    "embed.weight": Rule("model.embed_tokens.weight"),
    "blocks.{i}.attention_norm.weight": Rule("model.layers.{i}.input_layernorm.weight"),
    "blocks.{i}.attention.q.weight": Rule("model.layers.{i}.self_attn.q_proj.weight", TRANSPOSED),
    "blocks.{i}.attention.k.weight": Rule("model.layers.{i}.self_attn.k_proj.weight", TRANSPOSED),
    "blocks.{i}.attention.v.weight": Rule("model.layers.{i}.self_attn.v_proj.weight", TRANSPOSED),
    "blocks.{i}.attention.o.weight": Rule("model.layers.{i}.self_attn.o_proj.weight", TRANSPOSED),
    "blocks.{i}.attention.q.bias": Rule("model.layers.{i}.self_attn.q_proj.bias"),
    "blocks.{i}.attention.k.bias": Rule("model.layers.{i}.self_attn.k_proj.bias"),
    "blocks.{i}.attention.v.bias": Rule("model.layers.{i}.self_attn.v_proj.bias"),
    "blocks.{i}.attention.o.bias": Rule("model.layers.{i}.self_attn.o_proj.bias"),
    "blocks.{i}.attention.q_norm.weight": Rule("model.layers.{i}.self_attn.q_norm.weight"),
    "blocks.{i}.attention.k_norm.weight": Rule("model.layers.{i}.self_attn.k_norm.weight"),
    "blocks.{i}.ffn_norm.weight": Rule("model.layers.{i}.post_attention_layernorm.weight"),
    "blocks.{i}.ffn.gate.weight": Rule("model.layers.{i}.mlp.gate_proj.weight", TRANSPOSED),
    "blocks.{i}.ffn.up.weight": Rule("model.layers.{i}.mlp.up_proj.weight", TRANSPOSED),
    "blocks.{i}.ffn.down.weight": Rule("model.layers.{i}.mlp.down_proj.weight", TRANSPOSED),
    "blocks.{i}.ffn.gate.bias": Rule("model.layers.{i}.mlp.gate_proj.bias"),
    "blocks.{i}.ffn.up.bias": Rule("model.layers.{i}.mlp.up_proj.bias"),
    "blocks.{i}.ffn.down.bias": Rule("model.layers.{i}.mlp.down_proj.bias"),
    "final_norm.weight": Rule("model.norm.weight"),
    "unembed.weight": Rule("lm_head.weight", TRANSPOSED),
}
# Names in models that norm their results.
RESULT_NORMS: dict[str, Rule] = {
    "blocks.{i}.attention_out_norm.weight": Rule(
        "model.layers.{i}.post_attention_layernorm.weight"
    ),
    "blocks.{i}.ffn_norm.weight": Rule("model.layers.{i}.pre_feedforward_layernorm.weight"),
    "blocks.{i}.ffn_out_norm.weight": Rule("model.layers.{i}.post_feedforward_layernorm.weight"),
}
QKV, GATE_UP = (
    f"model.layers.{{i}}.{name}.weight" for name in ("self_attn.qkv_proj", "mlp.gate_up_proj")
)


class HuggingFaceCheckpoint(Checkpoint):
    """One folder as `save_pretrained` writes it."""

    def __init__(self, folder: Path, files: list[TensorFile]) -> None:
        self._folder = folder
        self._files = files
        self._tensors = join_shards(files)
        self._entries = {name: file.tensors[name] for name, file in self._tensors.items()}
        fields = read_json(folder / CONFIG, MAX_CONFIG)
        scheme = read_scheme(folder, fields, self._entries)
        self._quantized = find_quantized(self._entries, scheme)
        self._block = float8.read_block(fields)
        self._family = find_architecture(fields)
        self._config = read_config(fields, folder.resolve().name, len(self._tensors))
        self._check_dtypes()

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Say whether `path` is a folder with a config.json and at least one file of weights."""
        return (path / CONFIG).is_file() and find_kind(path) is not None

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a model folder: check the headers of its weight files and read config.json."""
        kind = find_kind(path) or SAFETENSORS
        with ExitStack() as opened:
            index = read_index(path, kind)
            files = []
            for shard in find_shards(path, kind, index):
                files.append(kind.open(shard))
                opened.callback(files[-1].close)
            checkpoint = cls(path, files)
            check_index(path / kind.index, index or {}, checkpoint._tensors)
            check_unused(path, kind, checkpoint._tensors)
            opened.pop_all()
        return checkpoint

    @property
    def config(self) -> ModelConfig:
        """Return the configuration of the model."""
        return self._config

    @cached_property
    def table(self) -> Mapping[str, Rule]:
        """Return, by parameter path, the rules that read the parameters from the file's tensors.

        A parameter path is a name such as `blocks.0.attention.q.weight`.
        """
        return table_of(self._family, self._config)

    @cached_property
    def shapes(self) -> Mapping[str, Shape]:
        """Map the name of every tensor to its stored shape; omit tensors that are never loaded."""
        dtypes = {name: entry.dtype for name, entry in self._entries.items()}
        dense = {
            name: entry.shape
            for name, entry in self._entries.items()
            if not is_part(name, self._quantized)
            and not float8.is_scale(name, dtypes)
            and not self._is_idle_bias(name)
        }
        found = dense | {name: matrix.shape for name, matrix in self._quantized.items()}
        return {
            name: shape for name, shape in found.items() if not is_superfluous(name, self._config)
        }

    @property
    def kinds(self) -> Mapping[str, tuple[str, int]]:
        """Return the element type and the size in bytes of every tensor, by the tensor's name."""
        packed = {name: (each.kind, each.nbytes) for name, each in self._quantized.items()}
        entries = ((name, self._entries[name]) for name in self.shapes if name not in packed)
        dense = {name: (entry.dtype, entry.nbytes) for name, entry in entries}
        return {name: packed.get(name) or dense[name] for name in self.shapes}

    @property
    def recommended(self) -> Mapping[str, object]:
        """Return the sampler settings that generation_config.json recommends, by name."""
        return from_generation_config(self._folder)

    def read_stored(self, name: str) -> Stored:
        """Read one tensor in the file's own precision; quantised and float8 matrices are packed."""
        matrix = self._quantized.get(name)
        if matrix is not None:
            return matrix.read(whole(matrix.shape), self._read_array)
        values = self._tensors[name].read(name)
        return self._with_scales(name, values, whole(values.shape))

    def read_part(self, name: str, index: Index) -> Stored:
        """Read part `index` of tensor `name`; `index` has one slice per axis.

        Only the rows of the tensor that this part needs are read from the file.
        """
        matrix = self._quantized.get(name)
        if matrix is not None:
            return matrix.read(index, self._read_array)
        return self._with_scales(name, self._tensors[name].read_part(name, index), index)

    def tokenizer(self) -> "Tokenizer":
        """Build the tokenizer from tokenizer.json, or else from tokenizer.model."""
        from jaxllama.text.sources import tokenizer_from_folder  # noqa: PLC0415 - heavy

        return tokenizer_from_folder(self._folder)

    def tokenizer_source(self) -> "TokenizerSource":
        """Return the tokenizer files of the folder, for exports."""
        from jaxllama.text.exchange import source_of_folder  # noqa: PLC0415 - heavy

        return source_of_folder(self._folder)

    def close(self) -> None:
        """Close the shards."""
        for file in self._files:
            file.close()

    def _read_array(self, name: str, index: Index) -> np.ndarray:
        """Read part `index` of one tensor of the file, in the element type of the file."""
        return unpacked(self._tensors[name].read_part(name, index))

    def _is_idle_bias(self, name: str) -> bool:
        """Say whether a tensor is a bias of zeros that GPTQ tools add to models without biases."""
        *_, layer, last = ("", *name.split("."))
        field = BIASES.get(layer)
        if not self._quantized or last != "bias" or field is None or getattr(self._config, field):
            return False
        entry = self._entries[name]
        is_vector = len(entry.shape) == 1 and 0 < entry.nbytes <= MAX_BIAS
        return is_vector and entry.dtype in DTYPES and not self._tensors[name].read(name).any()

    def _with_scales(self, name: str, values: Any, index: Index) -> Stored:
        """Return `values`, the stored part `index` of tensor `name`, packed if they are float8.

        Float8 vectors become float32; values of other types are returned unchanged.
        """
        entry = self._entries[name]
        if entry.dtype not in float8.FLOAT8:
            return values
        if len(entry.shape) != 2:  # noqa: PLR2004 - no matrix
            return values.astype(np.float32)
        name_of_scale = float8.scale_of(name, self._entries)
        scale = np.ones((), np.float32)
        if name_of_scale is not None:
            scale = unpacked(self._tensors[name_of_scale].read(name_of_scale))
        return float8.packed(values, scale, index, entry.shape, self._block)

    def _check_dtypes(self) -> None:
        """Raise UnsupportedModel unless every tensor of the model has a supported float type."""
        for name in self.shapes.keys() - self._quantized.keys():
            entry = self._entries[name]
            self._check_dtype(name, (*DTYPES, *float8.FLOAT8))
            scale = float8.scale_of(name, self._entries) if entry.dtype in float8.FLOAT8 else None
            if scale is not None:
                self._check_dtype(scale, DTYPES)
                float8.check_scale(name, self._entries[scale].shape, entry.shape, self._block)

    def _check_dtype(self, name: str, expected: tuple[str, ...]) -> None:
        dtype = self._entries[name].dtype
        if dtype not in expected:
            raise UnsupportedModel(
                f"{self._tensors[name].path}: tensor {shown(name)} has dtype {dtype}, which is not "
                f"supported; expected one of {', '.join(expected)}"
            )


def table_of(family: Architecture, config: ModelConfig) -> dict[str, Rule]:
    """Return, by parameter path, the rules that read a model of this architecture from a folder.

    A parameter path is a name such as `blocks.0.attention.q.weight`.
    """
    table = dict(TABLE)
    if family.norms != "before":
        table |= RESULT_NORMS
    if family.fused:
        table |= fused_rules(config, QKV, GATE_UP)
    if family.adds_one:
        table = shifted(table)
    table = expand(table, config.layers)
    if family.experts is not None and config.experts is not None:
        rules = expand(expert_rules(family.experts, config.experts.count), config.layers)
        sparse = tuple(f"blocks.{i}." for i, spec in enumerate(config.specs) if spec.sparse)
        table |= {path: rule for path, rule in rules.items() if path.startswith(sparse)}
    return table


def is_superfluous(name: str, config: ModelConfig) -> bool:
    """Say whether a tensor is one that tools save although the model does not need it."""
    return name.endswith(SUPERFLUOUS) or (config.tied and name == "lm_head.weight")
