"""Loaded adapters: the arrays of all low-rank adapters on the device, and who uses which.

Used by the engine, which loads and unloads between steps; `use` may be called from any thread. An
adapter has a number, its place in the arrays, until it is unloaded and its last request has ended.
Knows no files and no requests.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from jaxllama.engine.blueprints import leaves_of
from jaxllama.engine.programs import Programs
from jaxllama.engine.state import StateLeaves
from jaxllama.errors import InvalidParameter
from jaxllama.model.adapters import AdapterWeights
from jaxllama.model.rows import AdapterBlocks
from jaxllama.request import AdapterUse

__all__ = ["AdapterWeights", "LoadedAdapter", "LoadedAdapters", "check_adapter_name", "loaded"]

ADAPTER_NAME = r"[A-Za-z0-9._:/-]{1,128}"


@dataclass(frozen=True)
class LoadedAdapter:
    """One adapter on the device."""

    name: str
    id: int  # of this loading
    number: int  # its place in the arrays


class LoadedAdapters:
    """The adapters of one engine."""

    def __init__(self, programs: Programs, blocks: AdapterBlocks) -> None:
        self._programs = programs
        self._blocks = leaves_of(blocks)
        self._count = programs.engine.adapter_slots
        self._ids = itertools.count()
        self._loaded: dict[str, LoadedAdapter] = {}  # replaced as a whole: other threads read it
        self._uses: Counter[int] = Counter()  # requests in the engine, by id of the adapter
        self._numbers: dict[int, int] = {}  # id: number, until unloaded and unused
        self._is_fixed = False
        self.requests: Counter[str] = Counter()  # accepted so far, by name

    @property
    def names(self) -> tuple[str, ...]:
        """List the names of the loaded adapters, the oldest first."""
        return tuple(self._loaded)

    def load(self, name: str, weights: AdapterWeights) -> None:
        """Copy an adapter to the device under `name`; a loaded one with this name is replaced.

        `weights` are its low-rank matrices by number of the transformer block, then by group of
        weights, such as "qkv". Raises InvalidParameter if there is no room for another adapter, or
        after a call of `fix`.
        """
        if self._is_fixed:
            raise InvalidParameter(
                "a model on several hosts loads adapters only when it starts; start all hosts "
                "with --lora NAME=PATH",
                "lora",
            )
        taken = set(self._numbers.values())
        replaced = self._loaded.get(name)
        if replaced is not None and not self._uses[replaced.id]:
            taken.discard(replaced.number)
        free = [number for number in range(self._count) if number not in taken]
        if not free:
            raise InvalidParameter(
                f"{self._count} adapters are loaded or still in use, which is the most that fit; "
                f"unload one, or start with a larger --lora-slots",
                "lora",
            )
        self._blocks = self._programs.adapt(self._blocks, np.int32(free[0]), weights)
        if replaced is not None:
            self.unload(name)
        adapter = LoadedAdapter(name, next(self._ids), free[0])
        self._numbers[adapter.id] = adapter.number
        self._loaded = {**self._loaded, name: adapter}

    def unload(self, name: str) -> None:
        """Unload an adapter for new requests; requests that use it already keep it to their end."""
        gone = self._find(name)
        self._loaded = {each: one for each, one in self._loaded.items() if each != name}
        self._free_unused(gone.id)

    def fix(self) -> None:
        """Refuse to load adapters from now on, because the model's other hosts would not get them.

        `load` then raises InvalidParameter.
        """
        self._is_fixed = True

    def use(self, name: str, scale: float) -> AdapterUse:
        """Return a reference to the loaded adapter `name`, with a scale, for a request.

        `scale` multiplies what the adapter adds to each product with a weight. Raises
        InvalidParameter if no adapter of this name is loaded.
        """
        found = self._find(name)
        return AdapterUse(found.id, found.number, scale)

    def begin(self, use: AdapterUse) -> None:
        """Count one more request that uses an adapter, so that its arrays are not overwritten.

        Raises InvalidParameter if the adapter was unloaded since `use` returned this reference.
        """
        name = self.name_of(use.id)
        if name is None:
            raise InvalidParameter(
                "the adapter was unloaded while the request waited; send the request again with "
                "another one",
                "lora",
            )
        self._uses[use.id] += 1
        self.requests[name] += 1

    def end(self, use: AdapterUse) -> None:
        """Count one request less that uses an adapter.

        Frees the adapter's place on the device if it is unloaded and no other request uses it.
        """
        self._uses[use.id] -= 1
        if self.name_of(use.id) is None:
            self._free_unused(use.id)

    @contextmanager
    def held(self, use: AdapterUse) -> Iterator[None]:
        """Protect the device arrays of the adapter in `use` during a `with` block.

        They stay even if the adapter is unloaded meanwhile. Raises InvalidParameter if it is
        unloaded already.
        """
        self.begin(use)
        try:
            yield
        finally:
            self.end(use)

    def name_of(self, id_: int) -> str | None:
        """Return the name of an adapter by its id; None if it was unloaded."""
        return next((each.name for each in self._loaded.values() if each.id == id_), None)

    @property
    def blocks(self) -> StateLeaves:
        """The device arrays of all adapters as a flat tuple, passed to each decode call."""
        return self._blocks

    def of_slot(self, use: AdapterUse) -> StateLeaves:
        """Return the adapter arguments of a call for one slot.

        These are the arrays of all adapters, then the number and the scale of the adapter in `use`.
        """
        return (*self._blocks, np.int32(use.number), np.float32(use.scale))

    def drop(self) -> None:
        """Free the device memory of the arrays."""
        for leaf in self._blocks:
            leaf.delete()

    def _find(self, name: str) -> LoadedAdapter:
        found = self._loaded.get(name)
        if found is None:
            known = ", ".join(self._loaded) or "none"
            raise InvalidParameter(
                f"lora is {name[:100]!r}; expected the name of a loaded adapter: {known}", "lora"
            )
        return found

    def _free_unused(self, id_: int) -> None:
        """Free the device arrays of the unloaded adapter `id_` unless a request still uses it.

        "Free" means that the next adapter that is loaded may overwrite them.
        """
        if not self._uses[id_]:
            del self._uses[id_]
            self._numbers.pop(id_, None)


def loaded(adapters: LoadedAdapters | None) -> LoadedAdapters:
    """Return `adapters`; raise InvalidParameter if it is None (no room for any adapter)."""
    if adapters is None:
        raise InvalidParameter(
            "lora is given, but no adapter can be loaded here; start with --lora NAME=PATH or "
            "with --lora-slots",
            "lora",
        )
    return adapters


def check_adapter_name(name: str) -> None:
    """Raise InvalidParameter unless `name` is 1 to 128 letters, digits or characters of `._:/-`."""
    if not re.fullmatch(ADAPTER_NAME, name):
        raise InvalidParameter(
            f"the adapter name {name[:100]!r} is not usable; expected 1 to 128 letters, digits or "
            f"characters of ._:/-",
            "lora",
        )
