"""Meta's folders: params.json, consolidated.NN.pth and tokenizer.model, as Meta publishes Llama.

Found through its entry point. Every shard holds a part of each matrix; `torch_file.py` reads them,
zipped or unpacked. The meaning of params.json is in `meta_config.py`.
"""

import re
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from jaxllama.config import ModelConfig
from jaxllama.errors import BadHeader, CheckpointError, UnsupportedModel
from jaxllama.weights.base import Checkpoint
from jaxllama.weights.fields import read_json, shown
from jaxllama.weights.meta_config import read_config
from jaxllama.weights.meta_names import COLUMNS, EMBEDDING, HEAD, ROWS, meta_table, sharded
from jaxllama.weights.rules import Join, Rule
from jaxllama.weights.stored import Index, Shape, Stored
from jaxllama.weights.torch_file import PICKLE, TorchFile
from jaxllama.weights.torch_pickle import TorchTensor

if TYPE_CHECKING:
    from jaxllama.text.exchange import TokenizerSource
    from jaxllama.text.tokenizer import Tokenizer

PARAMS = "params.json"
TOKENIZER = "tokenizer.model"
MAX_PARAMS = 1 << 20  # bytes
MAX_SHARDS = 64
SHARD_NAME = re.compile(r"consolidated(?:\.([0-9]{2}))?(\.pth)?", re.ASCII)
DTYPES = ("F32", "F16", "BF16")
SUPERFLUOUS = "rope.freqs"  # computed, never loaded


class MetaCheckpoint(Checkpoint):
    """One folder as Meta publishes it."""

    def __init__(self, folder: Path, shards: list[TorchFile]) -> None:
        self._folder = folder
        self._shards = shards
        fields = read_json(folder / PARAMS, MAX_PARAMS)
        self._tensors = {
            self._called(number, name): (shard, name)
            for number, shard in enumerate(shards)
            for name in shard.tensors
            if not name.endswith(SUPERFLUOUS) and not (name == HEAD and repeats_embedding(shard))
        }
        first = {name: tensor.shape for name, tensor in shards[0].tensors.items()}
        if repeats_embedding(shards[0]):
            del first[HEAD]
        self._config = read_config(fields, folder.resolve().name, first, len(shards))
        self._check_dtypes()

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Say whether `path` is a folder with a params.json and a shard, consolidated.NN.pth."""
        return (path / PARAMS).is_file() and any(map(is_shard, path.iterdir()))

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a model folder: read params.json and the headers (pickles) of all shards."""
        with ExitStack() as opened:
            shards = []
            for shard in find_shards(path):
                shards.append(TorchFile(shard))
                opened.callback(shards[-1].close)
            checkpoint = cls(path, shards)
            opened.pop_all()
        return checkpoint

    @property
    def config(self) -> ModelConfig:
        """Return the configuration of the model."""
        return self._config

    @cached_property
    def table(self) -> Mapping[str, Rule]:
        """Return, by parameter path, the rules that join each parameter from the shards' tensors.

        A parameter path is a name such as `blocks.0.attention.q.weight`.
        """
        return meta_table(self._config, len(self._shards), self._embedding())

    @cached_property
    def shapes(self) -> Mapping[str, Shape]:
        """Map the name of every tensor to its stored shape; omit tensors that are never loaded."""
        return {name: self._tensor(name).shape for name in self._tensors}

    @property
    def kinds(self) -> Mapping[str, tuple[str, int]]:
        """Return the element type and the size in bytes of every tensor, by the tensor's name."""
        entries = ((name, self._tensor(name)) for name in self._tensors)
        return {name: (tensor.dtype, tensor.nbytes) for name, tensor in entries}

    def read_stored(self, name: str) -> Stored:
        """Read one tensor of one shard in the file's own precision.

        `name` names both, as in `0/norm.weight`; a single shard has no number.
        """
        shard, inner = self._tensors[name]
        return shard.read(inner)

    def read_part(self, name: str, index: Index) -> Stored:
        """Read part `index`, one slice per axis, of one tensor of one shard.

        `name` names both, as in `0/norm.weight`; a single shard has no number. Only the rows that
        the part needs are read from the file.
        """
        shard, inner = self._tensors[name]
        return shard.read_part(inner, index)

    def tokenizer(self) -> "Tokenizer":
        """Build the tokenizer from tokenizer.model."""
        from jaxllama.text.sources import tokenizer_from_model  # noqa: PLC0415 - heavy

        return tokenizer_from_model(self._folder / TOKENIZER)

    def tokenizer_source(self) -> "TokenizerSource":
        """Return the tokenizer as stored, the file tokenizer.model, for exports."""
        from jaxllama.text.exchange import source_of_folder  # noqa: PLC0415 - heavy

        return source_of_folder(self._folder, (TOKENIZER,))

    def close(self) -> None:
        """Close the shards."""
        for shard in self._shards:
            shard.close()

    def _called(self, shard: int, name: str) -> str:
        return name if len(self._shards) == 1 else sharded(shard, name)

    def _tensor(self, name: str) -> TorchTensor:
        shard, inner = self._tensors[name]
        return shard.tensors[inner]

    def _embedding(self) -> Join:
        """Return how shards divide the embedding: Llama 1 and 2 by columns, Llama 3 by rows."""
        shape = self.shapes.get(self._called(0, EMBEDDING), ())
        return ROWS if shape[1:] == (self._config.width,) else COLUMNS

    def _check_dtypes(self) -> None:
        """Raise UnsupportedModel unless every tensor of the model has a supported float type."""
        for name, (shard, _) in self._tensors.items():
            dtype = self._tensor(name).dtype
            if dtype not in DTYPES:
                raise UnsupportedModel(
                    f"{shard.path}: tensor {shown(name)} has dtype {dtype}, which is not "
                    f"supported; expected one of {', '.join(DTYPES)}"
                )


def is_shard(path: Path) -> bool:
    """Say whether `path` is a shard: a file consolidated.NN.pth, or a folder with its content."""
    match = SHARD_NAME.fullmatch(path.name)
    if match is None:
        return False
    return path.is_file() if match[2] else (path / PICKLE).is_file()


def find_shards(folder: Path) -> list[Path]:
    """Return the shards of a folder in order; a single one may have no number.

    Raise CheckpointError if one is missing, or two have the same number.
    """
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        match = SHARD_NAME.fullmatch(path.name)
        if match is None or not is_shard(path):
            continue
        number = int(match[1] or 0)
        if number in found:
            raise CheckpointError(
                f"{folder} holds shard {number} twice, as {found[number].name} and as {path.name}; "
                f"move one of them out of the folder"
            )
        found[number] = path
    if len(found) > MAX_SHARDS:
        raise BadHeader(f"{folder} holds {len(found)} shards; expected at most {MAX_SHARDS}")
    missing = sorted(set(range(max(found, default=0) + 1)) - set(found))
    if missing:
        raise CheckpointError(
            f"{folder} holds shards up to consolidated.{max(found, default=0):02}, but not "
            f"{', '.join(f'consolidated.{number:02}' for number in missing)} (download them too)"
        )
    return [found[number] for number in range(len(found))]


def repeats_embedding(shard: TorchFile) -> bool:
    """Say whether a shard (consolidated.NN.pth) stores output head and embedding as one tensor."""
    head = shard.tensors.get(HEAD)
    return head is not None and head == shard.tensors.get(EMBEDDING)
