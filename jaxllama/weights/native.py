"""Our own checkpoints: a folder with a manifest, the tokenizer, and the arrays in a store.

Found through its entry point; written by `convert.py`. The manifest (`jaxllama.json`) holds the
model's configuration, the form of every weight, where they come from, and checksums of the other
files. Weights are in canonical layout, so loading converts nothing, and a part of a large weight is
read without the rest. Where the caller says which weights it reads next, they are read ahead.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec

from jaxllama.config import ModelConfig
from jaxllama.errors import BadHeader, UnsupportedModel
from jaxllama.kernels.packed import Packed
from jaxllama.weights.base import Checkpoint
from jaxllama.weights.binary import BinaryFile
from jaxllama.weights.fields import BLOCK_TENSORS, MAX_LAYERS, CheckedFields, read_json
from jaxllama.weights.layout import TRANSPOSED
from jaxllama.weights.native_bundles import BundledArray, BundleReader, lay_out
from jaxllama.weights.native_store import ArrayStore, PendingArray
from jaxllama.weights.rules import Rule
from jaxllama.weights.stored import (
    Index,
    Shape,
    Stored,
    minima_around_middle,
    nbytes_of,
    part_of,
    whole,
)

if TYPE_CHECKING:
    from jaxllama.text.exchange import TokenizerSource
    from jaxllama.text.tokenizer import Tokenizer

MANIFEST = "jaxllama.json"
ARRAYS = "arrays"
METADATA = "tokenizer.ggml.json"  # the tokenizer of a GGUF file
FORMAT, VERSION = "jaxllama checkpoint", 2
OLDEST_VERSION = 1  # without bundles
MAX_MANIFEST = 16 << 20  # bytes
MAX_TEXT = 256 << 20
EMBEDDING = "embed.weight"  # canonical [vocab, width], packed or not
MOST_AHEAD = 48  # weights


class StoredForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The form of one weight: a dense array, or the arrays of a packed matrix stored by output."""

    shape: tuple[int, ...]  # packed: [out, in], of experts [experts, out, in]
    dtype: str  # packed: of the scales
    bits: int = 0  # 0: dense
    group: int = 0
    minima: bool = False
    symmetric: bool = False  # minima are -8 scales and not stored
    order: bool = False

    @property
    def nbytes(self) -> int:
        """Return the number of bytes of all arrays of the weight."""
        return sum(nbytes_of(shape, dtype) for shape, dtype in self.arrays().values())

    def arrays(self) -> dict[str, tuple[Shape, str]]:
        """Return shape and dtype of each array that stores the weight.

        The keys are `value` for a dense weight, else `codes`, `scales` and perhaps `minima` and
        `order`.
        """
        if not self.bits:
            return {"value": (self.shape, self.dtype)}
        *outer, out, inward = self.shape
        half = self.bits == 4  # noqa: PLR2004
        groups = (*outer, out, inward // self.group)
        found: dict[str, tuple[Shape, str]] = {
            "codes": ((*outer, out, inward // 2 if half else inward), "uint8" if half else "int8"),
            "scales": (groups, self.dtype),
        }
        if self.minima:
            found["minima"] = (groups, self.dtype)
        if self.order:
            found["order"] = ((*outer, inward), "int32")
        return found


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that a checkpoint says about itself."""

    format: str
    version: int
    config: ModelConfig
    weights: dict[str, StoredForm]
    files: dict[str, str]  # the tokenizer's files, with their SHA-256
    bundles: dict[str, list[str]] = {}  # names of the arrays that each one holds, in order
    recommended: dict[str, Any] = {}
    provenance: dict[str, Any] = {}

    def arrays(self) -> dict[str, tuple[Shape, str]]:
        """Return shape and dtype of every array by name: PATH/value, PATH/codes and so on."""
        return {
            f"{path}/{part}": each
            for path, form in self.weights.items()
            for part, each in form.arrays().items()
        }


@dataclass(frozen=True)
class PendingWeight:
    """A weight, or a part of it, that is being read from the disk."""

    form: StoredForm
    arrays: Mapping[str, PendingArray | BundledArray]  # by the part of the weight that they are
    kept: slice  # of the inputs that are read of a packed matrix, those that were asked for

    def result(self) -> Stored:
        """Wait until the weight, or the requested part of it, is read from the disk; return it."""
        found = {part: each.result() for part, each in self.arrays.items()}
        if not self.form.bits:
            return found["value"]
        scales = found["scales"]
        minima = minima_around_middle(scales) if self.form.symmetric else found.get("minima")
        packed = Packed(
            found["codes"],
            scales,
            minima,
            self.form.bits,  # type: ignore[arg-type]  # checked with the manifest
            self.form.group,
            found.get("order"),
        )
        return part_of(packed, (*whole(scales.shape[:-1]), self.kept))


class NativeCheckpoint(Checkpoint):
    """One folder as `jaxllama convert` writes it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._manifest = read_manifest(folder)
        self._store = ArrayStore(folder / ARRAYS)
        arrays = self._manifest.arrays()
        layout = lay_out(self._manifest.bundles, arrays, str(folder / MANIFEST))
        self._reader = BundleReader(self._store, layout, arrays)
        self._next: list[str] = []  # weights to read ahead, the last one first
        self._ahead: dict[str, PendingWeight] = {}

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        """Say whether `path` is a folder with a manifest, jaxllama.json."""
        return (path / MANIFEST).is_file()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the checkpoint in the folder `path`: read and check its manifest, jaxllama.json."""
        return cls(path)

    @property
    def config(self) -> ModelConfig:
        """Return the configuration of the model."""
        return self._manifest.config

    @cached_property
    def table(self) -> Mapping[str, Rule]:
        """Return, by parameter path, the rule that reads a weight: its tensor has the path as name.

        A parameter path is a name such as `blocks.0.attention.q.weight`.
        """
        return {
            path: Rule(path, TRANSPOSED if form.bits and path != EMBEDDING else ())
            for path, form in self._manifest.weights.items()
        }

    @cached_property
    def shapes(self) -> Mapping[str, Shape]:
        """Return the stored shape of every weight, by parameter path."""
        return {path: form.shape for path, form in self._manifest.weights.items()}

    @property
    def kinds(self) -> Mapping[str, tuple[str, int]]:
        """Return the storage type and the size in bytes of every weight, by parameter path."""
        names = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
        return {
            path: (f"int{form.bits}" if form.bits else names[form.dtype], self._bytes[path])
            for path, form in self._manifest.weights.items()
        }

    @property
    def recommended(self) -> Mapping[str, object]:
        """Return the sampler settings that the converted model recommended, by name."""
        return self._manifest.recommended

    @property
    def provenance(self) -> Mapping[str, object]:
        """Return what `jaxllama convert` noted about the source: its name, its reader and more."""
        return self._manifest.provenance

    def expect(self, paths: Sequence[str]) -> None:
        """Plan to read the weights with these parameter paths in advance, in this order.

        Reading begins with the first call of `read_stored`. The weight that it reads and those read
        ahead take together no more memory than the largest weight of the model. Other arrays in
        the same bundles are not counted.
        """
        forms = self._manifest.weights
        known = [path for path in paths if path in forms]
        names = (f"{path}/{part}" for path in known for part in forms[path].arrays())
        self._store.open(self._reader.stored_names(names))
        self._ahead.clear()
        self._next = known[::-1]

    def read_stored(self, name: str) -> Stored:
        """Read one weight; also start to read some of the weights that `expect` announced."""
        reading = self._ahead.pop(name, None)
        if reading is None:  # in another order than expected: what is ahead makes room
            self._next += reversed(self._ahead)
            self._ahead.clear()
            if name in self._next:
                self._next.remove(name)
            reading = self._start(name, whole(self._manifest.weights[name].shape))
        self._read_ahead(self._bytes[name])
        return reading.result()

    def read_part(self, name: str, index: Index) -> Stored:
        """Read part `index`, one slice per axis, of one weight.

        Only the chunks of the file that hold the part are read, and bundles of small arrays whole.
        """
        return self._start(name, index).result()

    def _read_ahead(self, held: int) -> None:
        """Start to read the next of the weights that were passed to `expect`.

        Weights that are read ahead, at most MOST_AHEAD, and the weight that the caller waits for,
        of `held` bytes, take together no more memory than the largest weight of the model. Other
        arrays in the same bundles are not counted.
        """
        forms = self._manifest.weights
        held += sum(self._bytes[name] for name in self._ahead)
        while (
            self._next
            and len(self._ahead) < MOST_AHEAD
            and held + self._bytes[self._next[-1]] <= self._largest
        ):
            name = self._next.pop()
            self._ahead[name] = self._start(name, whole(forms[name].shape))
            held += self._bytes[name]

    @cached_property
    def _bytes(self) -> Mapping[str, int]:
        """Return the size in bytes of every weight, by parameter path."""
        return {path: form.nbytes for path, form in self._manifest.weights.items()}

    @cached_property
    def _largest(self) -> int:
        """Return the size in bytes of the largest weight."""
        return max(self._bytes.values())

    def _start(self, name: str, index: Index) -> PendingWeight:
        """Begin to read part `index` of a weight; `PendingWeight.result` waits for it."""
        form = self._manifest.weights[name]
        if not form.bits:
            return PendingWeight(
                form, {"value": self._reader.start(f"{name}/value", index)}, slice(0, 0)
            )
        *outer, rows, inputs = index
        unit = math.lcm(form.group, 2)
        if form.order or inputs.start % unit or inputs.stop % unit:
            inputs = slice(0, form.shape[-1])
        groups = (*outer, rows, slice(inputs.start // form.group, inputs.stop // form.group))
        per_code = 2 if form.bits == 4 else 1  # noqa: PLR2004 - two per byte
        indices = {
            "codes": (*outer, rows, slice(inputs.start // per_code, inputs.stop // per_code)),
            "scales": groups,
            "minima": groups,
            "order": (*outer, slice(0, form.shape[-1])),
        }
        arrays = {
            part: self._reader.start(f"{name}/{part}", indices[part]) for part in form.arrays()
        }
        kept = slice(index[-1].start - inputs.start, index[-1].stop - inputs.start)
        return PendingWeight(form, arrays, kept)

    def tokenizer(self) -> "Tokenizer":
        """Build the tokenizer that was written with the weights."""
        return self.tokenizer_source().build()

    def tokenizer_source(self) -> "TokenizerSource":
        """Return the tokenizer as the original model had it, for exports.

        Raise BadHeader if a file is damaged.
        """
        from jaxllama.text.exchange import TokenizerSource  # noqa: PLC0415 - heavy

        files = {name: self._file(name, digest) for name, digest in self._manifest.files.items()}
        if METADATA in files:
            path = self._folder / METADATA
            return TokenizerSource(metadata=read_json(path, MAX_TEXT).values)
        return TokenizerSource(files=files)

    def close(self) -> None:
        """Close the store."""
        self._next, self._ahead = [], {}
        self._reader.close()
        self._store.close()

    def _file(self, name: str, digest: str) -> bytes:
        """Read the tokenizer's file `name`; raise BadHeader if its SHA-256 is not `digest`."""
        file = BinaryFile(self._folder / name)
        try:
            if file.size > MAX_TEXT:
                raise BadHeader(f"{file.path} has {file.size} bytes; expected at most {MAX_TEXT}")
            raw = file.read(0, file.size).tobytes()
        finally:
            file.close()
        if hashlib.sha256(raw).hexdigest() != digest:
            raise BadHeader(f"{file.path} has another checksum than {MANIFEST} says; it is damaged")
        return raw


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest, jaxllama.json, of the checkpoint in `folder`.

    Raise BadHeader if it is wrong, UnsupportedModel if it has another version.
    """
    from jaxllama.text.exchange import FOLDER_FILES  # noqa: PLC0415 - heavy

    fields = read_json(folder / MANIFEST, MAX_MANIFEST)
    version = fields.whole("version")
    if fields.text("format") != FORMAT or not OLDEST_VERSION <= version <= VERSION:
        raise UnsupportedModel(
            f"{fields.where} is version {version} of {fields.text('format')!r}; expected version "
            f"{OLDEST_VERSION} to {VERSION} of {FORMAT!r}"
        )
    try:
        manifest = msgspec.convert(fields.values, Manifest)
    except (msgspec.ValidationError, OverflowError, RecursionError) as error:
        raise BadHeader(f"{fields.where}: {error}") from error
    unknown = set(manifest.files) - {*FOLDER_FILES, METADATA}
    if unknown:
        raise BadHeader(f"{fields.where} names {min(unknown)!r:.80}; expected tokenizer files")
    layers = manifest.config.layers
    if layers > MAX_LAYERS or layers * BLOCK_TENSORS > len(manifest.weights):
        raise BadHeader(
            f"{fields.where}: config says {layers} layers and there are "
            f"{len(manifest.weights)} weights"
        )
    check_forms(folder, manifest, fields)
    return manifest


def check_forms(folder: Path, manifest: Manifest, fields: CheckedFields) -> None:
    """Raise BadHeader if a weight's form is impossible, or the array files are too small.

    The form is shape, dtype and packing. `folder` is the checkpoint, `manifest` lists its weights;
    `fields` are the manifest's JSON fields, used to name the file in errors.
    """
    for path, form in manifest.weights.items():
        is_packed = form.bits != 0
        is_sound = form.dtype in ("float32", "float16", "bfloat16") and all(
            0 < size < 1 << 40 for size in form.shape
        )
        if is_packed:
            is_sound = is_sound and is_packable(form)
        if not is_sound or "/" in path:
            raise BadHeader(f"{fields.where}: {path!r:.80} has the form {form}, which cannot be")
    arrays = folder / ARRAYS
    held = sum(each.stat().st_size for each in arrays.rglob("*") if each.is_file())
    needed = sum(form.nbytes for form in manifest.weights.values())
    if needed > held:
        raise BadHeader(
            f"{arrays} has {held} bytes and {MANIFEST} lists weights of {needed}; it is incomplete"
        )


def is_packable(form: StoredForm) -> bool:
    """Say whether a packed matrix can have the bits, shape and group size that `form` states.

    The group size is the number of inputs that share a scale.
    """
    return (
        form.bits in (4, 5, 6, 8)
        and len(form.shape) in (2, 3)
        and form.group > 0
        and form.shape[-1] % form.group == 0
        and (form.bits != 4 or form.group % 2 == 0)  # noqa: PLR2004
        and not (form.minima and form.symmetric)
    )


def manifest_text(manifest: Manifest) -> bytes:
    """Return the manifest as indented JSON, encoded as bytes for its file."""
    raw = msgspec.json.encode(manifest)
    return json.dumps(json.loads(raw), indent=1).encode() + b"\n"
