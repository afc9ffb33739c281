"""Bundles: small arrays of our own checkpoints, stored one after the other as one array of bytes.

Written by `convert.py`, read by the native reader. Opening an array costs as much as reading some
200 kB, so the arrays of a small model are read much faster in bundles. The manifest lists the
arrays of each bundle. A bundle is read as a whole, also for a part of one array.
"""

import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from jaxllama.errors import BadHeader
from jaxllama.weights.native_store import SHARING, ArrayStore, PendingArray, aligned
from jaxllama.weights.stored import Index, Shape, dtype_named, nbytes_of, whole

SMALL = 1 << 20  # bytes of the largest array in a bundle
BUNDLE = 4 << 20  # bytes of the largest bundle
KEPT = 2  # bundles: the arrays of one weight may lie in two
NAME = re.compile(r"bundle\.[0-9]{1,6}")

Bundles = Mapping[str, Sequence[str]]  # names of the arrays in each bundle, in order
Forms = Mapping[str, tuple[Shape, str]]  # shape and dtype of each array by name


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
        if len(self._bytes) + aligned(value.nbytes) > BUNDLE:
            self._end_bundle()
        self._names.append(name)
        self._bytes += value.tobytes()
        self._bytes += bytes(aligned(len(self._bytes)) - len(self._bytes))

    def finish(self) -> None:
        """Write the last bundle, and to the disk all arrays that were kept in memory."""
        self._end_bundle()
        self._store.finish()

    def _end_bundle(self) -> None:
        if self._names:
            name = f"bundle.{len(self.bundles)}"
            self._store.write(name, np.frombuffer(self._bytes, np.uint8))
            self.bundles[name] = self._names
        self._names, self._bytes = [], bytearray()


class BundlePlace(NamedTuple):
    """The bundle that holds an array, the array's first byte in it, and its number of bytes."""

    bundle: str
    start: int
    nbytes: int

    @property
    def may_share(self) -> bool:
        """Say whether the array may keep the memory of its bundle: small ones live too long."""
        return self.nbytes >= SHARING[0]


class BundleLayout(NamedTuple):
    """The places of all arrays in bundles, and the bytes of each bundle."""

    places: dict[str, BundlePlace]
    sizes: dict[str, int]


def lay_out(bundles: Bundles, arrays: Forms, where: str) -> BundleLayout:
    """Return where the arrays are in the bundles that a manifest lists.

    `arrays` are all arrays of the checkpoint, in the order of their weights. Raises BadHeader with
    the text `where` if the bundles have other arrays, or these in another order (bundles would be
    read several times), or are too large.
    """
    layout = BundleLayout({}, {})
    rest = iter(arrays)
    for bundle, names in bundles.items():
        if NAME.fullmatch(bundle) is None:
            raise BadHeader(
                f"{where}: a bundle is called {bundle!r:.80}; expected bundle.0, bundle.1 and so on"
            )
        size = 0
        for name in names:
            if name not in rest:  # moves `rest` behind the name
                raise BadHeader(
                    f"{where}: {bundle} has the array {name!r:.80}; expected arrays of weights, "
                    f"each once, in the order of the weights"
                )
            nbytes = nbytes_of(*arrays[name])
            layout.places[name] = BundlePlace(bundle, size, nbytes)
            size += aligned(nbytes)
        if size > BUNDLE:
            raise BadHeader(f"{where}: {bundle} has {size} bytes; expected at most {BUNDLE}")
        layout.sizes[bundle] = size
    return layout


@dataclass(frozen=True)
class PendingBundle:
    """A bundle that is being read from the disk, for several arrays."""

    name: str
    bytes: PendingArray
    taken: set[str] = field(default_factory=set)  # arrays that were returned without a copy


class BundledArray(NamedTuple):
    """An array, or a part of it, in a bundle that is being read from the disk."""

    bundle: PendingArray
    place: BundlePlace
    shape: Shape  # of the whole array
    dtype: str
    part: Index | None  # None: all of it

    def result(self) -> np.ndarray:
        """Wait for the disk and return the array; raise CheckpointError if it is damaged."""
        start, nbytes = self.place.start, self.place.nbytes
        raw = self.bundle.result()[start : start + nbytes]
        array = raw.view(dtype_named(self.dtype)).reshape(self.shape)
        if self.part is not None:
            return array[self.part].copy()
        return array if self.place.may_share else array.copy()


class BundleReader:
    """Finds arrays in the bundles of a store; keeps the bundles that were read last."""

    def __init__(self, store: ArrayStore, layout: BundleLayout, arrays: Forms) -> None:
        """Prepare to read from the bundles of `store`, which have this layout.

        `arrays` has the shape and dtype of all arrays of the store, also of those in no bundle.
        """
        self._store, self._layout, self._arrays = store, layout, arrays
        self._kept: deque[PendingBundle] = deque(maxlen=KEPT)

    def stored_names(self, names: Iterable[str]) -> list[str]:
        """Return the names under which the store has these arrays, each once: some are bundles."""
        places = self._layout.places
        return list(dict.fromkeys(places[n].bundle if n in places else n for n in names))

    def start(self, name: str, index: Index) -> PendingArray | BundledArray:
        """Start to read part `index` of array `name`; `result` of the returned object waits for it.

        Raise BadHeader unless the store has the array, or its bundle, in the expected form.
        """
        shape, dtype = self._arrays[name]
        place = self._layout.places.get(name)
        if place is None:
            return self._store.start(name, shape, dtype, index)
        bundle = self._bundle(place.bundle, name)
        if index != whole(shape):
            return BundledArray(bundle.bytes, place, shape, dtype, index)
        if place.may_share:
            bundle.taken.add(name)
        return BundledArray(bundle.bytes, place, shape, dtype, None)

    def close(self) -> None:
        """Forget the bundles that were read last."""
        self._kept.clear()

    def _bundle(self, bundle: str, name: str) -> PendingBundle:
        """Return a bundle; read it, also again if its array `name` was returned without a copy."""
        for kept in self._kept:
            if kept.name == bundle and name not in kept.taken:
                return kept
        size = (self._layout.sizes[bundle],)
        new = PendingBundle(bundle, self._store.start(bundle, size, "uint8", whole(size)))
        self._kept.append(new)
        return new
