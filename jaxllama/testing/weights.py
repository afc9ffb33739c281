"""Conformance checks of a weight format, on one model in the format.

Called by the tests of format authors and of this project. Uses the public socket only; knows no
format.
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from jaxllama.config import ModelConfig
from jaxllama.errors import CheckpointError
from jaxllama.kernels.packed import Packed
from jaxllama.model.params import Leaf, abstract_params
from jaxllama.weights import open_checkpoint
from jaxllama.weights.base import Checkpoint, check_tensors
from jaxllama.weights.layout import TRANSPOSE
from jaxllama.weights.rules import restore
from jaxllama.weights.stored import Stored, part_of, unpacked

FLOATS = ("float32", "float16", "bfloat16")
CUTS = (0.0, 0.1, 0.5, 0.9)  # the fractions of a file that truncated copies keep
Opener = Callable[[Path], Checkpoint]
EMBEDDING = "embed.weight"  # the only matrix whose canonical form is [vocab, width]


def check_weights(
    path: Path | str,
    format_class: type[Checkpoint] | None = None,
    *,
    expected: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Check how a format reads the small model at `path`; raise AssertionError at a fault.

    The format is `format_class`; None means the installed one that recognizes the model. `expected`
    has the right values of some or all weights, by this project's parameter paths, in its layout.
    """
    path = Path(path)
    opener = open_checkpoint if format_class is None else format_class.open
    with opener(path) as checkpoint:
        config = checkpoint.config
        expect(isinstance(config, ModelConfig), f"config is {config!r}; expected a ModelConfig")
        abstract = abstract_params(config)
        check_tensors(abstract, checkpoint)
        values = {}
        for weight, leaf in abstract.items():
            value = values[weight] = checkpoint.read(weight, leaf)
            check_value(weight, leaf, value)
            check_repeats(weight, value, checkpoint.read(weight, leaf))
            check_parts(checkpoint, weight, leaf, value)
            if expected is not None and weight in expected:
                check_equal(weight, value, expected[weight])
        check_way_back(checkpoint, values)
        tokens = checkpoint.tokenizer().vocab_size
        expect(
            tokens <= config.vocab_size,
            f"the tokenizer has {tokens} tokens; the model has room for {config.vocab_size}",
        )
        checkpoint.close()  # the with statement closes it again, which must be harmless
    with tempfile.TemporaryDirectory() as folder:
        check_recognizer(type(checkpoint), path, Path(folder))
        check_damage(path, Path(folder), opener)


def check_value(weight: str, leaf: Leaf, value: Stored) -> None:
    """Check that a weight is a finite float array or a Packed matrix, of the shape in the model.

    `weight` is its path, for errors; `leaf` has the shape; `value` is what the format read.
    """
    if isinstance(value, Packed):
        check_packed(weight, leaf, value)
        return
    expect(isinstance(value, np.ndarray), f"{weight} is a {type(value).__name__}; expected NumPy")
    expect(
        value.dtype.name in FLOATS, f"{weight} has dtype {value.dtype}; expected one of {FLOATS}"
    )
    expect(value.shape == leaf.shape, f"{weight} has shape {value.shape}; expected {leaf.shape}")
    finite = np.isfinite(value.astype(np.float32)).all()
    expect(bool(finite), f"{weight} holds NaN or infinity")


def check_packed(weight: str, leaf: Leaf, value: Packed) -> None:
    """Check that the parts of a Packed matrix fit each other and the shape of `leaf`.

    `weight` is the weight's path, for errors; `value` is what the format read.
    """
    expect(leaf.is_matrix, f"{weight} is Packed; expected that of matrices only")
    shape = value.shape[::-1] if weight == EMBEDDING else value.shape
    expect(shape == leaf.shape, f"{weight} has shape {shape}; expected {leaf.shape}")
    width, out = value.shape
    kind = "uint8" if value.bits == 4 else "int8"  # noqa: PLR2004
    is_known = value.codes.dtype.name == kind or (value.bits == 8 and value.is_float8)  # noqa: PLR2004
    expect(is_known, f"{weight} has {value.codes.dtype} codes; not {kind}")
    expect(width % value.group == 0, f"{weight}: groups of {value.group} do not divide {width}")
    for name, part in (("scales", value.scales), ("minima", value.minima)):
        if part is None:
            continue
        wanted = (out, width // value.group)
        expect(part.shape == wanted, f"{weight}: {name} are {part.shape}; expected {wanted}")
        expect(part.dtype.name in FLOATS, f"{weight}: {name} are {part.dtype}; expected floats")
        finite = np.isfinite(np.asarray(part, np.float32)).all()
        expect(bool(finite), f"{weight}: {name} hold NaN or infinity")


def check_equal(weight: str, value: Stored, wanted: np.ndarray) -> None:
    """Check that `value`, which the format read, has the values `wanted`, which were written.

    `weight` is the weight's path. A packed matrix other than the embedding is transposed before the
    comparison.
    """
    dense = unpacked(value)
    if isinstance(value, Packed) and weight != EMBEDDING:
        dense = dense.swapaxes(-1, -2)
    same = np.array_equal(dense.astype(np.float32), np.asarray(wanted, np.float32))
    expect(same, f"{weight} differs from the weight that was written")


def check_repeats(weight: str, first: Stored, second: Stored) -> None:
    """Check that two reads of a weight gave equal values in separate memory.

    `weight` is the weight's path, for errors.
    """
    for one, other in zip(parts(first), parts(second), strict=True):
        expect(np.array_equal(one, other), f"{weight} differs when it is read again")
        expect(not np.shares_memory(one, other), f"{weight} shares memory between two reads")


def check_parts(checkpoint: Checkpoint, weight: str, leaf: Leaf, value: Stored) -> None:
    """Check that a part of a weight that is read alone equals that part of the whole weight.

    `weight` is its path, `leaf` has its shape, and `value` is the whole weight, which is cut along
    each of its axes.
    """
    is_turned = isinstance(value, Packed) and weight != EMBEDDING
    for axis, size in enumerate(leaf.shape):
        step = 1
        if isinstance(value, Packed) and axis == len(leaf.shape) - (2 if is_turned else 1):
            step = size if value.order is not None else value.group  # only whole groups are cut
        for start, stop in ((0, size // 3), (size // 3, size)):
            ends = slice(start // step * step, max(stop // step, 1) * step)
            index = tuple(ends if i == axis else slice(0, n) for i, n in enumerate(leaf.shape))
            found = checkpoint.read(weight, leaf, index)
            wanted = part_of(value, TRANSPOSE.source(index, ())[0] if is_turned else index)
            for one, other in zip(parts(found), parts(wanted), strict=True):
                expect(
                    np.array_equal(one, other),
                    f"{weight} read in part, {ends.start} to {ends.stop} of axis {axis}, differs "
                    f"from the same part of the whole",
                )


def check_way_back(checkpoint: Checkpoint, values: Mapping[str, Stored]) -> None:
    """Check that the read weights, converted back, equal the tensors stored in the file.

    `values` has the weights that the format read, by this project's parameter paths.
    """
    for name, tensor in restore(checkpoint.table, values, values.__getitem__):
        stored = unpacked(checkpoint.read_stored(name))
        expect(
            np.array_equal(unpacked(tensor).astype(np.float32), stored.astype(np.float32)),
            f"{name} differs when it is made from our weights; a step's inverse does not undo it",
        )


def parts(value: Stored) -> list[np.ndarray]:
    """Return the arrays that a weight consists of."""
    if not isinstance(value, Packed):
        return [value]
    held = (value.codes, value.scales, value.minima, value.order)
    return [np.asarray(part) for part in held if part is not None]


def check_recognizer(format_class: type[Checkpoint], path: Path, folder: Path) -> None:
    """Check that the format recognizes the model at `path`, but no text file or empty folder.

    `folder` is an empty folder in which the text file and the empty folder are made.
    """
    (folder / "note.txt").write_text("no model\n")
    (folder / "nothing").mkdir()
    expect(format_class.recognizes(path), f"{path} is not recognised")
    for other in (folder / "note.txt", folder / "nothing"):
        expect(not format_class.recognizes(other), f"{other.name} is recognised as a model")


def check_damage(path: Path, folder: Path, opener: Opener) -> None:
    """Check truncated copies of a model: each raises CheckpointError or is read completely.

    `path` is the model; `folder` is an empty folder for the copies; `opener` opens a model.
    """
    files = [path] if path.is_file() else sorted(item for item in path.rglob("*") if item.is_file())
    copy = folder / f"damaged{path.suffix}"
    for file in files:
        whole = file.read_bytes()
        if path.is_file():
            damaged = copy
        else:
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(path, copy)
            damaged = copy / file.relative_to(path)
        for cut in CUTS:
            damaged.write_bytes(whole[: int(len(whole) * cut)])
            check_refused(copy, f"{file.name} cut to {cut:.0%}", opener)


def check_refused(path: Path, what: str, opener: Opener) -> None:
    """Check that a damaged model is read, or fails with CheckpointError and no other error.

    `path` is the model, `what` describes the damage, and `opener` opens a model.
    """
    try:
        with opener(path) as checkpoint:
            abstract = abstract_params(checkpoint.config)
            check_tensors(abstract, checkpoint)
            for weight, leaf in abstract.items():
                checkpoint.read(weight, leaf)
    except CheckpointError:
        return
    except Exception as error:
        raise AssertionError(
            f"{what}: raised {type(error).__name__}: {error}; expected a CheckpointError"
        ) from error


def expect(held: bool, broken: str) -> None:
    """Raise AssertionError with the message `broken` unless `held`."""
    if not held:
        raise AssertionError(broken)
