"""Reads the safetensors header: JSON whose every number is checked against the file's size.

Called by the Hugging Face reader once per file. Tensors must tile the data exactly: no gap, no
overlap, nothing past the end. Knows element types and sizes, no model.
"""

from dataclasses import dataclass

from jaxllama.errors import BadHeader
from jaxllama.weights.binary import BinaryFile
from jaxllama.weights.fields import MAX_JSON, parse_json, shown

PREFIX = 8  # bytes of the header's own length
MAX_DIMS = 8
ITEM_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class SafeTensor:
    """Type, shape and position of one tensor in its file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int  # from the start of the file
    nbytes: int


def read_safetensors_header(file: BinaryFile) -> dict[str, SafeTensor]:
    """Return every tensor of an open file by name; raise BadHeader if the header is wrong."""
    where = file.path.name
    if file.size < PREFIX:
        raise BadHeader(f"{where}: has {file.size} bytes; a safetensors file has at least {PREFIX}")
    length = int.from_bytes(file.read(0, PREFIX).tobytes(), "little")
    most = min(file.size - PREFIX, MAX_JSON)
    if not 2 <= length <= most:  # noqa: PLR2004 - the empty object
        raise BadHeader(f"{where}: the header's length is {length}; it must lie in [2, {most}]")
    header = parse_json(file.read(PREFIX, length).tobytes(), where)
    header.pop("__metadata__", None)
    start = PREFIX + length
    tensors = {name: read_tensor(name, entry, start, where) for name, entry in header.items()}
    check_tiling(list(tensors.values()), start, file)
    return tensors


def read_tensor(name: str, entry: object, start: int, where: str) -> SafeTensor:
    """Return the tensor `name` that `entry`, a value of the JSON header, describes.

    `start` is the offset of the tensors' data in the file. Raise BadHeader, naming the file
    `where`, if the entry is wrong.
    """
    label = f"{where}: tensor {shown(name)}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise BadHeader(f"{label} is {shown(entry)}; expected dtype, shape and data_offsets")
    dtype = entry["dtype"]
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        raise BadHeader(
            f"{label} has dtype {shown(dtype)}; expected one of {', '.join(ITEM_SIZES)}"
        )
    shape = whole_numbers(entry["shape"], f"{label} has shape")
    if len(shape) > MAX_DIMS:
        raise BadHeader(f"{label} has {len(shape)} dimensions; expected at most {MAX_DIMS}")
    offsets = whole_numbers(entry["data_offsets"], f"{label} has data_offsets")
    if len(offsets) != 2:  # noqa: PLR2004 - begin and end
        raise BadHeader(f"{label} has {len(offsets)} data_offsets; expected begin and end")
    nbytes = ITEM_SIZES[dtype]
    for size in shape:
        nbytes *= size
    begin, end = offsets
    if end - begin != nbytes:
        raise BadHeader(f"{label} spans {end - begin} bytes; {dtype} {list(shape)} takes {nbytes}")
    return SafeTensor(name, dtype, shape, start + begin, nbytes)


def whole_numbers(values: object, label: str) -> tuple[int, ...]:
    """Return a list of whole numbers from 0 to 2**63 - 1 as a tuple.

    Raise BadHeader, whose message begins with `label`, if `values` is anything else.
    """
    if not isinstance(values, list) or not all(
        isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
        for value in values
    ):
        raise BadHeader(f"{label} {shown(values)}; expected a list of whole numbers")
    return tuple(values)


def check_tiling(tensors: list[SafeTensor], start: int, file: BinaryFile) -> None:
    """Raise BadHeader unless the tensors fill the file from `start` to its end without gaps."""
    reached, before = start, "the header"
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset != reached:
            word = "overlap" if tensor.offset < reached else "leave a gap"
            raise BadHeader(
                f"{file.path.name}: {shown(before)} and tensor {shown(tensor.name)} {word}"
            )
        reached, before = tensor.offset + tensor.nbytes, tensor.name
    if reached != file.size:
        raise BadHeader(
            f"{file.path.name}: its tensors end at byte {reached}; the file has {file.size}; "
            f"it is truncated or corrupt"
        )
