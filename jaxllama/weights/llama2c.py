"""llama2.c files: a header of whole numbers and the tensors one after the other, in three versions.

Found through its entry point. A file names no tensor: their order and sizes follow from the header,
and must give exactly the size of the file. Versions 0 and 1 hold float32; version 2 holds int8 in
groups that share a scale, which stay packed. The tokenizer is a second file beside it.
"""

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from jaxllama.config import ModelConfig
from jaxllama.errors import BadHeader, UnsupportedModel
from jaxllama.kernels.packed import Packed
from jaxllama.weights.base import Checkpoint
from jaxllama.weights.binary import BinaryFile
from jaxllama.weights.fields import MAX_HEADS, MAX_LAYERS, MAX_SIZE
from jaxllama.weights.meta_names import EMBEDDING, HEAD, meta_table
from jaxllama.weights.rules import Rule
from jaxllama.weights.stored import Index, Shape, Stored, read_rows

if TYPE_CHECKING:
    from jaxllama.text.exchange import TokenizerSource
    from jaxllama.text.tokenizer import Tokenizer

MAGIC = b"24ka"  # the number 0x616b3432, "ak42" read as big endian
VERSIONS = (1, 2)  # of files that begin with the magic number; others are version 0
INT8 = 2  # the version with packed matrices
SIZES = struct.Struct("<7i")
FIELDS = struct.Struct("<4xi28xBi")  # version; after the sizes, is tied; at byte 37 the group size
HEADER_SIZE = 256  # of versions 1 and 2
FLOAT = 4  # bytes
TOKENIZER = "tokenizer.bin"
NORM_EPS = 1e-5  # of every file; so is the base frequency 10000

MATRICES = {  # in the order of every version
    "attention.wq": ("width", "width"),
    "attention.wk": ("kv_width", "width"),
    "attention.wv": ("kv_width", "width"),
    "attention.wo": ("width", "width"),
    "feed_forward.w1": ("hidden", "width"),
    "feed_forward.w2": ("width", "hidden"),
    "feed_forward.w3": ("hidden", "width"),
}
FREQUENCIES = ("freqs_cos", "freqs_sin")  # of version 0; computed, never loaded


@dataclass(frozen=True)
class Llama2cHeader:
    """The numbers at the start of a file."""

    version: int
    width: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    context: int
    is_tied: bool
    group: int = 0  # version 2: codes that share a scale

    @property
    def kv_width(self) -> int:
        """Return the number of outputs of a layer's key matrix; the value matrix has as many."""
        return self.width // self.heads * self.kv_heads


@dataclass(frozen=True)
class Llama2cTensor:
    """Shape and place of one tensor."""

    shape: Shape
    offset: int
    group: int = 0  # 0: float32, else int8 codes and then their scales

    @property
    def items(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Return the number of bytes that the tensor takes in the file."""
        return self.items + self.items // self.group * FLOAT if self.group else self.items * FLOAT

    @property
    def kind(self) -> str:
        """Return the element type as a text for display, such as "F32"."""
        return f"int8 in groups of {self.group}" if self.group else "F32"


class Llama2cCheckpoint(Checkpoint):
    """One llama2.c file."""

    def __init__(self, file: BinaryFile) -> None:
        self._file = file
        header = read_header(file)
        self._tensors = place_tensors(header, file)
        self._config = config_of(header, file.path.stem)

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Say whether `path` is a file that may be a llama2.c model.

        Such a file begins with a magic number or, in version 0, with seven sizes of a model.
        """
        if not path.is_file():
            return False
        file = BinaryFile(path)
        try:
            head = file.read(0, min(file.size, SIZES.size)).tobytes()
        finally:
            file.close()
        return head.startswith(MAGIC) or are_sensible(head)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the file; raise BadHeader if its header does not fit the size of the file."""
        file = BinaryFile(path)
        try:
            return cls(file)
        except BaseException:
            file.close()
            raise

    @property
    def config(self) -> ModelConfig:
        """Return the configuration of the model."""
        return self._config

    @cached_property
    def table(self) -> Mapping[str, Rule]:
        """Return, by parameter path, the rules that read the parameters from the file's tensors.

        A parameter path is a name such as `blocks.0.attention.q.weight`; tensors have Meta's names.
        """
        return meta_table(self._config)

    @cached_property
    def shapes(self) -> Mapping[str, Shape]:
        """Map the name of every tensor to its stored shape; omit tensors that are never loaded."""
        return {
            name: tensor.shape for name, tensor in self._tensors.items() if name not in FREQUENCIES
        }

    @property
    def kinds(self) -> Mapping[str, tuple[str, int]]:
        """Return the element type and the size in bytes of every tensor, by the tensor's name."""
        entries = ((name, self._tensors[name]) for name in self.shapes)
        return {name: (tensor.kind, tensor.nbytes) for name, tensor in entries}

    def read_stored(self, name: str) -> Stored:
        """Read one tensor as stored.

        A matrix of a version 2 file stays packed, but becomes float32 if a scale spans two rows.
        """
        tensor = self._tensors[name]
        return self._read_rows(tensor, 0, tensor.shape[0])

    def read_part(self, name: str, index: Index) -> Stored:
        """Read part `index` of tensor `name`; `index` has one slice per axis.

        Only the rows of the tensor that this part needs are read from the file.
        """
        tensor = self._tensors[name]
        return read_rows(index, tensor.shape, tensor.nbytes, partial(self._read_rows, tensor))

    def tokenizer(self) -> "Tokenizer":
        """Build the tokenizer from its file, which is in the same folder as the model.

        The file is named after the size of the vocabulary, as in tok512.bin, or is tokenizer.bin.
        """
        from jaxllama.text.sources import tokenizer_from_llama2c  # noqa: PLC0415 - heavy

        return tokenizer_from_llama2c(self._vocabulary())

    def tokenizer_source(self) -> "TokenizerSource":
        """Return the tokenizer in the form of GGUF metadata, for exports."""
        from jaxllama.text.exchange import source_of_llama2c  # noqa: PLC0415 - heavy

        return source_of_llama2c(self._vocabulary(), self._config.vocab_size)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _vocabulary(self) -> Path:
        own = self._file.path.with_name(f"tok{self._config.vocab_size}.bin")
        return own if own.exists() else own.with_name(TOKENIZER)

    def _read_rows(self, tensor: Llama2cTensor, start: int, stop: int) -> Stored:
        """Read the rows from `start` to `stop` of a tensor."""
        shape = (stop - start, *tensor.shape[1:])
        width = tensor.items // tensor.shape[0]
        first, count = start * width, (stop - start) * width
        if not tensor.group:
            raw = self._file.read(tensor.offset + first * FLOAT, count * FLOAT)
            return raw.view("<f4").reshape(shape)
        codes = self._file.read(tensor.offset + first, count).view(np.int8).reshape(shape)
        low, high = first // tensor.group, -(-(first + count) // tensor.group)
        at = tensor.offset + tensor.items + low * FLOAT
        scales = self._file.read(at, (high - low) * FLOAT).view("<f4")
        if width % tensor.group == 0:
            return Packed(codes, scales.reshape(len(codes), -1), None, bits=8, group=tensor.group)
        # A group that spans two rows has no place in a packed matrix.
        each = np.repeat(scales, tensor.group)[first - low * tensor.group :][:count]
        with np.errstate(all="ignore"):  # damaged scales may be NaN; the engine checks for that
            return codes.astype(np.float32) * each.reshape(shape)


def config_of(header: Llama2cHeader, name: str) -> ModelConfig:
    """Return the configuration of the model `name`, whose sizes are in the header."""
    return ModelConfig(
        vocab_size=header.vocab,
        width=header.width,
        layers=header.layers,
        heads=header.heads,
        kv_heads=header.kv_heads,
        head_dim=header.width // header.heads,
        ffn_width=header.hidden,
        max_context=header.context,
        norm_eps=NORM_EPS,
        tied=header.is_tied,
        name=name,
    )


def are_sensible(head: bytes) -> bool:
    """Say whether the bytes `head` begin with seven numbers that can be the sizes of a model."""
    if len(head) < SIZES.size:
        return False
    width, hidden, layers, heads, kv_heads, vocab, context = SIZES.unpack_from(head)
    bounds = (
        (width, MAX_SIZE),
        (hidden, MAX_SIZE),
        (layers, MAX_LAYERS),
        (heads, MAX_HEADS),
        (kv_heads, MAX_HEADS),
        (abs(vocab), MAX_SIZE),
        (context, MAX_SIZE),
    )
    return all(1 <= size <= most for size, most in bounds) and not (
        width % heads or heads % kv_heads
    )


def read_header(file: BinaryFile) -> Llama2cHeader:
    """Return the header of a llama2.c file; raise BadHeader if its numbers are no model's.

    Raise UnsupportedModel if the version of the file is unknown.
    """
    where = file.path.name
    head = file.read(0, min(file.size, HEADER_SIZE)).tobytes()
    if not head.startswith(MAGIC):
        width, hidden, layers, heads, kv_heads, vocab, context = read_sizes(head, where)
        is_tied = vocab > 0
        vocab = abs(vocab)
        return Llama2cHeader(0, width, hidden, layers, heads, kv_heads, vocab, context, is_tied)
    if len(head) < HEADER_SIZE:
        raise BadHeader(f"{where}: has {len(head)} bytes; the header alone has {HEADER_SIZE}")
    version, tied, group = FIELDS.unpack_from(head)
    if version not in VERSIONS:
        raise UnsupportedModel(f"{where}: has version {version}; expected one of 0, 1 and 2")
    width, hidden, layers, heads, kv_heads, vocab, context = read_sizes(head[8:], where)
    if vocab < 1 or tied > 1:
        raise BadHeader(
            f"{where}: vocabulary {vocab} and shared classifier {tied}; expected a positive number "
            f"and 0 or 1"
        )
    if version == INT8 and (group < 1 or width % group):
        raise BadHeader(
            f"{where}: the group size is {group}; expected a divisor of the width {width}"
        )
    is_tied = tied == 1
    group = group if version == INT8 else 0
    return Llama2cHeader(
        version, width, hidden, layers, heads, kv_heads, vocab, context, is_tied, group
    )


def read_sizes(head: bytes, where: str) -> tuple[int, ...]:
    """Return the seven sizes that `head` begins with; raise BadHeader if they are no model's.

    These are width, feed-forward width, layers, heads, key/value heads, vocabulary and context.
    `where` is the name of the file, for the error.
    """
    if not are_sensible(head):
        sizes = SIZES.unpack_from(head) if len(head) >= SIZES.size else ()
        raise BadHeader(
            f"{where}: the sizes {list(sizes)} are no model's; expected width, feed-forward width, "
            f"layers, heads, key/value heads that divide the heads, vocabulary and context"
        )
    return SIZES.unpack_from(head)


def place_tensors(header: Llama2cHeader, file: BinaryFile) -> dict[str, Llama2cTensor]:
    """Return every tensor by name, with its shape and its offset in the file.

    Raise BadHeader unless the tensors that `header` implies fill the file exactly.
    """
    where = file.path.name
    tensors = {}
    at = HEADER_SIZE if header.version else SIZES.size
    for name, shape in (ordered if header.version else ordered_v0)(header):
        group = header.group if len(shape) > 1 else 0
        tensor = Llama2cTensor(shape, at, group)
        if group and tensor.items % group:
            raise BadHeader(
                f"{where}: groups of {group} do not divide {name} of shape {list(shape)}"
            )
        tensors[name] = tensor
        at += tensor.nbytes
    if at != file.size:
        raise BadHeader(
            f"{where}: the sizes in its header need {at} bytes; the file has {file.size}; it is "
            f"truncated, or no llama2.c model"
        )
    return tensors


def ordered_v0(header: Llama2cHeader) -> Iterator[tuple[str, Shape]]:
    """Yield name and shape of every tensor of a version 0 file, in order."""
    attention = [name for name in MATRICES if name.startswith("attention")]
    yield EMBEDDING, (header.vocab, header.width)
    yield from norms("attention_norm", header)
    for name in attention:
        yield from matrices(name, header)
    yield from norms("ffn_norm", header)
    for name in [name for name in MATRICES if name not in attention]:
        yield from matrices(name, header)
    yield "norm.weight", (header.width,)
    for name in FREQUENCIES:
        yield name, (header.context, header.width // header.heads // 2)
    if not header.is_tied:
        yield HEAD, (header.vocab, header.width)


def ordered(header: Llama2cHeader) -> Iterator[tuple[str, Shape]]:
    """Yield name and shape of every tensor of a version 1 or 2 file, in order."""
    yield from norms("attention_norm", header)
    yield from norms("ffn_norm", header)
    yield "norm.weight", (header.width,)
    yield EMBEDDING, (header.vocab, header.width)
    for name in MATRICES:
        yield from matrices(name, header)
    if not header.is_tied:
        yield HEAD, (header.vocab, header.width)


def norms(name: str, header: Llama2cHeader) -> Iterator[tuple[str, Shape]]:
    """Yield Meta's tensor name and the shape of a norm for every layer.

    `name` is the norm's name within a layer, such as "attention_norm".
    """
    for layer in range(header.layers):
        yield f"layers.{layer}.{name}.weight", (header.width,)


def matrices(name: str, header: Llama2cHeader) -> Iterator[tuple[str, Shape]]:
    """Yield Meta's tensor name and the shape of a matrix for every layer.

    `name` is the matrix's name within a layer, such as "attention.wq".
    """
    rows, columns = (getattr(header, size) for size in MATRICES[name])
    for layer in range(header.layers):
        yield f"layers.{layer}.{name}.weight", (rows, columns)
