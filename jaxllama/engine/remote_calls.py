"""Remote calls: the calls of host 0's batch as bytes, and their repetition on another host.

Used by `batch.py` and `llm.py`. A call is the name of a method of `Batch` and its arguments:
numbers, arrays, tuples of arrays. Knows no connection.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from jaxllama.engine.parcel import pack
from jaxllama.engine.state import RowStart
from jaxllama.engine.steps import Runs
from jaxllama.errors import JaxLlamaError
from jaxllama.request import AdapterUse

ARRAY, RUNS, ADAPTER = 1, 2, 3  # kinds of msgpack's extensions


class RemoteCall(msgspec.Struct, array_like=True, frozen=True):
    """One call of a method of Batch, as it is sent to the other hosts."""

    method: str
    positional: list[Any]
    named: dict[str, Any]


class ArrayParts(msgspec.Struct, array_like=True, frozen=True):
    """The dtype, shape and bytes of an array that is sent to the other hosts."""

    dtype: str
    shape: tuple[int, ...]
    content: bytes


def encode_call(method: str, positional: Sequence[Any], named: Mapping[str, Any]) -> bytes:
    """Encode a call of a method of Batch and its arguments as bytes (msgpack).

    `positional` are the arguments without a name, `named` those with one.
    """
    sent = {name: as_sent(argument) for name, argument in named.items()}
    call = RemoteCall(method, list(map(as_sent, positional)), sent)
    return msgspec.msgpack.encode(call, enc_hook=as_extension)


def as_sent(argument: Any) -> Any:
    """Convert an argument of a call if msgpack would lose its type.

    A RowStart becomes an array of bytes; a Runs and an AdapterUse become msgpack extensions. Other
    arguments come back unchanged.
    """
    if isinstance(argument, RowStart):
        return pack(argument)
    if isinstance(argument, AdapterUse):
        return msgspec.msgpack.Ext(ADAPTER, msgspec.msgpack.encode(argument))
    if not isinstance(argument, Runs):
        return argument
    return msgspec.msgpack.Ext(RUNS, msgspec.msgpack.encode([*argument], enc_hook=as_extension))


def as_extension(value: Any) -> Any:
    """Convert a NumPy array to a msgpack extension, or a NumPy number to a Python number.

    Raises TypeError for other values.
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        parts = ArrayParts(value.dtype.str, value.shape, value.tobytes())
        return msgspec.msgpack.Ext(ARRAY, msgspec.msgpack.encode(parts))
    raise TypeError(f"{type(value).__name__} cannot be sent to another host")


def from_extension(kind: int, content: memoryview) -> Any:
    """Convert a msgpack extension back to the value that was sent.

    This is a Runs, an AdapterUse or an array. `kind` is the extension's type, `content` its bytes.
    """
    if kind == RUNS:
        return Runs(*msgspec.msgpack.decode(content, ext_hook=from_extension))
    if kind == ADAPTER:
        return msgspec.msgpack.decode(content, type=AdapterUse)
    parts = msgspec.msgpack.decode(content, type=ArrayParts)
    return np.frombuffer(parts.content, parts.dtype).reshape(parts.shape)


def decode_call(message: bytes) -> RemoteCall:
    """Decode the bytes that `encode_call` returned."""
    return msgspec.msgpack.decode(message, type=RemoteCall, ext_hook=from_extension)


def repeat_calls(batch: object, next_call: Callable[[], bytes | None]) -> None:
    """Repeat the calls of host 0's batch on this host's batch.

    Hosts are processes that run one model together; host 0 decides. `next_call` returns the next
    call as bytes, or None after the last. Raises JaxLlamaError for a method that Batch does not
    have.
    """
    while (message := next_call()) is not None:
        call = decode_call(message)
        method = getattr(type(batch), call.method, None)
        own = getattr(method, "__wrapped__", None)
        if own is None:
            raise JaxLlamaError(
                f"host 0 calls {call.method!r:.40}, which this host does not have; expected the "
                f"same version of jaxllama on all hosts"
            )
        own(batch, *call.positional, **call.named)
