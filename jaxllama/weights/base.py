"""The weight-format socket: the interface of a format, and the filling of a parameter tree from it.

A format is five parts in one class: a recogniser, a configuration, a table from our names to
the names in the file, a tensor reader and a tokenizer. It returns tensors in canonical layout; it
knows no device, no sharding and no kernel. Called by `llm.py` and the CLI.
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
    """The origin of one weight: its name in the file, and the layout steps to canonical layout.

    In a format's table both the key and the name hold `{i}` in place of the layer's number.
    """

    name: str
    steps: tuple[str, ...] = ()


class Checkpoint(ABC):
    """An open model file or folder; as a context manager, it closes the files at exit."""

    @classmethod
    @abstractmethod
    def recognizes(cls, path: Path) -> bool:
        """Say whether `path`, an existing file or folder, looks like this format; must be quick."""

    @classmethod
    @abstractmethod
    def open(cls, path: Path) -> Self:
        """Open a model and check all it can without reading tensors; allocate nothing large."""

    @property
    @abstractmethod
    def config(self) -> ModelConfig:
        """Return the model's shape."""

    @property
    @abstractmethod
    def table(self) -> Mapping[str, Rule]:
        """Map our path to the name in the file, for every weight this format can hold."""

    @property
    @abstractmethod
    def shapes(self) -> Mapping[str, Shape]:
        """Map the name of every tensor in the file to its stored shape.

        Omit known superfluous ones.
        """

    @property
    def recommended(self) -> Mapping[str, object]:
        """Return the sampling that the model's maker recommends in the file, by knob, unchecked."""
        return {}

    @property
    def kinds(self) -> Mapping[str, tuple[str, int]]:
        """Return element type and bytes of each of `shapes`, for display; {} if unknown."""
        return {}

    @abstractmethod
    def read_stored(self, name: str) -> Stored:
        """Read one tensor as stored in the file, into new memory; a matrix may be Packed."""

    @abstractmethod
    def tokenizer(self) -> "Tokenizer":
        """Build the tokenizer that came with the model."""

    @abstractmethod
    def close(self) -> None:
        """Close the files; may be called again."""

    def read(self, path: str, leaf: Leaf) -> Stored:
        """Read one weight and convert it to canonical layout."""
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
    """Build the parameter tree from the results of `place`, called with one tensor after another.

    Only one tensor at a time is in host memory. Raises BadTensors if tensors do not fit.
    """
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
    """Expand a format's table: one row per layer for each row with `{i}`."""
    whole: dict[str, Rule] = {}
    for path, rule in table.items():
        if "{i}" not in path:
            whole[path] = rule
            continue
        for i in range(layers):
            number = str(i)
            whole[path.replace("{i}", number)] = Rule(rule.name.replace("{i}", number), rule.steps)
    return whole
