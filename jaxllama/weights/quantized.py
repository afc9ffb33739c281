"""GPTQ and AWQ: the tensors of a Hugging Face folder that together are one packed matrix.

Called by the Hugging Face reader, to which each matrix looks like one tensor `NAME.weight`. GPTQ
packs inputs of `qweight` [in, out] into integers, AWQ eight outputs in an order of its own; both
keep a float16 scale and a packed zero for each group of inputs. The codes stay packed, with exactly
the values of the file. Knows no model.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Int, UInt8

from jaxllama.errors import BadTensors, UnsupportedModel
from jaxllama.kernels.packed import Bits, Packed
from jaxllama.weights.fields import CheckedFields, read_json, shown
from jaxllama.weights.shards import TensorEntry
from jaxllama.weights.stored import Index, Shape, Stored, part_of, whole

GPTQ, AWQ = "gptq", "awq"
METHODS = (GPTQ, AWQ)
SIDE_FILES = {GPTQ: "quantize_config.json", AWQ: "quant_config.json"}  # of older folders
MAX_SIDE_FILE = 1 << 20  # bytes
PARTS = {AWQ: ("qweight", "qzeros", "scales"), GPTQ: ("qweight", "qzeros", "scales", "g_idx")}
NEEDED = 3  # parts that every matrix has
FOREIGN = {".q_weight": "EXL2", ".B": "Marlin"}  # endings of tensors in layouts not supported
WORD = 32  # bits of an integer
FOUR, EIGHT = 4, 8  # bits of a weight
AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # the nibble of each of eight outputs in AWQ's integer
MIDDLE = 128  # subtracted from eight-bit codes, so that they are signed
LEAST_GROUP = 16  # inputs: smaller groups would take more memory for scales than for codes


Entries = Mapping[str, TensorEntry]
ReadTensor = Callable[[str, Index], np.ndarray]


@dataclass(frozen=True)
class Scheme:
    """The way in which a folder is quantised, as far as it says so."""

    method: str
    bits: int | None = None
    group: int | None = None  # -1: one group of all inputs
    offset: int = 1  # effective zero less stored zero; AWQ and gptq_v2: 0


def read_scheme(folder: Path, config: CheckedFields, tensors: Entries) -> Scheme | None:
    """Return how the folder's weights are quantised with GPTQ or AWQ; None if they are not.

    `config` has the fields of config.json; without a scheme there, a file beside it or the tensors
    decide. Raises UnsupportedModel for a method, layout or number of bits that is not supported.
    """
    check_foreign(folder, tensors)
    stated = config.inner("quantization_config")
    method = stated.text("quant_method", "unknown") if stated.values else None
    for name, file in SIDE_FILES.items():
        if method is None and (folder / file).is_file():
            stated = read_json(folder / file, MAX_SIDE_FILE)
            method = stated.text("quant_method", name).lower()
    if method is None:
        first = next((name for name in tensors if name.endswith(".qweight")), None)
        return None if first is None else Scheme(*guess(first, tensors))
    if method not in METHODS and config.has("quantization_config"):
        return None  # not for this module; read or refused with the rest of config.json
    if method not in METHODS:
        raise UnsupportedModel(
            f"{stated.where}: weights are quantized with {shown(method)}, which is not supported; "
            f"expected {' or '.join(METHODS)}"
        )
    return gptq_scheme(stated) if method == GPTQ else awq_scheme(stated)


def check_foreign(folder: Path, tensors: Entries) -> None:
    """Raise UnsupportedModel if names of tensors show a quantised layout that is not supported."""
    for name in tensors:
        for ending, layout in FOREIGN.items():
            if name.endswith(ending):
                raise UnsupportedModel(
                    f"{folder} holds weights in the {layout} layout (tensor {shown(name)}), which "
                    f"is not supported; use a GPTQ, AWQ or GGUF version of the model"
                )


def guess(qweight: str, tensors: Entries) -> tuple[str, None, None, int]:
    """Return the scheme that the tensors suggest: method, None, None and an offset.

    The two None stand for bits and group size, which no file states; the offset is to be added to
    the zero points in the file. AWQ and GPTQ are told apart by the shapes of the tensor that is
    named `qweight` and of its scales.
    """
    scales = tensors.get(qweight.removesuffix("qweight") + "scales")
    is_awq = scales is not None and scales.shape[-1:] != tensors[qweight].shape[-1:]
    return (AWQ, None, None, 0) if is_awq else (GPTQ, None, None, 1)


def gptq_scheme(stated: CheckedFields) -> Scheme:
    """Return the scheme that a GPTQ configuration states.

    Raise UnsupportedModel for a layout or number of bits that is not supported.
    """
    layout = stated.text("checkpoint_format", GPTQ)
    if stated.flag("is_marlin_format", False):
        layout = "marlin"
    if layout not in (GPTQ, "gptq_v2"):
        raise UnsupportedModel(
            f"{stated.where}: checkpoint_format is {shown(layout)}, which is not supported; "
            f"expected gptq or gptq_v2"
        )
    return Scheme(
        GPTQ,
        check_bits(stated, "bits", (FOUR, EIGHT)),
        stated.whole("group_size", low=-1) if stated.has("group_size") else None,
        offset=1 if layout == GPTQ else 0,
    )


def awq_scheme(stated: CheckedFields) -> Scheme:
    """Return the scheme that an AWQ configuration states; its fields have one of two spellings."""
    version = stated.text("version", "gemm").lower()
    if version != "gemm":
        raise UnsupportedModel(
            f"{stated.where}: version is {shown(version)}, which is not supported; expected gemm"
        )
    bits = "w_bit" if stated.has("w_bit") else "bits"
    group = "q_group_size" if stated.has("q_group_size") else "group_size"
    size = stated.whole(group, low=-1) if stated.has(group) else None
    return Scheme(AWQ, check_bits(stated, bits, (FOUR,)), size, offset=0)


def check_bits(stated: CheckedFields, key: str, supported: tuple[int, ...]) -> int | None:
    """Return the bits per weight in field `key` of the quantisation config; None if absent.

    `stated` has the fields of that config. Raise UnsupportedModel unless the bits are among
    `supported`.
    """
    bits = stated.whole(key) if stated.has(key) else None
    if bits is not None and bits not in supported:
        raise UnsupportedModel(
            f"{stated.where}: weights of {bits} bits are not supported; expected "
            f"{' or '.join(map(str, supported))}"
        )
    return bits


@dataclass(frozen=True)
class QuantizedMatrix:
    """One matrix, from three or four tensors; counts as [out, in] like every stored one."""

    stem: str  # the name up to "qweight"
    scheme: Scheme
    bits: Bits
    shape: Shape
    groups: int
    has_g_idx: bool
    nbytes: int

    @property
    def kind(self) -> str:
        """Return the element type as a text for display, such as "GPTQ 4-bit"."""
        return f"{self.scheme.method.upper()} {self.bits}-bit"

    def read(self, index: Index, read: ReadTensor) -> Stored:
        """Read part `index` of the matrix; `read` reads a part of one of its tensors.

        Scales and zeros are always read whole, because all of them decide on their element type.
        Raises BadTensors if `g_idx` puts inputs into groups that do not exist or differ in size,
        and ValueError for a part that separates inputs which share a scale.
        """
        group_of, order = sorted_groups(self._group_of(read))
        group = self._common_group(group_of)
        scales, minima = self._scales_and_minima(read)
        which = group_of[::group]
        ins, outs = index[1], aligned(index[0], WORD // self.bits)
        unit = math.lcm(group, WORD // self.bits)
        if order is not None or ins.start % unit or ins.stop % unit:
            ins = slice(0, self.shape[1])
        chosen = which[ins.start // group : ins.stop // group]
        part = Packed(
            self._codes(ins, outs, read, order),
            np.ascontiguousarray(scales[chosen, outs].T),
            None if minima is None else np.ascontiguousarray(minima[chosen, outs].T),
            self.bits,
            group,
            order,
        )
        return part_of(part, (within(index[0], outs), within(index[1], ins)))

    def _group_of(self, read: ReadTensor) -> Int[np.ndarray, " I"]:
        """Return the number of every input's group; inputs in the same group share a scale.

        The file's g_idx has the numbers; without it, or if it is all 0, groups have equal size and
        inputs are in order. `read` reads a part of one of the matrix's tensors.
        """
        inward = self.shape[1]
        name = f"{self.stem}g_idx"
        if self.has_g_idx:
            found = read(name, (slice(0, inward),)).astype(np.int64)
            if found.any():
                self._check_g_idx(found)
                return found
        return np.arange(inward) // self._group_size()

    def _check_g_idx(self, found: Int[np.ndarray, " I"]) -> None:
        """Raise BadTensors unless the group number of every input, in `found`, exists.

        A group is the inputs that share a scale.
        """
        low, high = int(found.min()), int(found.max())
        if self.groups == 1:
            raise BadTensors(
                f"{self.stem}g_idx holds groups up to {high}, and the matrix has only one group; "
                f"act-order without groups has no g_idx"
            )
        if low < 0 or high >= self.groups:
            raise BadTensors(
                f"{self.stem}g_idx holds groups {low} to {high}; the matrix has {self.groups}"
            )

    def _group_size(self) -> int:
        """Return how many inputs share a scale where g_idx does not say."""
        inward, stated = self.shape[1], self.scheme.group
        if stated is not None and stated > 0 and -(-inward // stated) == self.groups:
            return stated
        return inward // self.groups

    def _common_group(self, group_of: Int[np.ndarray, " I"]) -> int:
        """Return the largest group size with which no group mixes inputs of different scales.

        `group_of` has the number of each input's scale, in rising order. If the last group in the
        file is shorter than the others, the result is the greatest common divisor of both sizes.
        Raise BadTensors if the result is odd or too small.
        """
        starts = np.flatnonzero(np.diff(group_of)) + 1
        size = math.gcd(*map(int, starts), len(group_of))
        if size % 2 or size < min(LEAST_GROUP, len(group_of)):
            raise BadTensors(
                f"{self.stem}scales: groups of {len(group_of)} inputs start at multiples of "
                f"{size}; expected equal groups of an even number, at least {LEAST_GROUP}"
            )
        return size

    def _codes(
        self, ins: slice, outs: slice, read: ReadTensor, order: np.ndarray | None
    ) -> np.ndarray:
        """Read the codes of inputs `ins` and outputs `outs`, in the layout of a Packed matrix.

        `read` reads a part of a tensor. `order` is the permutation that sorts the inputs by group;
        None if they lie in order.
        """
        name, per_word = f"{self.stem}qweight", WORD // self.bits
        if self.scheme.method == AWQ:
            return pair_inputs(awq_outputs(read(name, (ins, divided(outs, per_word)))).T)
        words = read(name, (divided(ins, per_word), outs))
        codes = octets(words).transpose(1, 0, 2).reshape(words.shape[1], -1)
        if self.bits == EIGHT:
            codes = codes if order is None else codes[:, order]
            return (codes ^ np.uint8(MIDDLE)).view(np.int8)
        if order is None:  # the bytes of an integer hold two neighbours each, as those of Packed
            return codes
        single = np.stack([codes & 15, codes >> 4], axis=-1).reshape(len(codes), -1)
        return pair_inputs(single[:, order])

    def _scales_and_minima(self, read: ReadTensor) -> tuple[np.ndarray, np.ndarray | None]:
        """Return scales and minima, [groups, outputs]; None instead of minima that are all 0.

        A group is the inputs that share a scale. Both are float16 if the minima are exact in it,
        else float32.
        """
        out, per_word = self.shape[0], WORD // self.bits
        scales = read(f"{self.stem}scales", whole((self.groups, out)))
        words = read(f"{self.stem}qzeros", whole((self.groups, out // per_word)))
        if self.scheme.method == AWQ:
            zeros = awq_outputs(words)
        else:
            split = octets(words)
            zeros = split if self.bits == EIGHT else np.stack([split & 15, split >> 4], axis=-1)
            zeros = zeros.reshape(self.groups, -1)
        middle = MIDDLE if self.bits == EIGHT else 0
        below = middle - (zeros.astype(np.int32) + self.scheme.offset)
        scales = scales.astype(np.float32) if scales.dtype.name == "bfloat16" else scales
        if not below.any():
            return scales, None
        with np.errstate(all="ignore"):  # damaged scales may be NaN; the engine checks for that
            minima = scales.astype(np.float32) * below.astype(np.float32)
            narrow = minima.astype(np.float16)
        if scales.dtype == np.float16 and (narrow == minima).all():
            return scales, narrow
        return scales.astype(np.float32), minima


def find_quantized(tensors: Entries, scheme: Scheme | None) -> dict[str, QuantizedMatrix]:
    """Return every quantised matrix by the name that its dense form would have.

    `tensors` has all tensors of the folder by name; without a `scheme` there is no such matrix.
    Raises BadTensors that lists all matrices of which a tensor is missing or has a wrong shape.
    """
    if scheme is None:
        return {}
    found: dict[str, QuantizedMatrix] = {}
    problems: list[str] = []
    for name in tensors:
        if not name.endswith(".qweight"):
            continue
        stem = name.removesuffix("qweight")
        try:
            found[f"{stem}weight"] = matrix_of(stem, scheme, tensors)
        except BadTensors as error:
            problems.append(str(error))
    if problems:
        raise BadTensors(f"{len(problems)} quantised matrices do not fit: {'; '.join(problems)}")
    return found


def is_part(name: str, matrices: Mapping[str, QuantizedMatrix]) -> bool:
    """Say whether tensor `name` is one of those that make up a matrix in `matrices`."""
    stem, _, part = name.rpartition(".")
    matrix = matrices.get(f"{stem}.weight")
    return matrix is not None and part in PARTS[matrix.scheme.method]


def matrix_of(stem: str, scheme: Scheme, tensors: Entries) -> QuantizedMatrix:
    """Build the quantised matrix from its tensors, whose names begin with `stem`.

    `tensors` has all tensors of the folder by name. Raise BadTensors if a tensor of the matrix is
    missing or has a wrong type or shape.
    """
    names = PARTS[scheme.method]
    parts = {part: tensors[stem + part] for part in names if stem + part in tensors}
    missing = [stem + part for part in names[:NEEDED] if part not in parts]
    if missing:
        raise BadTensors(f"{' and '.join(missing)} missing")
    for part, entry in parts.items():
        expected = ("F16", "BF16", "F32") if part == "scales" else ("I32",)
        rank = 1 if part == "g_idx" else 2
        if entry.dtype not in expected or len(entry.shape) != rank or 0 in entry.shape:
            raise BadTensors(
                f"{stem}{part} is {entry.dtype} {list(entry.shape)}; expected "
                f"{' or '.join(expected)} of {rank} dimensions"
            )
    groups, out = parts["scales"].shape
    bits = bits_of(stem, scheme, parts["qzeros"].shape, out)
    per_word = WORD // bits
    rows, columns = parts["qweight"].shape
    shape = (columns * per_word, rows) if scheme.method == AWQ else (columns, rows * per_word)
    wanted: dict[str, Shape] = {
        "qzeros": (groups, out // per_word),
        "scales": (groups, shape[0]),
        "g_idx": (shape[1],),
    }
    for part, size in wanted.items():
        if part in parts and parts[part].shape != size:
            raise BadTensors(
                f"{stem}{part} has shape {list(parts[part].shape)}; expected {list(size)}"
            )
    check_groups(stem, scheme, groups, shape[1])
    return QuantizedMatrix(
        stem,
        scheme,
        bits,
        shape,
        groups,
        has_g_idx="g_idx" in parts,
        nbytes=sum(entry.nbytes for entry in parts.values()),
    )


def bits_of(stem: str, scheme: Scheme, zeros: Shape, out: int) -> Bits:
    """Return the bits per weight of the matrix `stem`, computed from the shape of its zero points.

    `zeros` is the shape of the packed zero points, `out` the number of outputs. Raise BadTensors if
    the scheme states other bits, UnsupportedModel unless they are 4 or, for GPTQ, 8.
    """
    bits, rest = divmod(zeros[1] * WORD, out)
    if rest or not 1 <= bits <= EIGHT or (scheme.bits is not None and bits != scheme.bits):
        stated = scheme.bits or f"{FOUR} or {EIGHT}"
        raise BadTensors(
            f"{stem}qzeros has shape {list(zeros)} for {out} outputs; expected integers that hold "
            f"{stated} bits for each"
        )
    if bits not in (FOUR, EIGHT) or (scheme.method == AWQ and bits != FOUR):
        raise UnsupportedModel(
            f"{stem}qweight has weights of {bits} bits, which are not supported; expected "
            f"{FOUR}{'' if scheme.method == AWQ else f' or {EIGHT}'}"
        )
    return cast(Bits, bits)


def check_groups(stem: str, scheme: Scheme, groups: int, inward: int) -> None:
    """Raise BadTensors unless the matrix `stem` has as many groups as the stated size implies.

    A group is the inputs that share a scale: `groups` is the number of scales per output, `inward`
    the number of inputs. Without a stated size, `groups` must divide `inward`.
    """
    stated = scheme.group
    if stated is not None:
        expected = -(-inward // stated) if stated > 0 else 1
        if groups != expected:
            raise BadTensors(
                f"{stem}scales has {groups} groups of {inward} inputs; group_size {stated} makes "
                f"{expected}"
            )
    elif inward % groups:
        raise BadTensors(f"{stem}scales has {groups} groups, which do not divide {inward} inputs")


def sorted_groups(
    group_of: Int[np.ndarray, " I"],
) -> tuple[Int[np.ndarray, " I"], np.ndarray | None]:
    """Return the group numbers of all inputs, sorted, and the permutation that sorts the inputs.

    A group is the inputs that share a scale. The permutation is None if `group_of`, the group of
    each input, is sorted already.
    """
    if not (np.diff(group_of) < 0).any():
        return group_of, None
    order = np.argsort(group_of, kind="stable").astype(np.int32)
    return group_of[order], order


def octets(words: Int[np.ndarray, "I W"]) -> UInt8[np.ndarray, "I W 4"]:
    """Return the four bytes of each 32-bit integer in `words`, the lowest byte first."""
    return np.ascontiguousarray(words, "<i4").view(np.uint8).reshape(*words.shape, 4)


def awq_outputs(words: Int[np.ndarray, "I W"]) -> UInt8[np.ndarray, "I O"]:
    """Unpack AWQ's integers in `words`: return the eight codes of each, in the order of outputs."""
    split = octets(words)
    nibbles = np.stack([split & 15, split >> 4], axis=-1).reshape(*words.shape, 8)
    return nibbles[..., AWQ_PLACES].reshape(len(words), -1)


def pair_inputs(codes: UInt8[np.ndarray, "O I"]) -> UInt8[np.ndarray, "O Z"]:
    """Pack four-bit codes, two neighbouring inputs per byte, the even one in the low nibble."""
    return np.ascontiguousarray(codes[:, 0::2] | codes[:, 1::2] << 4)


def aligned(part: slice, step: int) -> slice:
    """Return the range `part`, widened so that it starts and ends at multiples of `step`."""
    return slice(part.start // step * step, -(-part.stop // step) * step)


def divided(part: slice, by: int) -> slice:
    """Return the range of packed integers that hold the weights in the range `part`.

    Each integer holds `by` weights.
    """
    return slice(part.start // by, part.stop // by)


def within(part: slice, outer: slice) -> slice:
    """Return the range `part` relative to the start of `outer`, which contains it."""
    return slice(part.start - outer.start, part.stop - outer.start)
