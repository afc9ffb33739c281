"""Files that lie: GGUF and safetensors bytes built by hand, and what must hold of opening them.

Called by the hostile-file tests of this folder.
"""

import json
import struct
import time
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from jaxllama.errors import CheckpointError
from jaxllama.model.params import Leaf
from jaxllama.testing.models import shapes
from jaxllama.weights import open_checkpoint
from jaxllama.weights.base import Checkpoint, fill

MORE_MEMORY = 16 << 20  # bytes above the file's own size
SECONDS = 2.0  # of this process, so that a busy machine does not matter
U32_MAX, BIG, U64_MAX = 2**32 - 1, 2**63, 2**64 - 1
HUGE = (U32_MAX, BIG, U64_MAX)


def outcome(path: Path) -> CheckpointError | None:
    """Open a model and read all of it, in bounded time and memory; the error if it is refused.

    Anything but a CheckpointError passes through and fails the test.
    """
    size = path.stat().st_size if path.is_file() else 0
    tracemalloc.start()
    started = time.process_time()
    try:
        with open_checkpoint(path) as checkpoint:
            read_everything(checkpoint)
    except CheckpointError as error:
        assert str(error)
        assert len(str(error)) < 20_000
        return error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < size + MORE_MEMORY
        assert time.process_time() - started < SECONDS
    return None


def read_everything(checkpoint: Checkpoint) -> None:
    """Fill a tree, with an abstract one that costs nothing to make."""
    leaves = {
        path: Leaf(shape, (None,) * len(shape)) for path, shape in shapes(checkpoint.config).items()
    }
    fill(leaves, checkpoint, lambda *_: None)


def string(text: str | bytes) -> bytes:
    """A GGUF string."""
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    """A GGUF key with its value."""
    return string(key) + struct.pack("<I", kind) + value


def u32(key: str, value: int) -> bytes:
    """A GGUF key with a UINT32."""
    return pair(key, 4, struct.pack("<I", value))


def f32(key: str, value: float) -> bytes:
    """A GGUF key with a FLOAT32."""
    return pair(key, 6, struct.pack("<f", value))


def tensor(
    name: str | bytes,
    dims: Iterable[int] = (32,),
    kind: int = 0,
    offset: int = 0,
    num_dims: int | None = None,
) -> bytes:
    """A GGUF tensor entry."""
    dims = list(dims)
    count = len(dims) if num_dims is None else num_dims
    return (
        string(name)
        + struct.pack("<I", count)
        + b"".join(struct.pack("<Q", dim) for dim in dims)
        + struct.pack("<IQ", kind, offset)
    )


def gguf_bytes(
    pairs: Iterable[bytes] = (),
    tensors: Iterable[bytes] = (),
    *,
    counts: tuple[int | None, int | None] = (None, None),  # of tensors, of keys
    version: int = 3,
    payload: int = 4096,
) -> bytes:
    """A GGUF file whose counts may lie."""
    pairs, tensors = list(pairs), list(tensors)
    num_tensors = len(tensors) if counts[0] is None else counts[0]
    num_pairs = len(pairs) if counts[1] is None else counts[1]
    head = b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_pairs)
    head += b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + bytes(payload)


def safetensors_bytes(header: object, payload: int, *, length: int | None = None) -> bytes:
    """A safetensors file whose header may be any text or bytes, and its length a lie."""
    if isinstance(header, bytes):
        raw = header
    else:
        raw = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + bytes(payload)


def flips(size: int, count: int, seed: int) -> list[tuple[int, int]]:
    """Random (byte, bit) places below `size`."""
    rng = np.random.default_rng(seed)
    return [(int(rng.integers(size)), int(rng.integers(8))) for _ in range(count)]


def flipped(raw: bytes, place: tuple[int, int]) -> bytes:
    """The bytes with one bit turned."""
    changed = bytearray(raw)
    changed[place[0]] ^= 1 << place[1]
    return bytes(changed)
