"""Convert: writes any model as our own checkpoint, weight by weight, quantised if asked.

Called by `jaxllama convert`. Reports how far each weight is from the source's.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import ml_dtypes
import numpy as np

from jaxllama.errors import CheckpointError, ConfigError
from jaxllama.kernels.packed import Packed, dense_of
from jaxllama.model.params import Leaf, abstract_params, loading_order
from jaxllama.weights import open_checkpoint
from jaxllama.weights.base import Checkpoint, CountProgress, check_tensors
from jaxllama.weights.export import fresh
from jaxllama.weights.gguf_writer import to_half
from jaxllama.weights.native import (
    ARRAYS,
    EMBEDDING,
    FORMAT,
    MANIFEST,
    METADATA,
    VERSION,
    Manifest,
    StoredForm,
    manifest_text,
)
from jaxllama.weights.native_bundles import BundleWriter
from jaxllama.weights.native_store import ArrayStore
from jaxllama.weights.quantize import quantize
from jaxllama.weights.stored import Stored, minima_around_middle, stack, unpacked

FLOATS: dict[str, Any] = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}
BITS = {"int8": 8, "int4": 4}
STORED = "stored"
ROUTER = "ffn.router.weight"
DTYPES = (STORED, *FLOATS, *BITS)


@dataclass(frozen=True)
class Recipe:
    """The data type and quantisation with which a checkpoint's matrices are written.

    Vectors are float32.
    """

    dtype: str = STORED  # one of DTYPES; "stored": as the source has them
    group: int = 32  # inputs that share a scale
    minimises_error: bool = False

    def __post_init__(self) -> None:
        """Raise ConfigError for an unknown dtype, or a group size that is odd or less than 2.

        The group size is the number of inputs that share a scale.
        """
        if self.dtype not in DTYPES or self.group < 2 or self.group % 2:  # noqa: PLR2004
            raise ConfigError(
                f"dtype {self.dtype} in groups of {self.group}; expected one of "
                f"{', '.join(DTYPES)}, and an even group"
            )


@dataclass(frozen=True)
class WeightError:
    """The squared difference of a written weight from its source, and the square of the source."""

    path: str
    form: str
    difference: float
    square: float

    @property
    def relative(self) -> float:
        """Return the root mean square of the error, divided by the source's root mean square."""
        return float(np.sqrt(self.difference / self.square)) if self.square else 0.0


def convert(
    source: Path, target: Path, recipe: Recipe, *, replaces: bool = False, progress: CountProgress
) -> list[WeightError]:
    """Write the model at `source` to `target` in jaxllama's own format, as `recipe` describes.

    Returns the error of every weight. `replaces` allows an existing target; `progress` gets the
    number of weights done and their total.
    """
    errors: list[WeightError] = []
    with open_checkpoint(source) as checkpoint, fresh(target, source, replaces=replaces) as made:
        # Bundles of small arrays are read fastest in the order in which they are written.
        leaves = loading_order(abstract_params(checkpoint.config))
        check_tensors(leaves, checkpoint)
        made.path.mkdir()
        store, forms = ArrayStore(made.path / ARRAYS), {}
        writer = BundleWriter(store)
        for done, (path, leaf) in enumerate(leaves.items(), 1):
            given = checkpoint.read(path, leaf)
            value = changed(path, leaf, given, recipe)
            forms[path] = write_weight(writer, path, value)
            errors.append(error_of(path, given, value))
            progress(done, len(leaves))
        writer.finish()
        store.close()
        files = write_tokenizer(made.path, checkpoint)
        manifest = Manifest(
            format=FORMAT,
            version=VERSION,
            config=checkpoint.config,
            weights=forms,
            files=files,
            bundles=writer.bundles,
            recommended=dict(checkpoint.recommended),
            provenance={
                "source": source.name,
                "reader": type(checkpoint).__name__,
                "jaxllama": version("jaxllama"),
                "dtype": recipe.dtype,
                "minimises_error": recipe.minimises_error,
            },
        )
        (made.path / MANIFEST).write_bytes(manifest_text(manifest))
        open_checkpoint(made.path).close()
        made.keep()
    return errors


def changed(path: str, leaf: Leaf, value: Stored, recipe: Recipe) -> Stored:
    """Return a weight in the form that `recipe` asks for; `value` is the weight as stored.

    `path` is its parameter path, `leaf` its shape in the model. A matrix whose number of inputs is
    no multiple of the recipe's group (the inputs that share a scale) becomes bfloat16. Vectors and
    the matrices that choose experts become float32: a rounded one would choose other experts.
    Float8 matrices become float32, as our checkpoints have no form for them.
    """
    if len(leaf.shape) == 1 or path.endswith(ROUTER):
        return canonical(path, value).astype(np.float32)
    if recipe.dtype == STORED:
        is_float8 = isinstance(value, Packed) and value.is_float8
        return canonical(path, value) if is_float8 else value
    bits = BITS.get(recipe.dtype)
    if bits is None:
        dense = canonical(path, value)
        if recipe.dtype == "f16":
            return to_half(path, dense.astype(np.float32))
        return dense.astype(FLOATS[recipe.dtype])
    dense = canonical(path, value)
    by_output = dense if path == EMBEDDING else dense.swapaxes(-1, -2)
    if by_output.shape[-1] % recipe.group:
        return dense.astype(ml_dtypes.bfloat16)
    each = partial(
        quantize,
        bits=cast(Any, bits),
        group=recipe.group,
        minimises_error=recipe.minimises_error,
    )
    return stack(list(map(each, by_output))) if leaf.is_stack else each(by_output)


def canonical(path: str, value: Stored) -> np.ndarray:
    """Unpack a weight to a dense array in the layout of the model; `path` is its parameter path."""
    if not isinstance(value, Packed):
        return value
    return unpacked(value) if path == EMBEDDING else dense_of(value)


def write_weight(writer: BundleWriter, path: str, value: Stored) -> StoredForm:
    """Write the arrays of `value` with `writer`; return its shape, type and so on for the manifest.

    The arrays are called `PATH/value`, or `PATH/codes`, `PATH/scales` and so on if `value` is
    packed; PATH is the parameter path `path`.
    """
    if not isinstance(value, Packed):
        writer.write(f"{path}/value", np.ascontiguousarray(value))
        return StoredForm(value.shape, value.dtype.name)
    *outer, inward, out = value.shape
    scales = np.asarray(value.scales)
    minima = None if value.minima is None else np.asarray(value.minima)
    is_symmetric = (
        minima is not None
        and minima.dtype == scales.dtype
        and np.array_equal(minima, minima_around_middle(scales))
    )
    form = StoredForm(
        (*outer, out, inward),
        scales.dtype.name,
        value.bits,
        value.group,
        minima=minima is not None and not is_symmetric,
        symmetric=is_symmetric,
        order=value.order is not None,
    )
    for part, (shape, dtype) in form.arrays().items():
        array = np.asarray(getattr(value, part))
        if (array.shape, array.dtype.name) != (shape, dtype):
            raise CheckpointError(
                f"the {part} of {path} are {array.dtype.name} {list(array.shape)}; expected "
                f"{dtype} {list(shape)} from the reader"
            )
        writer.write(f"{path}/{part}", array)
    return form


def write_tokenizer(folder: Path, checkpoint: Checkpoint) -> dict[str, str]:
    """Write the tokenizer files of `checkpoint` to `folder`; return the SHA-256 of each by name."""
    source = checkpoint.tokenizer_source()
    files = dict(source.files)
    if source.metadata:
        files = {METADATA: json.dumps(dict(source.metadata), ensure_ascii=False).encode()}
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    return {name: hashlib.sha256(raw).hexdigest() for name, raw in files.items()}


def error_of(path: str, given: Stored, value: Stored) -> WeightError:
    """Return the error of the written weight `value` against `given`, the source's weight.

    `path` is the parameter path of both.
    """
    form = f"int{value.bits}" if isinstance(value, Packed) else value.dtype.name
    before = canonical(path, given).astype(np.float32)
    square = float(np.vdot(before, before))
    if value is given:
        return WeightError(path, form, 0.0, square)
    rest = canonical(path, value).astype(np.float32) - before
    return WeightError(path, form, float(np.vdot(rest, rest)), square)
