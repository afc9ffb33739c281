"""GGUF files: Llama-family models as llama.cpp keeps them.

Found through its entry point. Headers are checked by `gguf_header.py`, split files put together by
`gguf_split.py`, blocks decoded by `gguf_blocks.py`, keys understood by `gguf_config.py`; this file
knows the names of tensors and what the converter did to them.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from jaxllama.config import ModelConfig
from jaxllama.weights.architectures import Architecture, by_gguf_name, fused_rules
from jaxllama.weights.base import Checkpoint
from jaxllama.weights.binary import BinaryFile
from jaxllama.weights.gguf_blocks import decode
from jaxllama.weights.gguf_config import FACTORS, read_config
from jaxllama.weights.gguf_header import MAGIC
from jaxllama.weights.gguf_split import open_header
from jaxllama.weights.layout import TRANSPOSED, UnpairRope
from jaxllama.weights.recommended import from_gguf
from jaxllama.weights.rules import Rule, expand
from jaxllama.weights.stored import Index, Shape, Stored, read_rows

if TYPE_CHECKING:
    from jaxllama.text.exchange import TokenizerSource
    from jaxllama.text.tokenizer import Tokenizer

TABLE: dict[str, Rule] = {
    "embed.weight": Rule("token_embd.weight"),
    "blocks.{i}.attention_norm.weight": Rule("blk.{i}.attn_norm.weight"),
    "blocks.{i}.attention.q.weight": Rule("blk.{i}.attn_q.weight", TRANSPOSED),
    "blocks.{i}.attention.k.weight": Rule("blk.{i}.attn_k.weight", TRANSPOSED),
    "blocks.{i}.attention.v.weight": Rule("blk.{i}.attn_v.weight", TRANSPOSED),
    "blocks.{i}.attention.o.weight": Rule("blk.{i}.attn_output.weight", TRANSPOSED),
    "blocks.{i}.attention.q.bias": Rule("blk.{i}.attn_q.bias"),
    "blocks.{i}.attention.k.bias": Rule("blk.{i}.attn_k.bias"),
    "blocks.{i}.attention.v.bias": Rule("blk.{i}.attn_v.bias"),
    "blocks.{i}.attention.o.bias": Rule("blk.{i}.attn_output.bias"),
    "blocks.{i}.attention.q_norm.weight": Rule("blk.{i}.attn_q_norm.weight"),
    "blocks.{i}.attention.k_norm.weight": Rule("blk.{i}.attn_k_norm.weight"),
    "blocks.{i}.ffn_norm.weight": Rule("blk.{i}.ffn_norm.weight"),
    "blocks.{i}.attention_out_norm.weight": Rule("blk.{i}.post_attention_norm.weight"),
    "blocks.{i}.ffn_out_norm.weight": Rule("blk.{i}.post_ffw_norm.weight"),
    "blocks.{i}.ffn.gate.weight": Rule("blk.{i}.ffn_gate.weight", TRANSPOSED),
    "blocks.{i}.ffn.up.weight": Rule("blk.{i}.ffn_up.weight", TRANSPOSED),
    "blocks.{i}.ffn.down.weight": Rule("blk.{i}.ffn_down.weight", TRANSPOSED),
    "blocks.{i}.ffn.gate.bias": Rule("blk.{i}.ffn_gate.bias"),
    "blocks.{i}.ffn.up.bias": Rule("blk.{i}.ffn_up.bias"),
    "blocks.{i}.ffn.down.bias": Rule("blk.{i}.ffn_down.bias"),
    "final_norm.weight": Rule("output_norm.weight"),
    "unembed.weight": Rule("output.weight", TRANSPOSED),
}


EXPERTS: dict[str, Rule] = {
    "blocks.{i}.ffn.router.weight": Rule("blk.{i}.ffn_gate_inp.weight", TRANSPOSED),
    "blocks.{i}.ffn.gate.weight": Rule("blk.{i}.ffn_gate_exps.weight", TRANSPOSED),
    "blocks.{i}.ffn.up.weight": Rule("blk.{i}.ffn_up_exps.weight", TRANSPOSED),
    "blocks.{i}.ffn.down.weight": Rule("blk.{i}.ffn_down_exps.weight", TRANSPOSED),
}
QKV, GATE_UP = "blk.{i}.attn_qkv.weight", "blk.{i}.ffn_up.weight"


def table_of(family: Architecture, config: ModelConfig) -> dict[str, Rule]:
    """Map parameter paths to the rules that read a GGUF file of this architecture."""
    table = dict(TABLE)
    if family.paired:
        table |= paired_rules(config.head_dim)
    if family.fused:
        table |= fused_rules(config, QKV, GATE_UP)
    if config.experts is not None:
        table |= EXPERTS
    return table


def paired_rules(head_dim: int) -> dict[str, Rule]:
    """Return the rules, by parameter path, for queries and keys whose rotated pairs are adjacent.

    They move the two rows of each pair half a head apart, as the model expects them. `head_dim` is
    the size of a head.
    """
    unpair = UnpairRope(head_dim)
    changed = {}
    for letter in "qk":
        matrix, bias = (f"blocks.{{i}}.attention.{letter}.{part}" for part in ("weight", "bias"))
        changed[matrix] = replace(TABLE[matrix], steps=(unpair, *TRANSPOSED))
        changed[bias] = replace(TABLE[bias], steps=(unpair,))
    return changed


class GgufCheckpoint(Checkpoint):
    """One GGUF file, or all parts of a split one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._header, self._files = open_header(path)
        try:
            self._config = read_config(self._header, path)
        except BaseException:
            self.close()
            raise

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Say whether `path` is a file that starts with GGUF's magic bytes."""
        if not path.is_file():
            return False
        file = BinaryFile(path)
        try:
            return file.size >= len(MAGIC) and file.read(0, len(MAGIC)).tobytes() == MAGIC
        finally:
            file.close()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a GGUF file or all parts of a split one; check headers, read the configuration."""
        return cls(path)

    @property
    def config(self) -> ModelConfig:
        """Return the configuration of the model."""
        return self._config

    @cached_property
    def table(self) -> Mapping[str, Rule]:
        """Map parameter paths to the rules that read their tensors."""
        family = by_gguf_name(self._header.metadata["general.architecture"], self._path.name)
        return expand(table_of(family, self._config), self._config.layers)

    @cached_property
    def shapes(self) -> Mapping[str, Shape]:
        """Map the name of every tensor to its stored shape, rows first."""
        return {
            name: entry.shape for name, entry in self._header.tensors.items() if name not in FACTORS
        }

    @property
    def kinds(self) -> Mapping[str, tuple[str, int]]:
        """Map the name of every tensor to its GGUF type and its size in bytes."""
        entries = ((name, self._header.tensors[name]) for name in self.shapes)
        return {name: (entry.kind.name, entry.nbytes) for name, entry in entries}

    @property
    def recommended(self) -> Mapping[str, object]:
        """Return the sampler settings that the metadata recommends, by name."""
        return from_gguf(self._header.metadata)

    def read_stored(self, name: str) -> Stored:
        """Read the tensor `name`, rows first; a quantised matrix may be returned as Packed."""
        entry = self._header.tensors[name]
        return decode(entry.kind, entry.read(), entry.shape)

    def read_part(self, name: str, index: Index) -> Stored:
        """Read the part `index`, one slice per axis, of the tensor `name`.

        Of a matrix, only the rows in the part are read from the file.
        """
        entry = self._header.tensors[name]
        if len(entry.shape) == 1:  # may be one block
            return super().read_part(name, index)
        row = entry.nbytes // entry.shape[0]

        def read(start: int, stop: int) -> Stored:
            raw = entry.read(start * row, stop * row)
            return decode(entry.kind, raw, (stop - start, *entry.shape[1:]))

        return read_rows(index, entry.shape, entry.nbytes, read)

    def tokenizer(self) -> "Tokenizer":
        """Build the tokenizer that the metadata describes."""
        from jaxllama.text.sources import tokenizer_from_gguf  # noqa: PLC0415 - heavy

        return tokenizer_from_gguf(dict(self._header.metadata))

    def tokenizer_source(self) -> "TokenizerSource":
        """Return the metadata of the tokenizer, for exports."""
        from jaxllama.text.exchange import source_of_metadata  # noqa: PLC0415 - heavy

        return source_of_metadata(self._header.metadata)

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()
