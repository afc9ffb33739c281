"""Plugins: entry points of a group, loaded into classes, with worded failures.

Called by `llm.py`, the CLI and the weight opener. Knows no plugin by name and no socket's contract.
"""

import logging
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from jaxllama.errors import BrokenPlugin

logger = logging.getLogger(__name__)

SAMPLERS = "jaxllama.samplers"
FORMATS = "jaxllama.formats"
WEIGHTS = "jaxllama.weights"
PRESETS = "jaxllama.presets"

T = TypeVar("T")


@dataclass(frozen=True)
class Plugins(Generic[T]):
    """The plugins of one group: those that loaded, and why the others did not."""

    group: str
    loaded: dict[str, type[T]]
    broken: dict[str, BrokenPlugin] = field(default_factory=dict)

    def one(self, name: str) -> type[T]:
        """The plugin called `name`, or an error that lists what there is."""
        if name in self.broken:
            raise self.broken[name]
        if name not in self.loaded:
            raise BrokenPlugin(
                f"no plugin {name!r} in {self.group}; installed: {', '.join(self.loaded) or 'none'}"
            )
        return self.loaded[name]


def load_plugins(group: str, base: type[T]) -> Plugins[T]:
    """Load every entry point of `group`, sorted by name; a broken one does not stop the rest."""
    points: dict[str, EntryPoint] = {}
    broken: dict[str, BrokenPlugin] = {}
    for point in sorted(entry_points(group=group), key=lambda p: (p.name, p.value)):
        other = points.setdefault(point.name, point)
        if other.value != point.value:
            broken[point.name] = BrokenPlugin(
                f"two packages register {point.name!r} in {group}: {other.value} and "
                f"{point.value}; uninstall one"
            )
    loaded: dict[str, type[T]] = {}
    for name, point in points.items():
        if name in broken:
            continue
        try:
            loaded[name] = load_one(point, base)
        except BrokenPlugin as error:
            broken[name] = error
    for reason in broken.values():
        logger.warning("%s", reason)
    return Plugins(group, loaded, broken)


def load_one(point: EntryPoint, base: type[T]) -> type[T]:
    """Import one entry point and check that it is a class of the socket."""
    try:
        found = point.load()
    except Exception as error:  # a plugin may raise anything while it is imported
        raise BrokenPlugin(
            f"plugin {point.name!r} ({point.value}) does not load: {type(error).__name__}: {error}"
        ) from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise BrokenPlugin(
            f"plugin {point.name!r} ({point.value}) is {found!r}; expected a subclass of "
            f"{base.__module__}.{base.__qualname__}"
        )
    return found
