"""Reads the pickle in a torch checkpoint: a list of allowed opcodes and names, nothing else.

Called by `torch_file.py`. A pickle is a program; this machine knows the opcodes that build strings,
numbers, tuples, lists and dicts, and three kinds of names: OrderedDict, torch's function that makes
a tensor from a storage, and torch's storage types. It imports and calls nothing. Every other name
and opcode is refused by name. Steps, stack, memo and nesting are bounded.
"""

import math
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from jaxllama.errors import BadHeader, UnsupportedModel
from jaxllama.weights.fields import shown

MAX_STEPS = 1 << 19  # a tensor takes some 40
MAX_STACK = 1 << 16
MAX_MEMO = 1 << 18
MAX_DEPTH = 16  # of containers in containers; torch nests five
MAX_DIMS = 8
MAX_NAME = 256  # bytes of a module's or class's name
MAX_INTEGER = 9  # bytes: 64 bits and the sign
PROTOCOLS = range(2, 6)
REBUILD_ARGUMENTS = (6, 7)  # the seventh is the metadata of newer versions

STORAGE_TYPES: dict[str, Any] = {
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "DoubleStorage": np.dtype("<f8"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "ShortStorage": np.dtype("<i2"),
    "IntStorage": np.dtype("<i4"),
    "LongStorage": np.dtype("<i8"),
    "BoolStorage": np.dtype("u1"),
}


class KnownName(Enum):
    """The names besides storage types that a checkpoint may use."""

    ORDERED_DICT = ("collections", "OrderedDict")
    REBUILD_TENSOR = ("torch._utils", "_rebuild_tensor_v2")


SHORT_NAMES = {  # element types by their names in safetensors
    "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64", "int8": "I8",
    "uint8": "U8", "int16": "I16", "int32": "I32", "int64": "I64",
}  # fmt: skip


@dataclass(frozen=True)
class StorageType:
    """A storage class of torch, which is the element type of a storage."""

    name: str
    dtype: Any


@dataclass(frozen=True)
class TorchStorage:
    """A block of elements beside the pickle, by its key."""

    key: str
    kind: StorageType
    items: int

    @property
    def nbytes(self) -> int:
        """Return the size in bytes."""
        return self.items * self.kind.dtype.itemsize


@dataclass(frozen=True)
class TorchTensor:
    """A view of a storage; offset and strides count elements and stay inside of the storage."""

    storage: TorchStorage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def dtype(self) -> str:
        """Return the element type, by its name in safetensors."""
        return SHORT_NAMES[self.storage.kind.dtype.name]

    @property
    def elements(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Return the size of all elements in bytes."""
        return self.elements * self.storage.kind.dtype.itemsize

    @property
    def span(self) -> int:
        """Return the length of the range of the storage that holds the tensor, in elements."""
        if 0 in self.shape:
            return 0
        return 1 + sum(
            (size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True)
        )


@dataclass(slots=True, eq=False)
class PickledList:
    """A tuple or list of a pickle."""

    items: list[object]
    is_tuple: bool
    depth: int = 1
    is_placed: bool = False  # inside another container, so complete


@dataclass(slots=True, eq=False)
class PickledDict:
    """A dict or OrderedDict of a pickle."""

    entries: dict[str, object] = field(default_factory=dict)
    depth: int = 1
    is_placed: bool = False


def read_torch_pickle(raw: bytes, where: str) -> PickledDict:
    """Return the dict that a torch checkpoint's pickle describes.

    `raw` is the pickle, which is read without running any of its code; errors name the file
    `where`. Raise BadHeader for a damaged pickle, UnsupportedModel for a name or opcode that is not
    allowed.
    """
    value = Machine(raw, where).run()
    if not isinstance(value, PickledDict):
        raise BadHeader(f"{where}: the pickle holds {described(value)}; expected a dict of tensors")
    return value


class Machine:
    """An interpreter for one pickle that calls no code: position, stack, marks and memo."""

    def __init__(self, raw: bytes, where: str) -> None:
        self._raw = raw
        self._where = where
        self._at = 0
        self._stack: list[object] = []
        self._marks: list[int] = []
        self._memo: dict[int, object] = {}

    def run(self) -> object:
        """Carry out all opcodes of the pickle; return the only value that is left on the stack."""
        steps = 0
        while (opcode := self.take(1)) != b".":
            steps += 1
            if steps > MAX_STEPS:
                self.refuse(f"has more than {MAX_STEPS} opcodes")
            action = ACTIONS.get(opcode)
            if action is None:
                name = REFUSED.get(opcode, f"0x{opcode.hex()}")
                raise UnsupportedModel(
                    f"{self._where}: the pickle uses opcode {name} at byte {self._at - 1}, which "
                    f"is not allowed: it could run code or is not written by torch"
                )
            action(self)
            if len(self._stack) > MAX_STACK:
                self.refuse(f"has more than {MAX_STACK} values on its stack")
        return self._result()

    def take(self, count: int) -> bytes:
        """Read and return the next `count` bytes of the pickle; raise BadHeader at its end."""
        part = self._raw[self._at : self._at + count]
        if len(part) != count:
            self.refuse(f"ends at byte {len(self._raw)}, inside of an opcode or before its end")
        self._at += count
        return part

    def number(self, layout: str) -> Any:
        """Return the next number of the pickle; `layout` is a format of `struct`, such as `<I`."""
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> str:
        """Read the text of the pickle up to the next line feed; return it without the line feed."""
        end = self._raw.find(b"\n", self._at, self._at + MAX_NAME + 1)
        if end < 0:
            self.refuse(f"has a name without end, or longer than {MAX_NAME} bytes")
        text = self.text(end - self._at)
        self._at += 1
        return text

    def text(self, count: int) -> str:
        """Read the next `count` bytes of the pickle and return them as text (UTF-8)."""
        try:
            return self.take(count).decode("utf-8")
        except UnicodeDecodeError:
            self.refuse("has a string that is not UTF-8")

    def push(self, value: object) -> None:
        """Put a value on the stack."""
        self._stack.append(value)

    def pop(self) -> Any:
        """Pop the top value and return it; raise BadHeader if none lies above the last mark."""
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            self.refuse("takes a value from an empty stack")
        return self._stack.pop()

    def mark(self) -> None:
        """Push a mark: remember the present height of the stack."""
        if len(self._marks) >= MAX_DEPTH:
            self.refuse(f"nests deeper than {MAX_DEPTH}")
        self._marks.append(len(self._stack))

    def pop_mark(self) -> list[object]:
        """Take all values since the last mark off the stack and return them."""
        if not self._marks:
            self.refuse("ends a group that it has not begun")
        at = self._marks.pop()
        values = self._stack[at:]
        del self._stack[at:]
        return values

    def remember(self, index: int | None = None) -> None:
        """Store the value on top of the stack in the memo under `index`; None: the next number."""
        value = self.pop()
        self._stack.append(value)
        if len(self._memo) >= MAX_MEMO:
            self.refuse(f"remembers more than {MAX_MEMO} values")
        self._memo[len(self._memo) if index is None else index] = value

    def recall(self, index: int) -> None:
        """Push the value that was stored in the memo under `index`."""
        if index not in self._memo:
            self.refuse(f"recalls value {index}, which it has not kept")
        self.push(self._memo[index])

    def push_integer(self) -> None:
        """Read a length in bytes and an integer of that length, up to 64 bits; push the integer."""
        count = self.take(1)[0]
        if count > MAX_INTEGER:
            self.refuse(f"has a number of {count} bytes; expected at most {MAX_INTEGER}")
        self.push(int.from_bytes(self.take(count), "little", signed=True))

    def push_tuple(self, items: list[object]) -> None:
        """Push a tuple of these items."""
        self.push(self.hold(PickledList([], is_tuple=True), items))

    def append(self, items: list[object]) -> None:
        """Append the items to the list on top of the stack."""
        self.push(self.hold(self.pop(), items, is_list=True))

    def set_items(self, items: list[object]) -> None:
        """Put `items`, keys and values in turn, into the dict on top of the stack."""
        target = self.pop()
        keys, values = items[::2], items[1::2]
        if not isinstance(target, PickledDict) or len(keys) != len(values):
            self.refuse(f"sets items of {described(target)}; expected a dict, keys and values")
        for key, value in zip(keys, values, strict=True):
            if not isinstance(key, str):
                self.refuse(f"has {described(key)} as the key of a dict; expected text")
            if key in target.entries:
                self.refuse(f"sets key {shown(key)} twice")
            target.entries[key] = value
        self._deepen(target, values)
        self.push(target)

    def hold(self, target: object, items: list[object], *, is_list: bool = False) -> PickledList:
        """Append `items` to `target`, a list or a new tuple of the pickle, and return it.

        Raises BadHeader if `target` is not a list (`is_list`), or not a tuple (otherwise).
        """
        if not isinstance(target, PickledList) or target.is_tuple is is_list:
            self.refuse(f"appends to {described(target)}; expected a list")
        target.items += items
        self._deepen(target, items)
        return target

    def name(self, module: object, name: object) -> None:
        """Push a stand-in for the class or function `name` of `module`; nothing is imported.

        Raise UnsupportedModel unless it is one of the few that are allowed.
        """
        if module == "torch" and isinstance(name, str) and name in STORAGE_TYPES:
            self.push(StorageType(name, STORAGE_TYPES[name]))
            return
        for known in KnownName:
            if known.value == (module, name):
                self.push(known)
                return
        if not (isinstance(module, str) and isinstance(name, str)):
            self.refuse(f"asks for {described(name)} of {described(module)}; expected two names")
        raise UnsupportedModel(
            f"{self._where}: the pickle asks for {shown(f'{module}.{name}')}, which is not among "
            f"the allowed names; no code of a checkpoint is run (use safetensors or a GGUF file)"
        )

    def call(self) -> None:
        """Call the function below the top of the stack with the arguments on top; push the result.

        Only an empty dict and a tensor can be made; every other call raises BadHeader.
        """
        arguments, function = self.pop(), self.pop()
        if not isinstance(arguments, PickledList) or not arguments.is_tuple:
            self.refuse(f"calls with {described(arguments)}; expected a tuple")
        if function is KnownName.ORDERED_DICT:
            if arguments.items:
                self.refuse("makes an OrderedDict with arguments; expected none")
            self.push(PickledDict())
        elif function is KnownName.REBUILD_TENSOR:
            self.push(self._tensor(arguments.items))
        else:
            self.refuse(f"calls {described(function)}; expected OrderedDict or a tensor")

    def find_storage(self) -> None:
        """Take a persistent id off the stack, and push the storage that it describes."""
        found = self.pop()
        items = found.items if isinstance(found, PickledList) else []
        match items:
            case ["storage", StorageType() as kind, str(key), str(), int(size)] if is_count(size):
                self.push(TorchStorage(key, kind, size))
            case _:
                self.refuse("has a persistent id that describes no storage")

    def set_state(self) -> None:
        """Take a dict's attributes, such as versions of modules, off the stack and ignore them."""
        state, target = self.pop(), self.pop()
        if not (isinstance(state, PickledDict) and isinstance(target, PickledDict)):
            self.refuse(f"sets the state of {described(target)}; expected a dict")
        self.push(target)

    def check_protocol(self) -> None:
        """Read the version of the pickle protocol; raise BadHeader if it is not known."""
        version = self.take(1)[0]
        if version not in PROTOCOLS:
            self.refuse(f"has protocol {version}; expected {PROTOCOLS[0]} to {PROTOCOLS[-1]}")

    def refuse(self, what: str) -> NoReturn:
        """Raise BadHeader, which names the file and says what is wrong with the pickle.

        `what` completes a sentence that begins "the pickle", such as "has protocol 9".
        """
        raise BadHeader(f"{self._where}: the pickle {what}")

    def _result(self) -> object:
        value = self.pop()
        if self._stack or self._marks or self._at != len(self._raw):
            self.refuse(f"ends at byte {self._at} with values or bytes left over")
        return value

    def _tensor(self, arguments: list[object]) -> TorchTensor:
        """Make a tensor from the arguments of torch's `_rebuild_tensor_v2`.

        Raise BadHeader for wrong arguments, or if the tensor extends beyond its storage.
        """
        if len(arguments) not in REBUILD_ARGUMENTS:
            self.refuse(f"makes a tensor of {len(arguments)} arguments; expected 6 or 7")
        storage, offset = arguments[:2]
        shape, strides = whole_tuple(arguments[2]), whole_tuple(arguments[3])
        if not (isinstance(storage, TorchStorage) and isinstance(offset, int) and is_count(offset)):
            self.refuse("makes a tensor without a storage and an offset")
        if shape is None or strides is None or len(shape) != len(strides):
            self.refuse("makes a tensor whose size and strides are no tuples of one length")
        if len(shape) > MAX_DIMS:
            self.refuse(f"makes a tensor of {len(shape)} dimensions; expected at most {MAX_DIMS}")
        if len(arguments) == max(REBUILD_ARGUMENTS) and arguments[-1] is not None:
            self.refuse("makes a tensor with metadata, which is not supported")
        return self._checked(TorchTensor(storage, offset, shape, strides))

    def _checked(self, tensor: TorchTensor) -> TorchTensor:
        """Return `tensor` unchanged; raise BadHeader if its storage has too few elements for it."""
        held = tensor.storage.items
        if tensor.offset + tensor.span > held or tensor.elements > held:
            self.refuse(
                f"makes a tensor of shape {shown(str(list(tensor.shape)))} with strides "
                f"{shown(str(list(tensor.strides)))} from element {shown(tensor.offset)}; storage "
                f"{shown(tensor.storage.key)} has {shown(held)} elements"
            )
        return tensor

    def _deepen(self, target: PickledList | PickledDict, items: Iterable[object]) -> None:
        """Update the nesting depth of `target` after `items` were put into it.

        Raises BadHeader above MAX_DEPTH, or if a container inside another one is changed.
        """
        if target.is_placed:
            self.refuse("changes a container that lies inside of another one")
        for item in items:
            if isinstance(item, PickledList | PickledDict):
                item.is_placed = True
                if item is target:
                    self.refuse("puts a container into itself")
                target.depth = max(target.depth, item.depth + 1)
        if target.depth > MAX_DEPTH:
            self.refuse(f"nests deeper than {MAX_DEPTH}")


ACTIONS: dict[bytes, Callable[[Machine], object]] = {
    b"\x80": Machine.check_protocol,
    b"\x95": lambda m: m.take(8),  # FRAME: the length of a block, which is not needed
    b"(": Machine.mark,
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"J": lambda m: m.push(m.number("<i")),
    b"K": lambda m: m.push(m.number("<B")),
    b"M": lambda m: m.push(m.number("<H")),
    b"G": lambda m: m.push(m.number(">d")),
    b"\x8a": Machine.push_integer,
    b"X": lambda m: m.push(m.text(m.number("<I"))),
    b"\x8c": lambda m: m.push(m.text(m.number("<B"))),
    b"U": lambda m: m.push(m.text(m.number("<B"))),  # strings of Python 2
    b"T": lambda m: m.push(m.text(m.number("<I"))),
    b")": lambda m: m.push_tuple([]),
    b"\x85": lambda m: m.push_tuple([m.pop()]),
    b"\x86": lambda m: m.push_tuple([m.pop(), m.pop()][::-1]),
    b"\x87": lambda m: m.push_tuple([m.pop(), m.pop(), m.pop()][::-1]),
    b"t": lambda m: m.push_tuple(m.pop_mark()),
    b"]": lambda m: m.push(PickledList([], is_tuple=False)),
    b"a": lambda m: m.append([m.pop()]),
    b"e": lambda m: m.append(m.pop_mark()),
    b"}": lambda m: m.push(PickledDict()),
    b"s": lambda m: m.set_items([m.pop(), m.pop()][::-1]),
    b"u": lambda m: m.set_items(m.pop_mark()),
    b"q": lambda m: m.remember(m.number("<B")),
    b"r": lambda m: m.remember(m.number("<I")),
    b"\x94": Machine.remember,
    b"h": lambda m: m.recall(m.number("<B")),
    b"j": lambda m: m.recall(m.number("<I")),
    b"c": lambda m: m.name(m.line(), m.line()),
    b"\x93": lambda m: m.name(*[m.pop(), m.pop()][::-1]),
    b"R": Machine.call,
    b"Q": Machine.find_storage,
    b"b": Machine.set_state,
}
REFUSED = {
    b"i": "INST",
    b"o": "OBJ",
    b"\x81": "NEWOBJ",
    b"\x92": "NEWOBJ_EX",
    b"\x82": "EXT1",
    b"\x83": "EXT2",
    b"\x84": "EXT4",
    b"P": "PERSID",
}


def is_count(value: object) -> bool:
    """Say whether a value is a whole number from 0 to 2**62."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2**62


def whole_tuple(value: object) -> tuple[int, ...] | None:
    """Return the numbers of a pickled tuple of sizes; None if `value` is anything else."""
    if not isinstance(value, PickledList) or not value.is_tuple:
        return None
    numbers = tuple(item for item in value.items if isinstance(item, int) and is_count(item))
    return numbers if len(numbers) == len(value.items) else None


def described(value: object) -> str:
    """Return a description in a few words of a value of a pickle, for an error."""
    if isinstance(value, PickledDict):
        return f"a dict of {len(value.entries)}"
    if isinstance(value, PickledList):
        return f"a {'tuple' if value.is_tuple else 'list'} of {len(value.items)}"
    if isinstance(value, TorchTensor | TorchStorage | StorageType | KnownName):
        return f"a {type(value).__name__}"
    return shown(value)
