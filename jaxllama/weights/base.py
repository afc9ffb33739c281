"""The weight-format socket: what a format author implements, and how a tree is filled from it.

A format is five parts in one class: a recogniser, a configuration, a table from our names to
theirs, a tensor reader and a tokenizer. It stops at the canonical tree: no device, no sharding, no
kernel is known here. Called by `llm.py` and the CLI.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from jaxllama.config import ModelConfig
from jaxllama.errors import BadTensors
from jaxllama.model.params import Leaf, Tree, nest
from jaxllama.weights.layout import Shape, Stored, arrange, arranged_shape

if TYPE_CHECKING:
    from jaxllama.text.tokenizer import Tokenizer

Place = Callable[[str, Leaf, Stored], Any]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Rule:
    """Where one weight comes from: their name for it, and the layout steps that make it ours.

    In a format's table both the key and the name hold `{i}` where the block's number goes.
    """

    name: str
    steps: tuple[str, ...] = ()


class Checkpoint(ABC):
    """An open model file or folder; a context manager that lets go of it."""

    @classmethod
    @abstractmethod
    def recognizes(cls, path: Path) -> bool:
        """Whether `path`, an existing file or folder, looks like this format; quick."""

    @classmethod
    @abstractmethod
    def open(cls, path: Path) -> Self:
        """Check everything that can be checked without reading tensors; allocate nothing large."""

    @property
    @abstractmethod
    def config(self) -> ModelConfig:
        """The model's shape."""

    @property
    @abstractmethod
    def table(self) -> Mapping[str, Rule]:
        """Our path to their name, for every weight this format can hold."""

    @property
    @abstractmethod
    def shapes(self) -> Mapping[str, Shape]:
        """Shape as stored of every tensor there is, but for those known to be superfluous."""

    @property
    def recommended(self) -> Mapping[str, object]:
        """Sampling that the model's maker recommends in the file, by knob; nothing is checked."""
        return {}

    @property
    def kinds(self) -> Mapping[str, tuple[str, int]]:
        """Element type and bytes of each of `shapes`, for people; empty if nobody can say."""
        return {}

    @abstractmethod
    def read_stored(self, name: str) -> Stored:
        """One tensor as the file holds it, in memory of its own; a matrix may come Packed."""

    @abstractmethod
    def tokenizer(self) -> "Tokenizer":
        """The tokenizer that came with the model."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the files; closing twice is fine."""

    def read(self, path: str, leaf: Leaf) -> Stored:
        """One weight in canonical layout."""
        rule = self.table.get(path)
        if rule is None:
            raise BadTensors(f"{path} {list(leaf.shape)} has no place in this format")
        return arrange(self.read_stored(rule.name), rule.steps, self.config)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def fill(
    abstract: Mapping[str, Leaf],
    checkpoint: Checkpoint,
    place: Place,
    progress: Progress | None = None,
) -> Tree:
    """The nested tree of what `place` returns, one tensor in host memory at a time."""
    check_tensors(abstract, checkpoint)
    placed: dict[str, Any] = {}
    for path, leaf in abstract.items():
        placed[path] = place(path, leaf, checkpoint.read(path, leaf))
        if progress is not None:
            progress(len(placed), len(abstract))
    return nest(placed)


def check_tensors(abstract: Mapping[str, Leaf], checkpoint: Checkpoint) -> None:
    """Raise one BadTensors that lists every missing, surplus and misshapen tensor."""
    table, shapes = checkpoint.table, checkpoint.shapes
    used: set[str] = set()
    problems: list[str] = []
    for path, leaf in abstract.items():
        rule = table.get(path)
        if rule is None:
            problems.append(f"{path} has no place in this format")
            continue
        used.add(rule.name)
        if rule.name not in shapes:
            problems.append(f"{rule.name} is missing")
            continue
        shape = arranged_shape(shapes[rule.name], rule.steps)
        if shape != leaf.shape:
            stored = list(shapes[rule.name])
            wanted = list(arranged_shape(leaf.shape, rule.steps[::-1]))
            problems.append(f"{rule.name} has shape {stored}, expected {wanted}")
    problems += [f"{name} is surplus" for name in shapes if name not in used]
    if problems:
        raise BadTensors(
            f"{len(problems)} tensors do not fit the model's configuration: " + "; ".join(problems)
        )


def expand(table: Mapping[str, Rule], layers: int) -> dict[str, Rule]:
    """A format's table with its `{i}` rows written out for every block."""
    whole: dict[str, Rule] = {}
    for path, rule in table.items():
        if "{i}" not in path:
            whole[path] = rule
            continue
        for i in range(layers):
            number = str(i)
            whole[path.replace("{i}", number)] = Rule(rule.name.replace("{i}", number), rule.steps)
    return whole
