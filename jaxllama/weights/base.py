"""The weight-format socket: the interface of a format, and the filling of a parameter tree from it.

A format is five parts in one class: a recogniser, a configuration, a table from our paths to the
tensors of the file (`rules.py`), a tensor reader and a tokenizer. It returns tensors in canonical
layout; it knows no device, no sharding and no kernel. Called by `llm.py` and the CLI.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from jaxllama.config import ModelConfig
from jaxllama.errors import BadTensors, UnsupportedModel
from jaxllama.kernels.body import UnreadMatrix
from jaxllama.model.params import Leaf, Tree, nest
from jaxllama.weights.rules import Rule, read_weight, stored_shapes
from jaxllama.weights.stored import Index, Shape, Stored, part_of, whole

if TYPE_CHECKING:
    from jaxllama.text.exchange import TokenizerSource
    from jaxllama.text.tokenizer import Tokenizer

Place = Callable[[str, Leaf, Any], Any]  # path, leaf, and its Stored value or an UnreadMatrix
CountProgress = Callable[[int, int], None]


class Checkpoint(ABC):
    """An open model file or folder; as a context manager, it closes the files at exit."""

    @classmethod
    @abstractmethod
    def recognizes(cls, path: Path) -> bool:
        """Say whether `path`, an existing file or folder, looks like this format; must be quick."""

    @classmethod
    @abstractmethod
    def open(cls, path: Path) -> Self:
        """Open the model at `path`, and check all that can be checked without reading tensors.

        Must allocate nothing large.
        """

    @property
    @abstractmethod
    def config(self) -> ModelConfig:
        """Return the configuration of the model: its sizes and its architecture."""

    @property
    @abstractmethod
    def table(self) -> Mapping[str, Rule]:
        """Return the rules that read weights from the file's tensors, by parameter path.

        Every weight that this format can hold has a rule.
        """

    @property
    @abstractmethod
    def shapes(self) -> Mapping[str, Shape]:
        """Map the name of every tensor in the file to its stored shape.

        Tensors that are known to be superfluous are left out.
        """

    @property
    def recommended(self) -> Mapping[str, object]:
        """Return the sampler settings that the model's maker recommends in the file, unchecked.

        The keys are names such as `temperature`.
        """
        return {}

    @property
    def kinds(self) -> Mapping[str, tuple[str, int]]:
        """Map each tensor name in `shapes` to the element type and the size in bytes, for display.

        {} if they are not known.
        """
        return {}

    def expect(self, paths: Sequence[str]) -> None:
        """Announce which weights are read next: parameter paths in order, each weight whole.

        A format may start to read them in advance; by default it does not.
        """
        del paths

    @abstractmethod
    def read_stored(self, name: str) -> Stored:
        """Read the tensor `name` as stored in the file, into new memory.

        A quantised matrix may be returned as Packed.
        """

    def read_part(self, name: str, index: Index) -> Stored:
        """Read the part `index`, one slice per axis, of a tensor as stored, into new memory.

        By default, read the whole tensor and return its part; a format that can should read the
        part alone.
        """
        return part_of(self.read_stored(name), index)

    @abstractmethod
    def tokenizer(self) -> "Tokenizer":
        """Build the tokenizer that came with the model."""

    def tokenizer_source(self) -> "TokenizerSource":
        """Return the tokenizer's files or metadata, unchanged, for exports.

        By default, raise UnsupportedModel.
        """
        raise UnsupportedModel(
            f"models read by {type(self).__name__} cannot be written in another format: the reader "
            f"does not hand on their tokenizer"
        )

    @abstractmethod
    def close(self) -> None:
        """Close the files; may be called again."""

    def read(self, path: str, leaf: Leaf, index: Index | None = None) -> Stored:
        """Read the weight with this parameter path, or its part `index`, in the model's layout.

        `leaf` has the shape of the whole weight. `index` has one slice per axis; None: the whole
        weight.
        """
        rule = self.table.get(path)
        if rule is None:
            raise BadTensors(f"{path} {list(leaf.shape)} has no place in this format")
        return read_weight(rule, leaf.shape, index, self._read_any)

    def _read_any(self, name: str, index: Index) -> Stored:
        """Read the part `index`, possibly the whole, of the file's tensor `name`, as stored."""
        is_whole = index == whole(self.shapes[name])
        return self.read_stored(name) if is_whole else self.read_part(name, index)

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
    progress: CountProgress | None = None,
    *,
    in_parts: bool = False,
) -> Tree:
    """Read all weights one by one, pass each to `place`, and return its results as a tree.

    `abstract` maps parameter paths to leaves, which have the expected shapes; BadTensors is raised
    if the file's tensors do not fit. `place` is called with path, leaf and value. With `in_parts`,
    matrices are not read here: `place` gets an UnreadMatrix and reads the parts that it needs.
    `progress` is called with the number of weights done and of all.
    """
    check_tensors(abstract, checkpoint)
    placed: dict[str, Any] = {}
    checkpoint.expect(
        [path for path, leaf in abstract.items() if not (in_parts and leaf.is_matrix)]
    )
    for path, leaf in abstract.items():
        value: Stored | UnreadMatrix
        if in_parts and leaf.is_matrix:
            value = UnreadMatrix(leaf.shape, partial(checkpoint.read, path, leaf))
        else:
            value = checkpoint.read(path, leaf)
        placed[path] = place(path, leaf, value)
        if progress is not None:
            progress(len(placed), len(abstract))
    return nest(placed)


def check_tensors(abstract: Mapping[str, Leaf], checkpoint: Checkpoint) -> None:
    """Raise one BadTensors that lists every missing, surplus and misshapen tensor.

    `abstract` has the expected shapes by parameter path.
    """
    table, shapes = checkpoint.table, checkpoint.shapes
    problems = [f"{path} has no place in this format" for path in abstract if path not in table]
    expected = stored_shapes(table, abstract)
    for name, shape in expected.items():
        if name not in shapes:
            problems.append(f"{name} is missing")
        elif shapes[name] != shape:
            problems.append(f"{name} has shape {list(shapes[name])}, expected {list(shape)}")
    problems += [f"{name} is surplus" for name in shapes if name not in expected]
    if problems:
        raise BadTensors(
            f"{len(problems)} tensors do not fit the model's configuration: " + "; ".join(problems)
        )
