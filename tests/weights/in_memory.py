"""A checkpoint whose tensors are in memory: for tests of rules, without a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Self

from jaxllama.config import ModelConfig
from jaxllama.testing import tiny
from jaxllama.weights.base import Checkpoint
from jaxllama.weights.rules import Rule
from jaxllama.weights.stored import Index, Shape, Stored, part_of, shape_of


class MemoryCheckpoint(Checkpoint):
    """Holds tensors by name; `seen` lists what was read, and which part of it."""

    def __init__(
        self,
        tensors: Mapping[str, Stored],
        table: Mapping[str, Rule],
        config: ModelConfig | None = None,
    ) -> None:
        self.tensors, self.rules, self.model = tensors, table, config or tiny()
        self.seen: list[tuple[str, Index | None]] = []

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        return path.exists()

    @classmethod
    def open(cls, path: Path) -> Self:
        raise NotImplementedError

    @property
    def config(self) -> ModelConfig:
        return self.model

    @property
    def table(self) -> Mapping[str, Rule]:
        return self.rules

    @property
    def shapes(self) -> Mapping[str, Shape]:
        return {name: shape_of(each) for name, each in self.tensors.items()}

    def read_stored(self, name: str) -> Stored:
        self.seen.append((name, None))
        return self.tensors[name]

    def read_part(self, name: str, index: Index) -> Stored:
        self.seen.append((name, index))
        return part_of(self.tensors[name], index)

    def tokenizer(self):
        raise NotImplementedError

    def close(self) -> None:
        pass
