"""Bundles: small arrays of our own checkpoints, stored one after the other as one array of bytes.

Written by `convert.py`, read by the native reader. Opening an array costs as much as reading some
hundred kilobytes, so the arrays of a small model are read much faster in bundles. The manifest
lists the arrays of each bundle. A part of a bundled array is cut from the whole bundle.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxllama.weights.native_store import ArrayStore, PendingArray
from jaxllama.weights.stored import Index, Shape, whole

SMALL = 1 << 20  # bytes of the largest array in a bundle
BUNDLE = 4 << 20  # bytes of the largest bundle
ALIGNED = 64  # bytes

Bundles = Mapping[str, Sequence[str]]  # names of the arrays in each bundle, in order


class BundleWriter:
    """Writes arrays to a store, small ones in bundles; `bundles` lists them after `finish`."""

    def __init__(self, store: ArrayStore) -> None:
        self.bundles: dict[str, list[str]] = {}
        self._store = store
        self._names: list[str] = []  # of the arrays in the bundle that is being filled
        self._bytes = bytearray()

    def write(self, name: str, value: np.ndarray) -> None:
        """Write one array; it is on the disk after `finish`."""
        if value.nbytes > SMALL:
            self._store.write(name, value)
            return
        if len(self._bytes) + value.nbytes > BUNDLE:
            self._end_bundle()
        self._names.append(name)
        self._bytes += value.tobytes()
        self._bytes += bytes(-len(self._bytes) % ALIGNED)

    def finish(self) -> None:
        """Write to the disk what is in memory until now."""
        self._end_bundle()
        self._store.finish()

    def _end_bundle(self) -> None:
        if self._names:
            name = f"bundle.{len(self.bundles)}"
            self._store.write(name, np.frombuffer(bytes(self._bytes), np.uint8))
            self.bundles[name] = self._names
        self._names, self._bytes = [], bytearray()


@dataclass(frozen=True)
class PendingBundle:
    """A bundle that is being read from the disk, for several arrays."""

    name: str
    bytes: PendingArray
    taken: set[str] = field(default_factory=set)  # arrays that were returned without a copy


class BundlePlace(NamedTuple):
    """Where an array is: its bundle, its first byte there, its bytes and its dtype."""

    bundle: str
    start: int
    nbytes: int
    dtype: np.dtype[Any]


class BundledArray(NamedTuple):
    """An array, or a part of it, in a bundle that is being read from the disk."""

    bundle: PendingArray
    place: BundlePlace
    shape: Shape  # of the whole array
    part: Index | None  # None: all of it

    def result(self) -> np.ndarray:
        """Wait for the disk and return the array; raise CheckpointError if it is damaged."""
        start, dtype = self.place.start, self.place.dtype
        raw = self.bundle.result()[start : start + self.place.nbytes]
        array = raw.view(dtype).reshape(self.shape)
        return array if self.part is None else array[self.part].copy()


class BundleReader:
    """Finds arrays in the bundles of a store; keeps the bundle that was read last."""

    def __init__(
        self, store: ArrayStore, bundles: Bundles, arrays: Mapping[str, tuple[Shape, str]]
    ) -> None:
        """Prepare to read from the bundles of `store`.

        `bundles` lists the arrays of each bundle, `arrays` has the shape and dtype of each.
        """
        self._store, self._arrays = store, arrays
        self._places: dict[str, BundlePlace] = {}  # by array
        self._sizes: dict[str, int] = {}  # bytes, by bundle
        for bundle, names in bundles.items():
            size = 0
            for name in names:
                shape, dtype = arrays[name]
                place = BundlePlace(bundle, size, nbytes_of(shape, dtype), dtype_named(dtype))
                self._places[name] = place
                size += -(-place.nbytes // ALIGNED) * ALIGNED
            self._sizes[bundle] = size
        self._newest: PendingBundle | None = None

    def stored_names(self, names: Iterable[str]) -> list[str]:
        """Return the names under which the store has these arrays, each once: some are bundles."""
        places = self._places
        return list(dict.fromkeys(places[n].bundle if n in places else n for n in names))

    def start(self, name: str, index: Index) -> PendingArray | BundledArray:
        """Start to read part `index` of array `name`; `result` of the returned object waits for it.

        Raise BadHeader unless the store has the array, or its bundle, in the expected form.
        """
        shape, dtype = self._arrays[name]
        place = self._places.get(name)
        if place is None:
            return self._store.start(name, shape, dtype, index)
        newest = self._newest
        if newest is None or newest.name != place.bundle or name in newest.taken:
            size = (self._sizes[place.bundle],)
            pending = self._store.start(place.bundle, size, "uint8", whole(size))
            self._newest = newest = PendingBundle(place.bundle, pending)
        is_whole = index == whole(shape)
        if is_whole:
            newest.taken.add(name)
        return BundledArray(newest.bytes, place, shape, None if is_whole else index)

    def close(self) -> None:
        """Forget the bundle that was read last."""
        self._newest = None


def dtype_named(name: str) -> np.dtype[Any]:
    """Return NumPy's dtype with this name, such as "float16" or "bfloat16"."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def nbytes_of(shape: Shape, dtype: str) -> int:
    """Return the bytes that an array of this shape and dtype takes."""
    return math.prod(shape) * dtype_named(dtype).itemsize
